"""Real clips: any video to frames of one geometry, and shards of such clips on disk to train from."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import video
from .config import Geometry
from .tracks import Tracks

SHARD_BYTES = 16 << 20


@dataclass(frozen=True)
class RealClip:
    """frames [T, 3, H, W] uint8, what they show, and tracks (B = 1) where somebody tracked them."""
    frames: Tensor
    caption: str = ""
    tracks: Tracks | None = None


def fit(picture: Image.Image | np.ndarray, geometry: Geometry) -> np.ndarray:
    """The largest centred crop of the geometry's shape, resized to it with antialiasing: [H, W, 3] uint8."""
    picture = (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGB")
    scale = min(picture.width / geometry.width, picture.height / geometry.height)
    w, h = geometry.width * scale, geometry.height * scale
    left, top = (picture.width - w) / 2, (picture.height - h) / 2
    size = geometry.width, geometry.height
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)))


def read(path, geometry: Geometry, frames: int | None = None, start: float = 0.0) -> Tensor:
    """A video at the geometry's size and fps, from `start` seconds on -> [T, 3, H, W] uint8.

    Frame k is the picture shown at start + k / fps. frames: exactly so many, or ValueError; None: all there are.
    """
    kept, latest, step = [], None, 1 / geometry.fps
    for seconds, picture, fps in video.pictures_of(path):
        while latest is not None and start + len(kept) * step < seconds - 1e-3 and len(kept) != frames:
            kept.append(latest)
        if len(kept) == frames:
            break
        if seconds + 1 / fps > start:
            latest, until = fit(picture, geometry), seconds + 1 / fps
    while latest is not None and len(kept) != frames and start + len(kept) * step < until - 1e-3:
        kept.append(latest)
    if not kept or (frames and len(kept) < frames):
        raise ValueError(f"{path} gives {len(kept)} frames at {geometry.fps} fps from {start:g} s on: "
                         f"wanted {frames or 'at least 1'}, start earlier or take fewer")
    return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).contiguous()


def cut(path, geometry: Geometry, frames: int, caption: str = "") -> Iterator[RealClip]:
    """A video of any length as clips of `frames` frames, one after the other; the rest at the end is dropped."""
    whole = read(path, geometry)
    for start in range(0, len(whole) - frames + 1, frames):
        yield RealClip(whole[start:start + frames].clone(), caption)


def write_shards(clips: Iterable[RealClip], folder, max_bytes: int = SHARD_BYTES) -> list[Path]:
    """Clips -> folder/clips-00000.safetensors, ... of about max_bytes each (one clip at least); earlier shards stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held, size, written = [], 0, []

    def flush() -> None:
        taken = [int(p.stem.split("-")[1]) for p in _shards(folder)]
        path = folder / f"clips-{max(taken, default=-1) + 1:05d}.safetensors"
        tensors = {}
        for k, clip in enumerate(held):
            tensors[f"{k}.frames"] = clip.frames.contiguous()
            if clip.tracks is not None:
                tensors |= {f"{k}.{name}": getattr(clip.tracks, name).contiguous() for name in ("xy", "visible", "ids")}
        part = path.with_suffix(".part.safetensors")
        save_file(tensors, part, metadata={f"{k}.caption": clip.caption for k, clip in enumerate(held)})
        os.replace(part, path)
        written.append(path)
        held.clear()

    for clip in clips:
        if clip.frames.ndim != 4 or clip.frames.shape[1] != 3 or clip.frames.dtype != torch.uint8:
            raise ValueError(f"a clip came as {clip.frames.dtype} {list(clip.frames.shape)}: wanted uint8 [T, 3, H, W]")
        if held and size + clip.frames.numel() > max_bytes:
            flush()
            size = 0
        held.append(clip)
        size += clip.frames.numel()
    if held:
        flush()
    return written


def read_shards(folder) -> Iterator[RealClip]:
    """All clips of a folder of shards, in order."""
    if not (paths := _shards(Path(folder))):
        raise FileNotFoundError(f"{folder} holds no clips-*.safetensors: write some with write_shards")
    for path in paths:
        try:
            with safe_open(path, "pt") as shard:
                names, captions = set(shard.keys()), shard.metadata() or {}
                for k in range(sum(name.endswith(".frames") for name in names)):
                    tracks = None
                    if f"{k}.xy" in names:
                        tracks = Tracks(*(shard.get_tensor(f"{k}.{name}") for name in ("xy", "visible", "ids")))
                    yield RealClip(shard.get_tensor(f"{k}.frames"), captions.get(f"{k}.caption", ""), tracks)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it and write it again") from error


def batches(folder, batch: int, seed: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless shuffled batches (frames [B, T, 3, H, W] float [0, 1], captions); the clips have one shape."""
    clips = list(read_shards(folder))
    if len({clip.frames.shape for clip in clips}) > 1:
        raise ValueError(f"the clips of {folder} have several shapes: a batch wants one, so write them with one geometry "
                         "and length")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(clips), generator=generator).tolist()
        for at in range(0, len(order), batch):
            chosen = [clips[k] for k in order[at:at + batch]]
            if len(chosen) == min(batch, len(clips)):
                yield torch.stack([clip.frames for clip in chosen]).float() / 255, [clip.caption for clip in chosen]


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("clips-*.safetensors") if re.fullmatch(r"clips-\d+", p.stem))
