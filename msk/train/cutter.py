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
        pictures = torch.cat([scene.part(b, b + 1).render()[:, 0] for b in kept])
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
            places, masks = zip(*(asked(one, POINTS, generator) for one in layer.cpu()))      # pixel by pixel: no GPU's work
            yield pictures, torch.stack(places).to(self.device), torch.stack(masks).to(self.device)


def varied(drawn: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and layers [n, 4, H, W] uint8 -> [n, 3, H, W] in [0, 1], [n, H, W]: each turned about, and of half of them a
    part, and half in other colours."""
    n, device, sample = len(drawn), drawn.device, about(drawn, generator)
    pictures, layer = sample(drawn[:, :3], "bilinear") / 255, sample(drawn[:, 3:], "nearest")[:, 0]
    own = torch.rand(n, 1, 1, 1, generator=generator).to(device) < .5
    return torch.where(own, pictures, shades(n, generator, device)(pictures)), layer


def asked(layer: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of one picture's layers [H, W], places [K, 2] on its things and its ground, and masks [K, H, W] bool of what is there;
    all things that show enough (LEAST) are asked for alike, and of the ground a mask is empty."""
    rand = lambda: torch.rand((), generator=generator).item()
    share = layer.flatten().long().bincount() / layer.numel()
    things = [k for k, part in enumerate(share.tolist()) if k and part > LEAST]
    of = {k: (layer == k).nonzero() for k in (0, *things)}
    ground = lambda: len(of[0]) and rand() < GROUND
    which = [things[int(rand() * len(things))] if things and not ground() else 0 for _ in range(count)]
    places = torch.stack([of[k][int(rand() * len(of[k]))].flip(0) + .5 for k in which])
    return places, torch.stack([(layer == k) & (k > 0) for k in which])


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
