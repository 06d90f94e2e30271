"""A picture in two layers: what moves, and the clean plate, the ground without it and without the shadow it throws."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .carry import HIDES, RIM, inpaint
from .fill import box_mean, dilate
from .unet import UNet

REACH = 3 / 32      # of the shorter side: so far from what moves a shadow, or a part that was overlooked, may lie
SURE = 4.           # logits of what is said before anything is learned


class Plate(UNet):
    """What is beneath what moves, and how much of it is hidden: picture = front + (1 - opacity) plate.

    A layer of opacity is what a thing and its shadow have in common: one hides all, the other some (as in Omnimatte,
    2105.06993). It begins as `carry.inpaint`, an even patch, and learns what to add to that and where it ends.
    """

    def __init__(self, width: int, levels: int = 5):
        super().__init__(3 + 1 + 3, width, levels)
        self.last = nn.Conv2d(width, 4 * 5, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, pictures: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """pictures [B, 3, H, W] in [0, 1], moving [B, 1, H, W] bool -> the plate, of the same kind, and opacity
        [B, 1, H, W] in [0, 1]. Far from what moves the plate is the picture, and nothing is hidden."""
        height, width = pictures.shape[-2:]
        plain, _ = inpaint(pictures, moving)
        x = torch.cat([pictures - .5, moving.float(), plain - .5], dim=1)
        x = F.pad(x, (0, -width % self.unit, 0, -height % self.unit), mode="replicate")
        said = F.pixel_shuffle(self.last(F.silu(self.look(x))).float(), 2)[..., :height, :width]
        change, mix, opacity = said.split([3, 1, 1], dim=1)
        ground, rim = (plain + change).clamp(0, 1), dilate(moving, RIM + 1) & ~dilate(moving, RIM)
        known = (~rim).float()                      # where `plain` meets the picture: a line too thin for `change`
        ground = torch.where(rim, box_mean(ground * known, 1) / box_mean(known, 1).clamp_min(1e-6), ground)
        near = dilate(moving, max(1, round(REACH * min(height, width)))).float()
        mix = near * (mix + SURE * (2 * dilate(moving, RIM).float() - 1)).sigmoid()
        opacity = near * (opacity + SURE * (2 * moving.float() - 1)).sigmoid()
        mix = mix * (opacity / HIDES - 1).clamp(0, 1)                       # what is not lifted is not changed either
        return pictures + mix * (ground - pictures), opacity
