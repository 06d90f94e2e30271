"""What lies under a point of a picture (`msk.cutter`), learned on drawn scenes, where it is known of every pixel."""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Geometry
from ..cutter import SHARE, Cutter
from ..world import World
from .data import about, shades

GROUND = .15        # share of points on the ground, where there is no thing
LEAST = SHARE[0]    # of the picture: what shows less is not asked for
POINTS = 8          # asked of each picture


def touching(layers: Tensor) -> Tensor:
    """[B, H, W] -> [B]: how many neighbours are of two different things."""
    pairs = ((layers[..., 1:], layers[..., :-1]), (layers[:, 1:], layers[:, :-1]))
    return sum(((a != b) & (a > 0) & (b > 0)).flatten(1).sum(dim=1) for a, b in pairs)


class Store:
    """Pictures of drawn scenes, half of them wild, with their layers, kept until newer ones want their place."""

    def __init__(self, geometry: Geometry, capacity: int = 4096, seed: int = 0, device: str | torch.device = "cpu"):
        self.worlds, self.seed, self.made, self.device = [World(geometry, l) for l in ("calm", "full")], seed, 0, device
        self.drawn = torch.empty(capacity, 4, geometry.height, geometry.width, dtype=torch.uint8, device=device)

    def grow(self, count: int) -> None:
        """So many more; twice as many are looked at, and those kept in which things touch most: the others are easy."""
        world = self.worlds[self.made // count % 2]
        scene, _ = world.scene(2 * count, 1, (self.seed * 100_003 + 2 * self.made) % 900_000, self.device)
        found = scene.layers().byte()
        kept = touching(found).argsort(descending=True)[:count].tolist()
        pictures = scene.part(kept).render()[:, 0]
        drawn = torch.cat([(pictures * 255).round().byte(), found[kept][:, None]], dim=1)
        self.drawn[torch.arange(self.made, self.made + count) % len(self.drawn)] = drawn
        self.made += count

    def batches(self, count: int, fresh: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless (pictures [B, 3, H, W] in [0, 1], places [B, K, 2], masks [B, K, H, W] bool); so many fresh scenes for
        each."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            self.grow(fresh)
            at = torch.randint(min(self.made, len(self.drawn)), (count,), generator=generator)
            pictures, layer = varied(self.drawn[at.to(self.device)], generator)
            yield pictures, *asked(layer, POINTS, generator)


def varied(drawn: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and layers [n, 4, H, W] uint8 -> [n, 3, H, W] in [0, 1], [n, H, W]: each turned about, and of half of them a
    part, and half in other colours."""
    n, device, sample = len(drawn), drawn.device, about(drawn, generator)
    pictures, layer = sample(drawn[:, :3], "bilinear") / 255, sample(drawn[:, 3:], "nearest")[:, 0]
    own = torch.rand(n, 1, 1, 1, generator=generator).to(device) < .5
    return torch.where(own, pictures, shades(n, generator, device)(pictures)), layer


def asked(layer: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of pictures' layers [B, H, W], below 256, places [B, K, 2] on things and ground, and masks [B, K, H, W] bool of what
    is there; all things that show enough (LEAST) are asked for alike, and of the ground a mask is empty."""
    flat, (h, w) = layer.flatten(1).long(), layer.shape[-2:]
    chance, among, within = torch.rand(3, len(flat), count, generator=generator).to(layer.device)
    share = torch.zeros(len(flat), 256, device=layer.device)
    share.scatter_add_(1, flat, torch.full(flat.shape, 1 / (h * w), device=layer.device))
    things = (share > LEAST).index_fill(1, flat.new_zeros(1), False)
    nth = (among * things.sum(dim=1, keepdim=True)).long()
    which = (things.cumsum(dim=1)[:, None] <= nth[..., None]).sum(dim=-1)                               # [B, K]
    ground = (chance < GROUND) & (share[:, :1] > 0) | ~things.any(dim=1, keepdim=True)
    masks = flat[:, None] == torch.where(ground, 0, which)[..., None]                                   # [B, K, H * W]
    nth = (within * masks.sum(dim=-1)).long()
    at = (masks.cumsum(dim=-1) <= nth[..., None]).sum(dim=-1)
    places = torch.stack([at % w, at // w], dim=-1) + .5
    return places, (masks & ~ground[..., None]).unflatten(-1, (h, w))


def cutter_loss(cutter: Cutter, pictures: Tensor, places: Tensor, masks: Tensor) -> tuple[Tensor, dict]:
    """Cross-entropy, and one minus the soft overlap (V-Net, 1606.04797). Logs: the mean overlap of things (intersection over
    union), the share of things that are nine tenths right, and of places on the ground where next to nothing is found."""
    logits, truth, axes = cutter(pictures, places).float(), masks.float(), (-2, -1)
    likely = logits.sigmoid()
    dice = 1 - (2 * (likely * truth).sum(axes) + 1) / (likely.sum(axes) + truth.sum(axes) + 1)
    loss = F.binary_cross_entropy_with_logits(logits, truth) * 4 + dice.mean()
    with torch.no_grad():
        found, things = logits > 0, masks.flatten(2).any(dim=-1)
        overlap = ((found & masks).sum(axes) / (found | masks).sum(axes).clamp(min=1))[things]
        nothing = found.float().mean(axes)[~things] < LEAST
        mean = lambda x: x.float().mean().item() if len(x) else 1.
    return loss, {"overlap": mean(overlap), "whole": mean(overlap > .9), "ground": mean(nothing)}
