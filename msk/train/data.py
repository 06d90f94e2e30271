"""What the stages train on: rendered clips as latents, and track sets as people draw them."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..carry import Split, carry, inpaint
from ..config import Preset
from ..host import send
from ..motion import draw_ids
from ..tinyvae import TinyVAE
from ..tracks import Tracks
from ..world import HELD_OUT, Scene, World, grid_points
from .loop import autocast


@dataclass(frozen=True)
class Batch:
    """latents [B, F, C, h, w]; tracks over the same time, already chosen and hidden; prompts ("" where dropped); what the
    tracks carry of the first frame (`carry.carry`), for models that are told; clear [B]: which have no specks in the air."""
    latents: Tensor
    tracks: Tracks
    prompts: list[str]
    carried: Tensor | None = None
    clear: Tensor | None = None

    def given(self, mask_channels: int) -> Tensor:
        """The first frame behind its mask of ones, [B, 1, mask + C, h, w], as `Kit.encode_image` gives it."""
        first = self.latents[:, :1]
        return torch.cat([first.new_ones(*first.shape[:2], mask_channels, *first.shape[3:]), first], dim=2)


def followed(scene: Scene, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidate tracks of a scene: a jittered grid and more points on the things, some of them born in mid-clip.

    xy [B, T, count, 2], visible [B, T, count], layer [B, count] (0: background), born [B, count] (frame of birth).
    """
    g, B, device = scene.geometry, len(scene.pan), scene.pan.device
    rows = int((count // 2) ** .5)
    even = grid_points(g, rows, rows, B, jitter=.9, generator=generator, device=device)
    size = torch.tensor([g.width, g.height], device=device)
    anywhere = lambda n: torch.rand(B, n, 2, generator=generator, device=device) * size

    def on_things(points: Tensor, at: int, keep: int):
        xy, visible, layer = scene.track(points, at)
        chance = torch.rand(layer.shape, generator=generator, device=device)
        order = (chance + (layer > 0)).argsort(dim=1, descending=True)[:, :keep]
        pick = lambda z: torch.gather(z, -2 if z.ndim == 4 else -1,
                                      order[:, None, :, None].expand(-1, z.shape[1], -1, 2) if z.ndim == 4 else
                                      order[:, None].expand(-1, z.shape[1], -1) if z.ndim == 3 else order)
        return pick(xy), pick(visible), pick(layer), torch.full_like(order, at)

    late = count // 5
    at = int(torch.randint(1, max(2, scene.frames - 6), (), generator=generator, device=device))
    xy, visible, layer = scene.track(even)
    parts = [(xy, visible, layer, torch.zeros_like(layer)),
             on_things(anywhere(5 * count), 0, count - rows * rows - late), on_things(anywhere(3 * late), at, late)]
    return tuple(torch.cat(z, dim=2 if z[0].ndim > 2 else 1) for z in zip(*parts))


class Pool:
    """A store of clips as latents, with their candidate tracks and captions, that keeps being renewed.

    Rendering costs as much as training, so each clip is used a few times, with other tracks, noise and cuts each time.
    candidates: tracks followed in each clip; 0: one for every 36 square pixels. split: what parts a picture from what moves
    in it (see `carry.warp`). eventful: see `World`.
    """

    def __init__(self, preset: Preset, vae: TinyVAE, split: Split = inpaint, *, capacity: int = 4096, candidates: int = 0,
                 frames: int = 45, level: str = "calm", eventful: float | None = None, seed: int = 0,
                 device: str | torch.device = "cpu"):
        self.preset, self.vae, self.split, self.frames, self.device = preset, vae, split, frames, torch.device(device)
        self.world = World(preset.geometry, level, eventful)
        c, (h, w) = preset.vae.latent_channels, preset.geometry.latent_size
        candidates = candidates or max(8, preset.geometry.height * preset.geometry.width // 36)
        self.candidates, self.capacity, self.size, self.made, self.seed = candidates, capacity, 0, 0, seed
        empty = lambda *s, dtype: torch.empty(capacity, *s, dtype=dtype, device=device)
        self.latents = empty(preset.geometry.latent_frames(frames), c, h, w, dtype=torch.float16)
        self.first = empty(3, preset.geometry.height, preset.geometry.width, dtype=torch.uint8)
        self.xy = empty(frames, candidates, 2, dtype=torch.float16)
        self.visible = empty(frames, candidates, dtype=torch.bool)
        self.layer, self.born = empty(candidates, dtype=torch.int16), empty(candidates, dtype=torch.int16)
        self.captions: list[str] = [""] * capacity
        self.clear = torch.ones(capacity, dtype=torch.bool)

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Render and encode `count` more clips; the oldest make room."""
        if count > self.capacity:
            raise ValueError(f"{count} clips do not fit into a store of {self.capacity}: ask for fewer at once")
        seed = (self.seed + self.made * 7919) % HELD_OUT
        clip = self.world.sample(count, self.frames, seed=seed, device=self.device)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        xy, visible, layer, born = followed(clip.scene, self.candidates, generator)
        at = (torch.arange(count, device=self.device) + self.made) % self.capacity
        with autocast(self.device):
            self.latents[at] = self.vae.encode(clip.frames).half()
        self.first[at] = (clip.frames[:, 0] * 255).round().byte()
        self.xy[at], self.visible[at] = xy.clamp(-999, 999).half(), visible
        self.layer[at], self.born[at] = layer.short(), born.short()
        self.clear[at.cpu()] = clip.scene.clear.cpu()
        for i, caption in zip(at.tolist(), clip.captions):
            self.captions[i] = caption
        self.made += count
        self.size = min(self.capacity, self.size + count)

    def draw(self, count: int, latent_frames: int, generator: torch.Generator, clear: bool = False, **drawing) -> Batch:
        """clear: only clips without specks in the air, if there are any, as these can be told from what is given."""
        among = (self.clear[:self.size] | (not clear) | ~self.clear[:self.size].any()).nonzero()[:, 0]
        at = among[torch.randint(len(among), (count,), generator=generator)]
        where = at.to(self.device)
        frames = self.preset.geometry.pixel_frames(latent_frames)
        ids = draw_ids(count, self.candidates, self.preset.tracks.max_id, generator, self.device)
        tracks = Tracks(self.xy[where, :frames].float(), self.visible[where, :frames], ids)
        tracks = replace(tracks, origin=tracks.origins())           # known even where the point is to be drawn later
        tracks = drawn(tracks, self.layer[where], self.born[where], generator, **drawing)
        drop = torch.rand(count, generator=generator) < .1                                          # text dropout
        prompts = ["" if d else self.captions[i] for i, d in zip(at.tolist(), drop.tolist())]
        carried = None
        if self.preset.tracks.carry:
            with autocast(self.device), torch.no_grad():
                first, encode = self.first[where] / 255, self.vae.encode_alone
                carried = carry(tracks, first, encode, self.preset.geometry, split=self.split)
        return Batch(self.latents[where, :latent_frames].float(), tracks, prompts, carried, self.clear[at].to(self.device))

    def batches(self, count: int, latent_frames: Callable[[], int] | int, fresh: int, seed: int = 0, **drawing
                ) -> Iterator[Batch]:
        """Endless batches; `fresh` new clips are rendered for each."""
        generator = torch.Generator().manual_seed(seed + self.seed)
        while True:
            if fresh:
                self.grow(fresh)
            yield self.draw(count, latent_frames() if callable(latent_frames) else latent_frames, generator, **drawing)


def drawn(tracks: Tracks, layer: Tensor, born: Tensor, generator: torch.Generator, *, dense: float = .5, none: float = .1,
          masking: float = 0.) -> Tracks:
    """Choose and hide candidate tracks the way people draw them; the rest is hidden, and the widest set decides N.

    With probability `dense` many points anywhere; `none`: nothing at all; else one to twenty points: single handles,
    clusters around a handle, pins on the background, some let go or begun in mid-clip. With probability `masking` all
    points vanish for a run of latent frames (MotionStream: p = 0.2 in stage 2).
    """
    (B, T, N), device = tracks.visible.shape, tracks.xy.device
    rand = lambda *s: torch.rand(*s, generator=generator)
    here = born.long()[:, None, :, None].expand(-1, 1, -1, 2).clamp(0, T - 1)
    place = tracks.xy.gather(1, here)[:, 0].cpu()                       # at birth. Chosen on the CPU, and told a GPU in one
    layer, born = layer.cpu(), born.long().cpu()
    style, score = rand(B).tolist(), rand(B, N)
    keep, start, stop = torch.zeros(B, N, dtype=torch.bool), born.clone(), torch.full((B, N), T)    # it speaks from, until
    for b in range(B):
        if style[b] < none:
            continue
        if style[b] < none + dense:
            amount = 24 + int(torch.randint(N - 24, (), generator=generator)) if N > 25 else N
            keep[b, score[b].topk(min(amount, N)).indices] = True
            continue
        things, ground = (layer[b] > 0).nonzero()[:, 0], (layer[b] == 0).nonzero()[:, 0]
        handles = things if len(things) else ground
        for _ in range(1 + int(torch.randint(2, (), generator=generator))):
            handle = handles[int(torch.randint(len(handles), (), generator=generator))]
            mates = (layer[b] == layer[b, handle]) & (born[b] == born[b, handle])
            near = (place[b] - place[b, handle]).norm(dim=-1)
            count = int(torch.randint(1, 7, (), generator=generator)) if rand(1).item() < .6 else 1
            chosen = near.masked_fill(~mates, 1e6).topk(min(count, int(mates.sum())), largest=False).indices
            keep[b, chosen] = True
            if rand(1).item() < .3:                                                                 # begun late, or let go
                cut = torch.randint(1, T, (), generator=generator)
                if rand(1).item() < .5:
                    start[b, chosen] = start[b, chosen].maximum(cut)
                else:
                    stop[b, chosen] = stop[b, chosen].minimum(cut)
        if len(ground) and rand(1).item() < .4:
            count = int(torch.randint(1, 9, (), generator=generator))
            keep[b, ground[torch.randperm(len(ground), generator=generator)[:count]]] = True
    spoken = torch.ones(B, T, dtype=torch.bool)
    if masking:
        F = 1 + (T - 1) // 4
        latent = (torch.arange(T) + 3) // 4
        for b in range(B):
            if torch.rand((), generator=generator) < masking and F > 3:
                length = 1 + int(torch.randint(max(1, F // 3), (), generator=generator))
                first = 1 + int(torch.randint(F - length, (), generator=generator))
                spoken[b, (latent >= first) & (latent < first + length)] = False
    time = torch.arange(T)[None, :, None]
    lit = keep[:, None] & spoken[..., None] & (time >= start[:, None]) & (time < stop[:, None])         # [B, T, N]
    lit = send(lit, device) & tracks.visible
    used = lit.any(dim=1).sum(1).max().clamp_min(1)
    order = lit.any(dim=1).float().argsort(dim=1, descending=True)[:, :used]                        # the drawn ones first
    pick = lambda z: torch.gather(z, 2, order[:, None].expand(-1, T, -1))
    xy = torch.gather(tracks.xy, 2, order[:, None, :, None].expand(-1, T, -1, 2))
    origin = torch.gather(tracks.origins(), 1, order[..., None].expand(-1, -1, 2))
    return replace(tracks, xy=xy, visible=pick(lit), ids=torch.gather(tracks.ids, 1, order), origin=origin)


def shades(count: int, generator: torch.Generator, device) -> Callable[[Tensor], Tensor]:
    """Puts so many pictures [n, 3, H, W] in [0, 1] in other colours each: channels changed about, made negative, paler."""
    rand = lambda *size: torch.rand(*size, generator=generator).to(device)
    order = rand(count, 3).argsort(dim=1)
    negative, gain = rand(count, 3, 1, 1) < .5, .5 + .5 * rand(count, 3, 1, 1)
    lift = (1 - gain) * rand(count, 3, 1, 1)

    def colour(x: Tensor) -> Tensor:
        x = x.gather(1, order[:, :, None, None].expand_as(x))
        return torch.where(negative, 1 - x, x) * gain + lift

    return colour


def about(pictures: Tensor, generator: torch.Generator) -> Callable[[Tensor, str], Tensor]:
    """Turns pictures [n, C, H, W] about, each in its own way, and cuts a part out of half of them: sample(x, mode), float,
    for any x of their size, so that what belongs together stays so."""
    n, (height, width), device = len(pictures), pictures.shape[-2:], pictures.device
    rand = lambda *size: torch.rand(*size, generator=generator).to(device)
    size = torch.where(rand(n, 1, 1) < .5, .7 + .3 * rand(n, 1, 1), torch.ones((), device=device))
    axes = torch.where(rand(n, 2, 1) < .5, 1., -1.) * torch.eye(2, device=device)
    axes = torch.where(rand(n, 1, 1) < .5, axes, axes.flip(1)) if height == width else axes
    where = torch.cat([size * axes, (1 - size) * (2 * rand(n, 2, 1) - 1)], dim=2)                       # [n, 2, 3]
    grid = F.affine_grid(where, [n, 1, height, width], align_corners=False)
    return lambda x, mode: F.grid_sample(x.float(), grid, mode=mode, padding_mode="border", align_corners=False)
