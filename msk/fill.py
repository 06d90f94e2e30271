"""Box means, dilated masks, and holes filled from around them."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def box_mean(x: Tensor, reach: int) -> Tensor:
    """x [..., H, W] -> the mean of what lies within `reach` rows and columns of each pixel, and in the picture.

    As `F.avg_pool2d` without its padding; but that takes each of (2 reach + 1)^2 pixels by itself, and here one axis comes
    after the other.
    """
    for dim in (-1, -2):
        size, place = x.shape[dim], torch.arange(x.shape[dim], device=x.device)
        count = (place + reach).clamp(max=size - 1) - (place - reach).clamp(min=0) + 1
        wide = F.pad(x, (reach, reach) if dim == -1 else (0, 0, reach, reach))
        x = wide.narrow(dim, 0, size).clone()
        for k in range(1, 2 * reach + 1):
            x += wide.narrow(dim, k, size)
        x /= count if dim == -1 else count[:, None]
    return x


def dilate(mask: Tensor, reach: int) -> Tensor:
    """mask [..., H, W] bool, and what lies within `reach` rows and columns of it."""
    return box_mean(mask.float(), reach) > 0


def pull_push(x: Tensor, known: Tensor) -> Tensor:
    """x [T, C, h, w] where `known` [T, 1, h, w] bool; elsewhere what is known around it, from ever farther away: the
    pull-push pyramid of the Lumigraph (Gortler et al., 1996).

    Whether there is anything to fill is not asked: a GPU would have to be waited for.
    """
    if max(x.shape[-2:]) == 1:
        return x * known
    share = F.avg_pool2d(known.float(), 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
    far = F.interpolate(pull_push(coarse, share > 0), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known, x, far)


def fill_smoothly(x: Tensor, good: Tensor) -> Tensor:
    """x [T, C, H, W] as smooth as means of 4x4 pixels, made of what is `good` [T, 1, H, W] bool in it (`pull_push`)."""
    mean, share = (F.avg_pool2d(z, 4, ceil_mode=True) for z in (x * good, good.float()))
    return F.interpolate(pull_push(mean / share.clamp_min(1e-6), share > 0), size=x.shape[-2:], mode="bilinear")
