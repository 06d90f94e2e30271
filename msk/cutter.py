"""Which pixels belong to the thing under a point: what a hand takes hold of, where it has been learned (see `msk.grip`)."""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import UNet

SIDE = 128          # pixels of the shorter side of what is looked at
HEAD = 16           # channels of what a point asks
MIRRORS = (), (-1,), (-2,), (-1, -2)           # axes turned about


class Cutter(UNet):
    """A U-Net looks at the picture once; what it sees at a point then says what to ask of every other pixel.

    Colours alone cannot say where one thing ends and another of its colours begins, nor that stripes are of one thing. As in
    CondInst (2003.05664) the question is three small layers whose weights the point makes for itself, so a picture is taught
    by many points for the price of one.
    """

    def __init__(self, width: int, levels: int = 4):
        super().__init__(3, width, levels)
        self.sizes = [(width + 3, HEAD), (HEAD, HEAD), (HEAD, 4)]               # of what a point asks: channels in, out
        self.asks = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                  nn.Linear(4 * width, sum(a * b + b for a, b in self.sizes)))

    def size(self, height: int, width: int) -> list[int]:
        """Rows and columns in which a picture of that size is looked at."""
        return [max(1, round(side * SIDE / min(height, width) / self.unit)) * self.unit for side in (height, width)]

    def look(self, pictures: Tensor) -> Tensor:
        """pictures [B, 3, H, W] in [0, 1] -> what is seen, [B, C, H / 2, W / 2]."""
        return super().look(pictures - .5)

    def forward(self, pictures: Tensor, places: Tensor) -> Tensor:
        """pictures [B, 3, H, W] in [0, 1], places [B, K, 2] in pixels, x then y -> logits [B, K, H, W]."""
        return self.ask(self.look(pictures), places)

    def ask(self, z: Tensor, places: Tensor) -> Tensor:
        """`forward`, of what is seen."""
        count, (h, w) = places.shape[1], z.shape[-2:]
        at = places / torch.stack([places.new_full((), side) for side in (w, h)]) - 1                   # [-1, 1]
        own = F.grid_sample(z.float(), at[:, :, None].float(), padding_mode="border", align_corners=False)[..., 0].mT
        line = lambda n: 2 * torch.arange(n, device=z.device) + 1.
        away = torch.stack(torch.meshgrid(line(w), line(h), indexing="xy")).flatten(1) - places[..., None]
        away = away / min(h, w)                                                                     # [B, K, 2, h w]
        away = torch.cat([away, away.square().sum(dim=2, keepdim=True).sqrt()], dim=2)

        asks = self.asks(own).split([a * b + b for a, b in self.sizes], dim=-1)
        (first, bias), *others = (part.split([a * b, b], dim=-1) for part, (a, b) in zip(asks, self.sizes))
        of_z, of_away = first.unflatten(-1, (HEAD, -1)).split([z.shape[1], 3], dim=-1)      # [B, K, HEAD, C], [.., 3]
        x = (of_z.flatten(1, 2) @ z.flatten(2)).unflatten(1, (count, HEAD)) / z.shape[1] ** .5
        x = x + of_away @ away + bias[..., None]                                                    # [B, K, HEAD, h w]
        for weight, bias in others:
            x = weight.unflatten(-1, (-1, HEAD)) / HEAD ** .5 @ F.silu(x) + bias[..., None]
        return F.pixel_shuffle(x.unflatten(-1, (h, w)), 2)[:, :, 0]

    @torch.no_grad()
    def likely(self, picture: np.ndarray, place: complex, more: int = 15) -> np.ndarray:
        """How likely each pixel of a picture [H, W, 3] uint8 is of the thing at `place`: [H, W] in [0, 1].

        The picture is looked at as it is and in its mirrors; then so many more places of what is found are asked about: what
        one place misses another may know. An answer counts by the square of its overlap with the first one.
        """
        (h, w), device = picture.shape[:2], self.first.weight.device
        seen = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)[None] / 255
        small = self.size(h, w)
        if small != [h, w]:
            seen = F.interpolate(seen, size=small, mode="bilinear", antialias=True)
        z = self.look(torch.cat([seen.flip(dims) for dims in MIRRORS]))
        size = torch.tensor(small[::-1], device=device, dtype=torch.float32)

        def answers(places: Tensor) -> Tensor:
            """[K, 2] -> logits [K, H, W], the mean of all mirrors."""
            across = torch.tensor([[-1 in dims, -2 in dims] for dims in MIRRORS], device=device)[:, None]       # [M, 1, 2]
            logits = self.ask(z, torch.where(across, size - places, places))
            return torch.stack([one.flip(dims) for one, dims in zip(logits, MIRRORS)]).mean(dim=0)

        at = torch.tensor([[place.real / w, place.imag / h]], device=device, dtype=torch.float32) * size
        found = answers(at)
        inside = (found[0] > 0).nonzero().flip(1) + .5
        if more and len(inside):
            each = torch.linspace(0, len(inside) - 1, more, device=device).round().long()
            found = torch.cat([found, answers(inside[each])])
        each = found.sigmoid()
        least, most = (z.sum(dim=(1, 2)) for z in (torch.minimum(each, each[:1]), torch.maximum(each, each[:1])))
        weight = (least / most).square()[:, None, None]
        likely = (weight * each).sum(dim=0) / weight.sum()
        if small != [h, w]:
            likely = F.interpolate(likely[None, None], size=(h, w), mode="bilinear")[0, 0]
        return likely.cpu().numpy()

