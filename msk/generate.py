"""One clip from a picture, a prompt and tracks: chunk after chunk by the student, or all at once by the teacher."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .kit import Kit
from .motion import draw_ids
from .picture import middle
from .sample import options, sample
from .stream import Stream
from .tracks import Tracks


def by_stream(kit: Kit, prompt: str, picture, tracks: Tracks | None, frames: int, seed: int = 0) -> Iterator[Tensor]:
    """Yield chunks [T, 3, H, W] in [0, 1] until there are `frames`; tracks in the kit's pixels, of any length."""
    stream, made = Stream(kit, prompt, picture, seed=seed), 0
    while made < frames:
        wanted = stream.frames_wanted
        new = stream.step(covering(tracks, made, made + wanted))[0].float().cpu()
        yield new[:frames - made]
        made += wanted


def by_teacher(kit: Kit, prompt: str, picture, tracks: Tracks | None, frames: int, seed: int = 0,
               text_scale: float | None = None, motion_scale: float | None = None) -> Iterator[Tensor]:
    """Yield the clip in pieces [T, 3, H, W], all of it sampled before; scales default to the preset's."""
    (h, w), how = kit.geometry.latent_size, options(kit.preset)
    how |= {name: scale for name, scale in (("text_scale", text_scale), ("motion_scale", motion_scale)) if scale is not None}
    length = 1 + -(-(frames - 1) // kit.geometry.time_stride)           # latent frames, rounded up
    tracks = covering(tracks, 0, kit.geometry.pixel_frames(length))
    moved = kit.moved(tracks, picture)
    cond = kit.condition([prompt], tracks, picture, moved)
    noise = torch.randn(1, length, kit.dit.config.latent_channels, h, w, generator=torch.Generator().manual_seed(seed))
    for step in tqdm(sample(kit.dit, noise.to(kit.device), cond, **how), "teacher", kit.preset.sample_steps, leave=False):
        latents = step.x0
    left = frames
    for made in kit.decode(latents, moved=moved, prompts=[prompt]):
        yield made[0, :left].float().cpu()
        left -= made.shape[1]


def read_tracks(path) -> Tracks:
    """A track file with at least one track over at least one frame."""
    tracks = Tracks.load(path)
    _, frames, count, _ = tracks.xy.shape
    if not (frames and count):
        raise ValueError(f"{path} holds {count} tracks over {frames} frames: draw at least one, or ask without tracks")
    return tracks


def said_size(path) -> tuple[int, int] | None:
    """(width, height) of the picture that a track file says it was made on (WanTrack's do), or None."""
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            said = {name: data[name].item() for name in ("width", "height") if name in data.files and data[name].size == 1}
    else:
        said = json.loads(path.read_text()) if path.suffix == ".json" else {}
    width, height = said.get("width"), said.get("height")
    return (int(width), int(height)) if width and height else None


def onto_model(tracks: Tracks, size: tuple[int, int], kit: Kit, seed: int = 0) -> Tracks:
    """Tracks in the pixels of a picture of size (width, height), through the crop that `kit.picture` makes; fresh ids."""
    (width, height), g = size, kit.geometry
    left, top, wide, tall = middle(width, height, g)
    corner = torch.tensor([left, top])
    ids = draw_ids(1, tracks.ids.shape[1], kit.preset.tracks.max_id, torch.Generator().manual_seed(seed))
    origin = None if tracks.origin is None else tracks.origin - corner
    return replace(tracks, xy=tracks.xy - corner, ids=ids, origin=origin).scaled((tall, wide), (g.height, g.width))


def covering(tracks: Tracks | None, start: int, stop: int) -> Tracks | None:
    """Frames [start, stop) of tracks; after their end they say nothing."""
    if tracks is None:
        return None
    length = tracks.xy.shape[1]
    index = [min(k, length - 1) for k in range(start, stop)]
    shown = replace(tracks, xy=tracks.xy[:, index], visible=tracks.visible[:, index])
    return shown.hide(slice(max(0, length - start), None))


def digest(tracks: Tracks | None) -> str:
    """A short name for these very tracks, for the file's metadata."""
    if tracks is None:
        return ""
    return hashlib.sha256(tracks.xy.numpy().tobytes() + tracks.visible.numpy().tobytes()).hexdigest()[:16]
