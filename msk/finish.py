"""The last touch: frames as decoded, pulled to the given picture's own pixels wherever its tracks carry them."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fill import box_mean


class Finish(nn.Module):
    """A few convolutions on blocks of 2x2 pixels, frame by frame: how far to go to what is carried, in colour and in detail.

    A small autoencoder keeps one number of every 64: how a thing looks from near is lost, though the picture is at hand.
    After ToonCrafter (2405.17933), whose decoder sees the given frames too. It adds nothing of its own: where
    the two agree, and while it is untrained, it changes nothing.
    """

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4 * 7, width, 3, padding=1), nn.ReLU(),
                                 nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(),
                                 nn.Conv2d(width, 4 * 2, 3, padding=1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, frames: Tensor, moved: Tensor, clamp: bool = True) -> Tensor:
        """frames [B, T, 3, H, W] in [0, 1], and the picture as tracks move it, [B, T, 4, H, W] (see `carry.moved`) ->
        frames of the same kind. H and W are even."""
        frames, carried = frames.flatten(0, 1).float(), moved.flatten(0, 1).float()
        x = F.pixel_unshuffle(torch.cat([frames, carried], dim=1), 2)                   # [B * T, 28, H / 2, W / 2]
        x = self.net(x.to(self.net[0].weight.dtype, memory_format=torch.channels_last))
        colour, detail = F.pixel_shuffle(x.float().contiguous(), 2).tanh().split(1, dim=1)      # [B * T, 1, H, W] each
        way = inside(carried[:, 3:]) * (carried[:, :3] - frames)
        coarse = box_mean(way, 2)
        made = frames + colour * coarse + detail * (way - coarse)
        return (made.clamp(0, 1) if clamp else made).unflatten(0, moved.shape[:2])


def sparing(made: Tensor, frames: Tensor, moved: Tensor) -> Tensor:
    """Finished frames `made`, but as they were decoded where these are lighter than what is carried, `moved`, in two colours
    at least.

    For clips in which it snows: of that the given picture has nothing, and finished it would be wiped off.
    """
    lighter = box_mean((frames - moved[:, :, :3]).median(dim=2, keepdim=True).values.clamp_min(0), 2)
    return frames + ((0.08 - lighter) / 0.05).clamp(0, 1) * (made - frames)


def relit(frames: Tensor, moved: Tensor, cell: int = 8) -> Tensor:
    """What is carried, `moved`, in the light of decoded frames: around each place as bright in every colour as these are.

    For clips in which the light changes: the given picture has all the details, in another light.
    """
    cells = (F.avg_pool2d(x.flatten(0, 1).float(), cell, ceil_mode=True) for x in (frames, moved[:, :, :3]))
    now, then = (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + .02 for x in cells)
    gain = (now / then).clamp(.2, 3)
    gain = F.interpolate(gain, size=frames.shape[-2:], mode="bilinear").unflatten(0, frames.shape[:2])
    return torch.cat([(moved[:, :, :3] * gain).clamp(0, 1), moved[:, :, 3:]], dim=2)


def inside(near: Tensor, reach: int = 6) -> Tensor:
    """near [N, 1, H, W] -> [N, 1, H, W]: 0 at the border of what tracks carry, 1 from `reach` pixels on, on either side.

    There two pictures meet that need not fit, the moved one and the one that stays.
    """
    share = box_mean((near > 0).float(), reach)
    return (2 * share - 1).abs()
