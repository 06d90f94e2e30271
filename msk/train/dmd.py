"""Distillation: Self Forcing with distribution matching. The student trains on the very rollouts that it will play."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StreamConfig
from ..flow import add_noise, shift, to_x0
from ..guidance import Condition, joint_guidance
from ..stream import rollout


def noise_levels(count: int, frames: int, time_shift: float, generator: torch.Generator | None, device) -> Tensor:
    """t [B, F], one per clip: uniform, shifted, kept from both ends (where one of the two scores says nothing)."""
    t = shift(torch.rand(count, 1, generator=generator), time_shift).clamp(.02, .98)
    return t.expand(-1, frames).to(device)


def roll_out(student, cond: Condition, noise: Tensor, config: StreamConfig, exit_at: int,
             generator: torch.Generator | None = None) -> Tensor:
    """A whole clip [B, F, C, h, w] from `stream.rollout`, rolling cache and all, each chunk left at step `exit_at`.

    A graph through that one step of each chunk, where the student's parameters want one.
    """
    return torch.cat(list(rollout(student, noise, cond.text, cond.motion, cond.image, config, exit_at, generator)), dim=1)


def dmd_loss(x0: Tensor, teacher, critic, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """A loss whose gradient in x0 is (critic's x0 - teacher's x0), scaled by the mean distance to the teacher's.

    x0 [B, F, C, h, w] with a graph; teacher, critic: (x_t, t) -> velocity; t [B, F]. DMD (2311.18828), Eq. 7 and 8;
    MotionStream, Eq. 3.
    """
    with torch.no_grad():
        x_t = add_noise(x0, torch.randn_like(x0) if noise is None else noise, t)
        real, fake = to_x0(x_t, teacher(x_t, t).float(), t), to_x0(x_t, critic(x_t, t).float(), t)
        scale = (x0 - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-4)
        target = x0 - (fake - real) / scale
    return 0.5 * F.mse_loss(x0, target)


def student_loss(student, teacher, critic, cond: Condition, noise: Tensor, config: StreamConfig, *, text_scale: float,
                 motion_scale: float, generator: torch.Generator | None = None, real: Tensor | None = None,
                 anchor: float = 0., clear: Tensor | None = None) -> tuple[Tensor, dict]:
    """Roll out with a graph through one random step, then match distributions: guided teacher against critic.

    anchor: weight of a regression term that holds the rollout to `real`, the clip [B, F, C, h, w] whose tracks it follows.
    DMD has one (2311.18828, Sec. 3.3); MotionStream has none, and a teacher of its size needs none. clear [B]: the clips
    that are held so (None: all); specks in the air are as good elsewhere, and their mean is none.
    """
    exit_at = int(torch.randint(config.steps, (), generator=generator))     # the same for every chunk
    x0 = roll_out(student, cond, noise, config, exit_at, generator)
    t = noise_levels(len(x0), x0.shape[1], config.time_shift, generator, x0.device)
    loss = dmd_loss(x0.float(), lambda x, t: joint_guidance(teacher, x, t, cond, text_scale, motion_scale),
                    lambda x, t: critic(x, t, cond.text, cond.motion, cond.image), t)
    logs = {"exit": exit_at}
    if real is not None and anchor:
        off = (x0.float() - real).square().mean(dim=(1, 2, 3, 4))
        off = off.mean() if clear is None else (off * clear).mean()
        loss, logs = loss + anchor * off, logs | {"off": off.item()}
    return loss, logs


def critic_loss(critic, student, cond: Condition, noise: Tensor, config: StreamConfig,
                generator: torch.Generator | None = None) -> tuple[Tensor, dict]:
    """The critic learns the student's distribution by rectified flow on its rollouts; no guidance, no gradient back."""
    exit_at = int(torch.randint(config.steps, (), generator=generator))
    x0 = roll_out(student, cond, noise, config, exit_at, generator).detach().float()
    t = noise_levels(len(x0), x0.shape[1], config.time_shift, generator, x0.device)
    fresh = torch.randn_like(x0)
    velocity = critic(add_noise(x0, fresh, t), t, cond.text, cond.motion, cond.image).float()
    return F.mse_loss(velocity, fresh - x0), {}
