"""What is beneath what moves (`msk.plate`), learned on drawn scenes, which can be drawn again without it."""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..carry import HIDES
from ..config import Geometry
from ..fill import box_mean, dilate
from ..plate import Plate
from ..world import Scene, World
from .data import about, shades
from .vae import slopes

SHARE = .6          # of the things of a scene are taken out; at least one is
STRANGE = .3        # of the pictures have a ground that the world never has


def taken_out(scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frame 0 as it is and without some of its things, [B, 3, H, W] each; how much these hide, and where they are seen,
    [B, 1, H, W] float and bool."""
    there = scene.there
    chance = torch.rand(there.shape, generator=generator).to(there.device).masked_fill(~there, 2)
    out = there & ((chance < SHARE) | (chance == chance.amin(dim=1, keepdim=True)))
    still = scene.when([0])
    number = torch.arange(1, out.shape[1] + 1, device=out.device)[:, None, None]
    seen = (out[:, :, None, None] & (still.layers()[:, None] == number)).any(dim=1)
    return still.render()[:, 0], still.without(out).render()[:, 0], still.opacity(out), seen[:, None]


def misjudged(moving: Tensor, generator: torch.Generator, most: float = 2.) -> Tensor:
    """Masks [B, 1, H, W] bool as tracks would tell them: outlines off by some pixels, and now and then a part is missing."""
    b, _, h, w = moving.shape
    rand = lambda *size: torch.rand(*size, generator=generator).to(moving.device)
    wavy = lambda cells: F.interpolate(2 * rand(b, 1, cells, cells) - 1, size=(h, w), mode="bicubic", align_corners=False)
    soft = box_mean(box_mean(moving.float(), 2), 2)                         # falls from 1 to 0 over ten pixels
    off = most / 10 * (rand(b, 1, 1, 1) * wavy(12) + rand(b, 1, 1, 1) - .4)
    missing = (wavy(6) > .5) & (rand(b, 1, 1, 1) < .12)
    return (soft > .5 - off) & ~missing


class Store:
    """Drawn scenes, half of them wild, in two layers, kept until newer ones want their place."""

    def __init__(self, geometry: Geometry, capacity: int = 3072, seed: int = 0, device: str | torch.device = "cpu"):
        self.worlds, self.seed, self.made, self.device = [World(geometry, l) for l in ("calm", "full")], seed, 0, device
        self.drawn = torch.empty(capacity, 8, geometry.height, geometry.width, dtype=torch.uint8, device=device)
        self.generator = torch.Generator().manual_seed(seed)

    def grow(self, count: int) -> None:
        world = self.worlds[self.made // count % 2]
        scene, _ = world.scene(count, 1, (self.seed * 100_003 + self.made) % 900_000, self.device)
        drawn = torch.cat([part.float() for part in taken_out(scene, self.generator)], dim=1)
        self.drawn[torch.arange(self.made, self.made + count) % len(self.drawn)] = (drawn * 255).round().byte()
        self.made += count

    def batches(self, count: int, fresh: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Endless (pictures [B, 3, H, W] in [0, 1], moving [B, 1, H, W] bool; plates, opacity [B, 1, H, W]); so many fresh
        scenes for each."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            self.grow(fresh)
            at = torch.randint(min(self.made, len(self.drawn)), (count,), generator=generator)
            yield varied(self.drawn[at.to(self.device)], generator)


def varied(drawn: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scenes [n, 8, H, W] uint8, turned about, in parts, in other colours, on other grounds; what moves is misjudged."""
    n, device = len(drawn), drawn.device
    rand = lambda *size: torch.rand(*size, generator=generator).to(device)
    picture, ground, opacity, seen = (about(drawn, generator)(drawn, "bilinear") / 255).split([3, 3, 1, 1], dim=1)
    more = torch.where(rand(n, 1, 1, 1) < STRANGE, rough(n, drawn.shape[-2:], generator).to(device), 0)
    front = picture - (1 - opacity) * ground
    ground = (ground + more).clamp(0, 1)
    picture, colour = (front + (1 - opacity) * ground).clamp(0, 1), shades(n, generator, device)
    own = rand(n, 1, 1, 1) < .5
    picture, ground = (torch.where(own, x, colour(x)) for x in (picture, ground))
    return picture, misjudged(seen > .5, generator), ground, opacity


def rough(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise [n, 3, H, W], mostly of one colour, from clouds to gravel, of up to a fifth: as photographs have it."""
    rand = lambda *size: torch.rand(*size, generator=generator)
    rows, columns = torch.meshgrid(torch.fft.fftfreq(size[0]), torch.fft.rfftfreq(size[1]), indexing="ij")
    steep = .5 + 1.5 * rand(count, 1, 1, 1)
    stretch = (2 ** (3 * rand(count, 2, 1, 1) - 1.5)).unbind(dim=1)
    away = ((rows * stretch[0]).square() + (columns * stretch[1]).square()).sqrt().clamp_min(1 / max(size))[:, None]
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(count, 3, *size, generator=generator)) * away ** -steep, s=size)
    noise = noise.mean(dim=1, keepdim=True) + .5 * rand(count, 1, 1, 1) * noise
    return .10 * rand(count, 1, 1, 1) * noise / noise.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def plate_loss(plate: Plate, pictures: Tensor, moving: Tensor, grounds: Tensor, opacity: Tensor) -> tuple[Tensor, dict]:
    """How far off plate and opacity are, and what moves where it is laid on another ground; all near to what moves, and the
    plate most where something hides it. Logs: PSNR of the plate there, and of what moves on the other ground."""
    made, hides = plate(pictures, moving)
    near = dilate((opacity > HIDES) | moving, 4).float()
    mean = lambda x, weight=near: (x * weight).sum() / (x.shape[1] * weight.sum()).clamp_min(1)
    elsewhere = grounds.roll(1, dims=0)
    laid = (1 - hides) * (elsewhere - made) - (1 - opacity) * (elsewhere - grounds)
    hidden = near * (opacity > HIDES)
    edges = sum((a - b).abs().sum() for a, b in zip(slopes(made)[:2], slopes(grounds)[:2])) / (3 * near.sum())
    loss = mean((made - grounds).abs()) + 2 * mean((made - grounds).abs(), hidden) + 2 * mean(laid.abs()) \
        + mean((hides - opacity).abs()) + edges
    with torch.no_grad():
        ratio = lambda x, weight: -10 * mean(x.square(), weight).clamp_min(1e-9).log10().item()
        logs = {"plate": ratio(made - grounds, hidden), "laid": ratio(laid, near)}
    return loss, logs
