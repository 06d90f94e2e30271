"""The teacher's sampler: from noise to data along the velocity, as a generator over steps."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import expm1, inf, log

import torch
from torch import Tensor

from .flow import schedule, to_x0, twice_shifted
from .guidance import Condition, joint_guidance

SOLVERS = "euler", "unipc"


@dataclass(frozen=True)
class Step:
    index: int          # from 0
    total: int
    t: float            # noise level of `latents`
    latents: Tensor     # x_t, [B, F, C, h, w]
    x0: Tensor          # what the model sees in it; the last one is the sample


def sample(dit, noise: Tensor, cond: Condition, steps: int = 50, time_shift: float = 6.0,
           text_scale: float = 3.0, motion_scale: float = 1.5, levels: list[float] | None = None,
           together: bool = False, solver: str = "euler") -> Iterator[Step]:
    """Yield each step from `noise` [B, F, C, h, w] down to data; the last `.x0` is the sample.

    levels: the noise levels themselves, from 1 down without the final 0, in place of steps and time_shift.
    together: the passes of guidance as one batch, see `joint_guidance`. solver: "euler", or "unipc" (see `UniPC`), which
    needs fewer steps; either asks the model once a step.
    """
    if solver not in SOLVERS:
        raise ValueError(f"no solver called {solver!r}: use {' or '.join(SOLVERS)}")
    x, sigmas = noise, levels or schedule(steps, time_shift)
    steps, unipc = len(sigmas), UniPC(sigmas) if solver == "unipc" else None
    for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0])):
        t = x.new_full(x.shape[:2], sigma)
        with torch.no_grad():
            velocity = joint_guidance(dit, x, t, cond, text_scale, motion_scale, together)
            x0 = to_x0(x, velocity, t)
        yield Step(i, steps, sigma, x, x0)
        x = unipc.step(x, x0) if unipc else x + (after - sigma) * velocity


def options(preset) -> dict:
    """Of `sample`, as a preset's teacher was made for."""
    steps, shift = preset.sample_steps, preset.stream.time_shift
    return dict(levels=twice_shifted(steps, shift) if preset.shifted_twice else schedule(steps, shift),
                text_scale=preset.text_scale, motion_scale=preset.motion_scale, solver=preset.solver)


class UniPC:
    """UniPC of second order over clean predictions, with B(h) = e^h - 1: what Wan's own pipelines sample with.

    Each step leads on from the latest two predictions; when the next is there, it is put right with that one first. The
    first two steps (after pure noise nothing is known) and the last are of lower order. Zhao et al., 2302.04867.
    """

    def __init__(self, sigmas: list[float]):
        self.sigmas = [min(s, 1 - 1e-6) for s in sigmas] + [0.0]
        self.log_snr = [log((1 - s) / s) if s else inf for s in self.sigmas]
        self.seen: list[Tensor] = []            # clean predictions: two before, one before
        self.start, self.i = None, 0            # x at the level before, put right

    def step(self, x: Tensor, x0: Tensor) -> Tensor:
        """x at this level, as led to, and what the model saw in it -> x at the next."""
        if self.i:
            x = self._along(self.i - 1, self._corrected(x0))
        self.seen, self.start = [*self.seen[-1:], x0], x
        self.i += 1
        last = self.i + 1 == len(self.sigmas)
        return self._along(self.i - 1, x0 if last else x0 + 0.5 * self._change(self.i - 1))

    def _along(self, i: int, x0: Tensor) -> Tensor:
        """From level i to the next, exactly, as if the prediction were x0 all the way."""
        now, then = self.sigmas[i:i + 2]
        return then / now * self.start - (1 - then) * expm1(-self._way(i)) * x0

    def _way(self, i: int) -> float:
        return self.log_snr[i + 1] - self.log_snr[i]

    def _change(self, i: int) -> Tensor | float:
        """By how much the prediction changes from level i to the next, if it goes on as it did."""
        if len(self.seen) < 2:
            return 0.0
        return (self.seen[1] - self.seen[0]) * (self._way(i) / self._way(i - 1))

    def _corrected(self, x0: Tensor) -> Tensor:
        """What to take for the prediction on the way from the level before, now that this one's is known."""
        i, before = self.i - 1, self.seen[-1]
        if len(self.seen) < 2:
            return before + 0.5 * (x0 - before)
        h, e = -self._way(i), expm1(-self._way(i))
        both = (e / h - 1) / e                                      # the two weights' sum
        old = (both - 2 * ((e / h - 1) / h - 0.5) / e) / (1 + self._way(i - 1) / self._way(i))
        return before + old * self._change(i) + (both - old) * (x0 - before)
