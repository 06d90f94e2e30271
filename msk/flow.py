"""The straight path between data and noise: x_t = (1 - t) x0 + t noise, velocity = noise - x0. Here t = 1 is noise."""
from __future__ import annotations

from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """[B] or [B, F] -> broadcastable against x [B, F, ...]."""
    return t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at noise level t [B] or [B, F] between data and noise."""
    return x0 + like(t, x0) * (noise - x0)


def to_x0(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the straight line through x_t along the velocity meets the data."""
    return x_t - like(t, x_t) * velocity


def shift(t, k: float):
    """Spend more of [0, 1] near noise; k = 1 changes nothing. MotionStream trains and samples with 6 (App. D)."""
    return k * t / (1 + (k - 1) * t)


def schedule(steps: int, time_shift: float) -> list[float]:
    """Noise levels from 1 down, evenly spaced before the shift, without the final 0: (3, 6.0) -> 1, 0.923, 0.75."""
    if steps < 1:
        raise ValueError(f"a schedule of {steps} steps makes nothing: use 1 or more")
    return [shift(1 - i / steps, time_shift) for i in range(steps)]


def fewer(levels: list[float], steps: int) -> list[float]:
    """So many of the levels, the first and the last among them: ([1, .86, .6], 2) -> 1, .6. One alone is the first."""
    if not 1 <= steps <= len(levels):
        raise ValueError(f"{steps} of {len(levels)} noise levels were asked for: use 1 to {len(levels)}")
    return [levels[round(i * (len(levels) - 1) / max(1, steps - 1))] for i in range(steps)]


def exact_velocity(x_t: Tensor, t: float, data: Tensor) -> Tensor:
    """The best velocity where `data` is all there is: the mean of noise - x0 over all that may lie behind x_t.

    x_t [N, D], t in (0, 1], data [K, D] -> [N, D].
    """
    away = (x_t[:, None] - (1 - t) * data).square().sum(dim=-1)                     # [N, K]
    likely = (-away / (2 * t * t)).softmax(dim=-1)                                  # noise is Gaussian
    return (x_t - likely @ data) / t


def twice_shifted(steps: int, time_shift: float) -> list[float]:
    """The levels of diffusers' FlowMatchEulerDiscreteScheduler: evenly spaced from 1 to shift(1/1000), then shifted again.

    WanTrack's teacher visits 30 of these; its app runs the student at every 250th of 1000.
    """
    last = shift(1 / 1000, time_shift)
    return [shift(1 + (last - 1) * i / max(1, steps - 1), time_shift) for i in range(steps)]
