"""The last touch (`msk.finish`), learned on what the finished student makes of the clips and of hands' drags."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import hands
from ..cutter import can_cut
from ..evaluate import by_chunks, by_student
from ..finish import Finish
from ..kit import Kit
from ..motion import draw_ids
from ..tracks import Tracks
from ..world import HELD_OUT, World
from .data import drawn, followed, shades
from .vae import slopes

DRAGGED = 0.5       # share of clips in which hands drag things, mostly whole ones with the rest held, and nothing else stirs


@torch.no_grad()
def played(kit: Kit, world: World, seed: int, frames: int = 45) -> Tensor:
    """One clip as the student streams it, not yet finished; what its tracks carry; the truth: [T, 3 + 4 + 3, H, W] uint8."""
    generator, max_id = torch.Generator().manual_seed(seed), kit.preset.tracks.max_id
    rand = lambda: torch.rand((), generator=generator).item()
    name = list(hands.CASES)[int(rand() * len(hands.CASES))]
    shot = hands.take(world, hands.CASES[name], seed, frames, max_id) if rand() < DRAGGED else None
    if shot is not None:
        told = hands.held(kit, shot).told if rand() < .8 and can_cut() else shot.told
        truth, captions, clear = shot.truth, [shot.caption], True
    else:
        clip = world.sample(1, frames, seed=seed)
        count = max(8, world.geometry.height * world.geometry.width // 36)
        xy, visible, layer, born = followed(clip.scene, count, generator)
        tracks = Tracks(xy, visible, draw_ids(1, count, max_id, generator))
        told = drawn(replace(tracks, origin=tracks.origins()), layer, born, generator, dense=.6, none=0.)
        truth, captions, clear = clip.frames, clip.captions, bool(clip.scene.clear.all())
    truth, told = truth.to(kit.device), told.to(kit.device)
    moved = by_chunks(kit, told, truth[:, 0], frames)[1]
    if moved is None or not clear:                      # nothing to learn from: all is hidden, or its specks are elsewhere
        return played(kit, world, (seed + 1) % HELD_OUT, frames)
    made = by_student(replace(kit, finish=None), captions, truth[:, 0], told, frames, seed)
    return (torch.cat([made, moved[:, :frames], truth], dim=2)[0] * 255).round().byte()


class Store:
    """Frames of such clips, some of each, kept until newer ones want their place."""

    def __init__(self, kit: Kit, level: str, capacity: int = 1000, each: int = 15, seed: int = 0):
        self.kit, self.world, self.each, self.seed, self.made = kit, World(kit.geometry, level), each, seed, 0
        shape = (capacity * each, 10, kit.geometry.height, kit.geometry.width)
        self.frames = torch.empty(shape, dtype=torch.uint8, device=kit.device)

    def grow(self) -> None:
        clip = played(self.kit, self.world, (self.seed + self.made * 7919) % HELD_OUT)
        kept = torch.randperm(len(clip), generator=torch.Generator().manual_seed(self.made))[:self.each]
        at = torch.arange(self.made * self.each, (self.made + 1) * self.each) % len(self.frames)
        self.frames[at] = clip[kept.to(clip.device)]
        self.made += 1

    def batches(self, count: int, every: int, crop: float = 0.5, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless (made [n, 1, 3, H, W], moved, truth), cut to `crop` of their size; a new clip for `every` of them.

        Colours are mixed up: what may be trusted is to be told from what agrees, not from which scenes there were.
        """
        generator, number = torch.Generator().manual_seed(seed), 0
        height, width = (round(size * crop / 2) * 2 for size in self.frames.shape[-2:])
        while True:
            number += 1
            if number % every == 0:
                self.grow()
            full = min(self.made * self.each, len(self.frames))
            at = torch.randint(full, (count,), generator=generator).tolist()
            y = torch.randint((self.frames.shape[-2] - height) // 2 + 1, (count,), generator=generator) * 2
            x = torch.randint((self.frames.shape[-1] - width) // 2 + 1, (count,), generator=generator) * 2
            parts = [self.frames[i, :, a:a + height, b:b + width] for i, a, b in zip(at, y.tolist(), x.tolist())]
            crops = mixed(torch.stack(parts).float() / 255, generator)
            yield tuple(part[:, None] for part in crops.split([3, 4, 3], dim=1))


def mixed(parts: Tensor, generator: torch.Generator) -> Tensor:
    """Crops [n, 3 + 4 + 3, H, W] in [0, 1], each in other colours: channels changed about, made negative, paler."""
    colour = shades(len(parts), generator, parts.device)
    made, moved, near, truth = parts.split([3, 3, 1, 3], dim=1)
    return torch.cat([colour(made), colour(moved), near, colour(truth)], dim=1)


def finish_loss(finish: Finish, made: Tensor, moved: Tensor, truth: Tensor) -> tuple[Tensor, dict]:
    """Loss, and the PSNR of the batch before and after."""
    frames = finish(made, moved, clamp=False)
    edges = sum((a - b).abs().mean() for a, b in zip(slopes(frames)[:2], slopes(truth)[:2]))
    loss = (frames - truth).abs().mean() + 4 * F.mse_loss(frames, truth) + edges
    with torch.no_grad():
        before, after = (-10 * F.mse_loss(x.clamp(0, 1), truth).log10().item() for x in (made, frames))
    return loss, {"psnr": after, "before": before}
