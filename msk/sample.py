"""The teacher's sampler: Euler steps along the velocity, as a generator over steps."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import schedule, to_x0
from .guidance import Condition, joint_guidance


@dataclass(frozen=True)
class Step:
    index: int          # from 0
    total: int
    t: float            # noise level of `latents`
    latents: Tensor     # x_t, [B, F, C, h, w]
    x0: Tensor          # what the model sees in it; the last one is the sample


def sample(dit, noise: Tensor, cond: Condition, steps: int = 50, time_shift: float = 6.0,
           text_scale: float = 3.0, motion_scale: float = 1.5, levels: list[float] | None = None,
           together: bool = False) -> Iterator[Step]:
    """Yield each step from `noise` [B, F, C, h, w] down to data; the last `.x0` is the sample.

    levels: the noise levels themselves, from 1 down without the final 0, in place of steps and time_shift.
    together: the passes of guidance as one batch, see `joint_guidance`.
    """
    x, sigmas = noise, levels or schedule(steps, time_shift)
    steps = len(sigmas)
    for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0])):
        t = x.new_full(x.shape[:2], sigma)
        with torch.no_grad():
            velocity = joint_guidance(dit, x, t, cond, text_scale, motion_scale, together)
            x0 = to_x0(x, velocity, t)
        yield Step(i, steps, sigma, x, x0)
        x = x + (after - sigma) * velocity
