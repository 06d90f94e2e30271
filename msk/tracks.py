"""Point tracks: where each point is in every pixel frame, whether it can be seen, and which number it carries."""
from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import Geometry
from .host import send

MOST = 4096                         # tracks in one set


@dataclass(frozen=True)
class Tracks:
    """N tracks over T pixel frames.

    xy [B, T, N, 2] float, pixels, x then y, origin top left; visible [B, T, N] bool; ids [B, N] long.
    A hidden track is a track that says nothing: occluded, out of the frame, not yet drawn or let go.
    origin [B, N, 2], where it is known: where in the given picture lies what the point holds (not a number: nowhere).
    """
    xy: Tensor
    visible: Tensor
    ids: Tensor
    origin: Tensor | None = None

    # making

    @staticmethod
    def empty(batch: int = 1, frames: int = 1, device=None) -> Tracks:
        """Nothing is asked."""
        return Tracks(torch.zeros(batch, frames, 0, 2, device=device),
                      torch.zeros(batch, frames, 0, dtype=torch.bool, device=device),
                      torch.zeros(batch, 0, dtype=torch.long, device=device))

    @staticmethod
    def of(xy, visible=None, ids=None) -> Tracks:
        """Anything array-like: xy [(B,) T, N, 2], visible [(B,) T, N] (default: where xy is finite), ids [(B,) N]
        (default: 0, 1, 2, ...)."""
        xy = torch.as_tensor(xy, dtype=torch.float32)
        if xy.ndim not in (3, 4) or xy.shape[-1] != 2:
            raise ValueError(f"track positions came as {list(xy.shape)}: give [T, N, 2] or [B, T, N, 2], x then y")
        xy = xy if xy.ndim == 4 else xy[None]
        b, t, n, _ = xy.shape
        visible = xy.isfinite().all(-1) if visible is None else torch.as_tensor(visible).to(xy.device)
        ids = torch.arange(n, device=xy.device) if ids is None else torch.as_tensor(ids, dtype=torch.long).to(xy.device)
        visible = visible if visible.dtype == torch.bool else visible > 0.5
        visible, ids = visible if visible.ndim == 3 else visible[None], ids if ids.ndim == 2 else ids[None]
        return Tracks(xy, visible, ids.expand(b, -1)).check()

    @staticmethod
    def grid(geometry: Geometry, spacing: float, frames: int, batch: int = 1) -> Tracks:
        """Points that stay where they are, `spacing` pixels apart over the whole frame: a still camera, a pinned scene."""
        def line(size: int) -> Tensor:
            count = max(1, int(size // spacing))
            return (torch.arange(count) + 0.5) * size / count

        y, x = torch.meshgrid(line(geometry.height), line(geometry.width), indexing="ij")
        points = torch.stack([x, y], dim=-1).flatten(0, 1)                          # [N, 2]
        return Tracks.of(points.expand(batch, frames, -1, -1).clone())

    @staticmethod
    def drag(path, frames: int, spacing: float = 0.0, size: int = 1) -> Tracks:
        """A handle that follows `path` [K, 2], pixels, spread evenly over the frames.

        size > 1: a square of size x size points `spacing` pixels apart, moving as one.
        """
        path = torch.as_tensor(path, dtype=torch.float32)
        if path.ndim != 2 or path.shape[-1] != 2 or not len(path):
            raise ValueError(f"a path came as {list(path.shape)}: give [K, 2] with K of 1 or more, x then y")
        offset = (torch.arange(size) - (size - 1) / 2) * spacing
        y, x = torch.meshgrid(offset, offset, indexing="ij")
        points = path[:, None] + torch.stack([x, y], dim=-1).flatten(0, 1)          # [K, size * size, 2]
        return Tracks.of(points).resample(frames)

    # changing

    def resample(self, frames: int) -> Tracks:
        """The same paths in another number of frames; a point between two frames is visible if both are."""
        at = torch.linspace(0, self.xy.shape[1] - 1, frames, device=self.xy.device, dtype=torch.float64)
        before = at.floor().long()
        after = (before + 1).clamp(max=self.xy.shape[1] - 1)
        part = (at - before).to(self.xy)[:, None, None]
        exact = (part == 0).squeeze(-1)
        xy = torch.where(part == 0, self.xy[:, before], torch.lerp(self.xy[:, before], self.xy[:, after], part))
        return replace(self, xy=xy, visible=self.visible[:, before] & (self.visible[:, after] | exact))

    def hide(self, where) -> Tracks:
        """Hide by a mask (broadcast to [B, T, N], True hides) or in a range of frames (slice or range)."""
        if isinstance(where, (slice, range)):
            index = torch.zeros(self.xy.shape[1], dtype=torch.bool, device=self.xy.device)
            index[where if isinstance(where, slice) else list(where)] = True
            where = index[:, None]
        return replace(self, visible=self.visible & ~torch.as_tensor(where, device=self.visible.device))

    def frames(self, start: int, stop: int) -> Tracks:
        """Frames [start, stop)."""
        return replace(self, xy=self.xy[:, start:stop], visible=self.visible[:, start:stop])

    def when(self, frames: list[int]) -> Tracks:
        """Some of its frames alone."""
        return replace(self, xy=self.xy[:, frames], visible=self.visible[:, frames])

    def concat(self, *others: Tracks) -> Tracks:
        """More tracks over the same frames. Ids are kept: see to it that they differ."""
        for other in others:
            if other.xy.shape[:2] != self.xy.shape[:2]:
                raise ValueError(f"tracks over {list(other.xy.shape[:2])} [B, T] cannot join tracks over "
                                 f"{list(self.xy.shape[:2])}: resample them first")
        sets = (self, *others)
        known = torch.cat([s.origins() for s in sets], 1) if any(s.origin is not None for s in sets) else None
        return Tracks(torch.cat([s.xy for s in sets], 2), torch.cat([s.visible for s in sets], 2),
                      torch.cat([s.ids for s in sets], 1), known)

    def scaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tracks:
        """From one picture size to another, both (height, width) in pixels."""
        (h0, w0), (h1, w1) = from_size, to_size
        ratio = torch.tensor([w1 / w0, h1 / h0], device=self.xy.device, dtype=self.xy.dtype)
        return replace(self, xy=self.xy * ratio, origin=None if self.origin is None else self.origin * ratio)

    def with_ids(self, ids: Tensor) -> Tracks:
        return replace(self, ids=ids)

    def to(self, device) -> Tracks:
        return Tracks(send(self.xy, device), send(self.visible, device), send(self.ids, device),
                      None if self.origin is None else send(self.origin, device))

    def origins(self) -> Tensor:
        """[B, N, 2]: `origin`, or by default the place in frame 0 of those seen there; not a number for the others."""
        if self.origin is not None:
            return self.origin
        if not self.xy.shape[1]:
            return self.xy.new_full((len(self.xy), self.xy.shape[2], 2), torch.nan)
        return torch.where(self.visible[:, 0, :, None], self.xy[:, 0], torch.nan)

    def check(self, frames: int | None = None, batch: int | None = None, most: int = MOST) -> Tracks:
        """Itself, if it can be used. Raises ValueError with what came, what was wanted and what to do."""
        if self.xy.ndim != 4 or self.xy.shape[-1] != 2:
            raise ValueError(f"track positions came as {list(self.xy.shape)}: give [B, T, N, 2], x then y")
        b, t, n, _ = self.xy.shape
        if tuple(self.visible.shape) != (b, t, n) or self.visible.dtype != torch.bool:
            raise ValueError(f"visibility came as {list(self.visible.shape)} {self.visible.dtype}, but these positions "
                             f"ask for {[b, t, n]} torch.bool")
        if tuple(self.ids.shape) != (b, n):
            raise ValueError(f"ids came as {list(self.ids.shape)}, but {n} tracks in {b} clips ask for {[b, n]}")
        if self.origin is not None and tuple(self.origin.shape) != (b, n, 2):
            raise ValueError(f"origins came as {list(self.origin.shape)}, but {n} tracks in {b} clips ask for {[b, n, 2]}")
        if n > most:
            raise ValueError(f"{n} tracks are more than the {most} that one set may hold: thin them out")
        if frames is not None and t != frames:
            raise ValueError(f"tracks over {t} pixel frames came where {frames} were wanted: resample({frames}) them")
        if batch is not None and b != batch:
            raise ValueError(f"tracks for {b} clips came where {batch} were wanted")
        bad = self.visible & ~self.xy.isfinite().all(-1)
        if bad.any():
            clip, frame, track = bad.nonzero()[0].tolist()
            raise ValueError(f"track {track} of clip {clip} is visible in frame {frame} but its position is not a number: "
                             "give it a position or hide it there")
        return self

    # files

    def save(self, path) -> None:
        """One clip to .npz (tracks [T, N, 2], visibility [T, N], ids [N]) or .json (the same, as lists)."""
        path = Path(path)
        if len(self.xy) != 1:
            raise ValueError(f"a track file holds one clip, but there are {len(self.xy)}: save them one by one")
        arrays = {"tracks": self.xy[0].cpu().numpy(), "visibility": self.visible[0].cpu().numpy(),
                  "ids": self.ids[0].cpu().numpy()}
        if path.suffix == ".npz":
            with open(path, "wb") as file:
                np.savez_compressed(file, **arrays)
        elif path.suffix == ".json":
            finite = np.where(np.isfinite(arrays["tracks"]), arrays["tracks"].astype(float).round(3), None)
            path.write_text(json.dumps({"tracks": finite.tolist(), "visibility": arrays["visibility"].tolist(),
                                        "ids": arrays["ids"].tolist()}))
        else:
            raise ValueError(f"{path.name} is no track file that can be written: use .npz or .json")

    @staticmethod
    def load(path) -> Tracks:
        """One clip from .npz, .json, or the .pth of ATI's track editor. Never runs code from the file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no track file at {path}")
        try:
            if path.suffix == ".npz":
                return _from_arrays(_npz(path))
            if path.suffix == ".json":
                return _from_arrays(json.loads(path.read_text()))
            if path.suffix in (".pth", ".pt"):
                return _from_ati(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(f"{path.name} could not be read as tracks ({error}): wanted positions [T, N, 2] in pixels as "
                             ".npz or .json, or ATI's .pth") from error
        raise ValueError(f"{path.name} is no track file: use .npz, .json or ATI's .pth")


def _npz(file) -> dict:
    with np.load(file, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _from_arrays(data: dict) -> Tracks:
    if not isinstance(data, dict) or "tracks" not in data:
        raise ValueError(f"no array called tracks; it holds {', '.join(map(str, data)) or 'nothing'}")
    xy = np.array(data["tracks"], dtype=np.float32)
    visible = data.get("visibility", data.get("visible"))
    visible = None if visible is None else np.squeeze(np.asarray(visible))
    return Tracks.of(xy, visible if visible is None else visible.reshape(xy.shape[:-1]), data.get("ids"))


def _from_ati(data) -> Tracks:
    """ATI: an .npz in a bytes object, its one array [N, T, 1, 3] of (x, y, seen), eight times the pixels."""
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"a {type(data).__name__} where ATI keeps bytes")
    arrays = _npz(io.BytesIO(data))
    points = next(iter(arrays.values())).astype(np.float32)
    points = points.reshape(points.shape[0], points.shape[1], 3) / np.float32([8, 8, 8])
    return Tracks.of(points[..., :2].swapaxes(0, 1), points[..., 2].swapaxes(0, 1) > 0.5)
