"""The last touch: frames as decoded, pulled to the given picture's own pixels wherever its tracks carry them."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fill import around


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
        coarse = around(way, 2)
        made = frames + colour * coarse + detail * (way - coarse)
        return (made.clamp(0, 1) if clamp else made).unflatten(0, moved.shape[:2])


def sparing(made: Tensor, frames: Tensor, moved: Tensor) -> Tensor:
    """Finished frames `made`, but as they were decoded where these and what is carried, `moved`, are far apart.

    For clips in which it snows or night falls: of that the given picture has nothing, and finished it would be wiped off.
    """
    apart = around((frames - moved[:, :, :3]).abs().amax(dim=2, keepdim=True), 2)
    return frames + ((0.12 - apart) / 0.08).clamp(0, 1) * (made - frames)


def inside(near: Tensor, reach: int = 6) -> Tensor:
    """near [N, 1, H, W] -> [N, 1, H, W]: 0 at the border of what tracks carry, 1 from `reach` pixels on, on either side.

    There two pictures meet that need not fit, the moved one and the one that stays.
    """
    share = around((near > 0).float(), reach)
    return (2 * share - 1).abs()
