"""The causal start: a student from the teacher, by regression along the guided teacher's own trajectories."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import chunk_mask
from ..config import StreamConfig
from ..flow import add_noise, like, schedule, to_x0
from ..guidance import Condition
from ..sample import sample


@dataclass(frozen=True)
class Trajectories:
    """Noisy latents at the student's K levels and the clean end, [B, K + 1, F, C, h, w], with their conditions."""
    latents: Tensor
    text: Tensor
    motion: Tensor
    image: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"latents": self.latents, "text": self.text, "motion": self.motion, "image": self.image}

    def pick(self, at: Tensor) -> Trajectories:
        return Trajectories(*(z[at] for z in self.tensors().values()))


@torch.no_grad()
def trajectory(dit, cond: Condition, noise: Tensor, config: StreamConfig, steps: int, text_scale: float, motion_scale: float
               ) -> Trajectories:
    """Sample with joint guidance and keep x_t where the student will stand. MotionStream, Sec. 3.3; method: CausVid.

    `steps` must be a multiple of the student's, else the sampler never visits its levels.
    """
    if steps % config.steps:
        raise ValueError(f"{steps} sampler steps never visit the student's {config.steps} levels: "
                         f"use a multiple of {config.steps}")
    kept = []
    for step in sample(dit, noise, cond, steps, config.time_shift, text_scale, motion_scale):
        if step.index % (steps // config.steps) == 0:
            kept.append(step.latents)
    return Trajectories(torch.stack([*kept, step.x0], dim=1), cond.text, cond.motion, cond.image)


def straight(latents: Tensor, cond: Condition, config: StreamConfig, noise: Tensor) -> Trajectories:
    """The same for real clips, latents [B, F, C, h, w]: the straight lines of rectified flow, from noise to data.

    A young teacher loses what it knows from step to step of its sampler; beside its own trajectories these keep the student
    at the data.
    """
    levels = [latents.new_full(latents.shape[:2], t) for t in schedule(config.steps, config.time_shift)]
    x = [add_noise(latents, noise, t) for t in levels]
    return Trajectories(torch.stack([*x, latents], dim=1), cond.text, cond.motion, cond.image)


def ode_loss(student, paths: Trajectories, config: StreamConfig, generator: torch.Generator | None = None
             ) -> tuple[Tensor, dict]:
    """Mean square error in x0 under a causal mask, each chunk at a level of its own.

    Sink and window vary from batch to batch, so that one student serves many (MotionStream, Sec. 3.3). The clean end is
    among the levels, as context only: it says what a remembered chunk looks like, and is left out of the loss.
    """
    b, k, f = *paths.latents.shape[:2], paths.latents.shape[2]
    device, chunks = paths.latents.device, -(-f // config.chunk)
    roll = lambda high: int(torch.randint(high, (), generator=generator))
    sink, window = roll(3), (1, 1, 2, chunks)[roll(4)]
    level = torch.randint(k, (b, chunks), generator=generator)
    level[:, -1] = torch.randint(k - 1, (b,), generator=generator)                                  # something to learn from
    level = level.repeat_interleave(config.chunk, dim=1)[:, :f].to(device)                          # [B, F]
    sigmas = torch.tensor([*schedule(config.steps, config.time_shift), 0.], device=device)
    t = sigmas[level]
    x = torch.gather(paths.latents, 1, level[:, None, :, None, None, None].expand(-1, 1, *paths.latents.shape[2:]))[:, 0]
    rows, columns = student.config.token_grid(x.shape[-2:])
    mask = chunk_mask(f, rows * columns, config.chunk, sink, window, device=device)
    x0 = to_x0(x, student(x, t, paths.text, paths.motion, paths.image, mask=mask).float(), t)
    counts = (t > 0).float()
    error = (x0 - paths.latents[:, -1]).square() * like(counts, x0)
    loss = error.sum() / (counts.sum() * x0[0, 0].numel())
    return loss, {"sink": sink, "window": window}


def shuffled(paths: Trajectories, batch: int, device, seed: int = 0) -> Iterator[Trajectories]:
    """Endless batches from a store of trajectories."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = paths.pick(torch.randint(len(paths.latents), (batch,), generator=generator))
        yield Trajectories(*(z.to(device).float() for z in chosen.tensors().values()))
