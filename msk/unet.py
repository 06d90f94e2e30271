"""A picture, looked at from near and from afar: the small U-Net that cutter and plate are made of."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions, added to what came."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.convs[1](F.silu(self.convs[0](self.norm(z))))


class UNet(nn.Module):
    """Blocks of 2x2 pixels, then ever coarser, and back (1505.04597): of `width` channels, twice, thrice as many below."""

    def __init__(self, channels: int, width: int, levels: int):
        super().__init__()
        widths = [width * (k + 1) for k in range(levels)]
        self.first = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(Block(w) for w in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:]))
        self.finer = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(Block(w) for w in widths[:-1])
        self.norm = nn.GroupNorm(8, width)
        self.unit = 2 ** levels                                                 # H and W are multiples of it

    def look(self, x: Tensor) -> Tensor:
        """x [B, channels, H, W] -> what is seen, [B, width, H / 2, W / 2]."""
        z, kept = self.first(F.pixel_unshuffle(x, 2)), []
        for k, block in enumerate(self.down):
            z = block(self.coarser[k - 1](z) if k else z)
            kept.append(z)
        for k in reversed(range(len(self.up))):
            z = self.up[k](kept[k] + F.interpolate(self.finer[k](z), scale_factor=2, mode="nearest"))
        return self.norm(z)
