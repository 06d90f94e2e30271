"""One player's stream: points that follow pointers, chunks made just in time, frames played at an even pace, all recorded.

Two threads. The engine makes chunks: it waits as long as playback allows, so that a chunk knows the newest motion. The
player hands out frames when they are due (`ahead` seconds early, for the journey) and records them. Callers only change
what stands under the lock, so no call waits for the model.

The session knows an environment, not a model: `open_stream(prompt, image, seed)` gives something with `frames_wanted`,
`step(tracks) -> frames [1, T, 3, H, W]`, `settle()` and `reset()`.
"""
from __future__ import annotations

import base64
import io
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from ..picture import fitted, read_picture
from ..tracks import Tracks
from .follow import Follow, Follower
from .protocol import MAX_POINTS, Mark, ProtocolError, Sample
from .record import Take

log = logging.getLogger("msk.live")
UNDO_DEPTH = 100
NEAR = 0.15         # of the picture's width: so close to a point, a thing is taken to move with it


@dataclass
class Point:
    id: int                         # the page's number
    track_id: int                   # the model's number, the same for as long as the point lives
    pinned: bool
    follower: Follower
    home: complex | None            # where it was put on the picture; None: it was added to a running stream
    origin: complex                 # where in the picture lies what it holds
    grabbed_at: complex = 0j
    leaving: bool = False           # let go: says no more once it has arrived


@dataclass(frozen=True)
class Frame:
    picture: np.ndarray             # [H, W, 3] uint8
    index: int                      # since the start of the take
    chunk: int
    marks: list[Mark]
    echo: float | None              # newest pointer sample the chunk knows of, in the page's milliseconds
    due: float                      # seconds of the session's clock
    still: bool = False


@dataclass
class Clock:
    """The page's milliseconds as the server's seconds: the quickest message so far tells the difference."""
    offset: float | None = None
    recent: deque = field(default_factory=lambda: deque(maxlen=200))

    def here(self, t: float, now: float) -> float:
        self.recent.append(now - t / 1000)
        self.offset = min(self.recent)
        return min(t / 1000 + self.offset, now)


class Session:
    def __init__(self, open_stream: Callable, geometry, *, name: str = "", max_id: int = 16384,
                 folder: str | Path | None = None, follow: Follow | None = None, fps: float | None = None,
                 ahead: float = 0.12, idle_after: float = 900.0):
        self.open_stream, self.geometry, self.name, self.max_id = open_stream, geometry, name, max_id
        self.folder = Path(folder) if folder else None
        self.follow, self.fps, self.ahead, self.idle_after = follow or Follow(), fps or geometry.fps, ahead, idle_after
        self.on_frame: Callable[[Frame], None] | None = None
        self.on_event: Callable[[dict], None] | None = None
        self.state = "empty"        # empty, opening, ready, playing, paused, ended, failed
        self.image: Image.Image | None = None
        self.prompt, self.seed = "", 0
        self.points: dict[int, Point] = {}
        self._left: deque[tuple[complex, complex]] = deque(maxlen=MAX_POINTS)   # place and origin of points that have gone
        self.take: Take | None = None
        self._changed = threading.Condition(threading.RLock())
        self._undo: deque[tuple] = deque(maxlen=UNDO_DEPTH)
        self._stream = None
        self._want_open = self._want_reset = self._take_ends = self._closed = False
        self._era = 0                                   # what was made in an older era is thrown away
        self._queue: deque[Frame] = deque()
        self._next_due = 0.0                            # when the next frame to be made should be seen
        self._paused_at = self._touched = time.monotonic()
        self._chunk = self._index = 0
        self._making: deque[float] = deque(maxlen=8)    # seconds from asking to frames, of the latest chunks
        self._cycle: deque[float] = deque(maxlen=8)     # the same with the clean pass
        self._echo: float | None = None
        self._clock = Clock()
        self._random = random.Random(0)
        self._threads = [threading.Thread(target=run, name=f"msk-{run.__name__.strip('_')}", daemon=True)
                         for run in (self._engine, self._player)]
        for thread in self._threads:
            thread.start()

    # -- what a page, a notebook or a test may ask for ---------------------------------------------------------------

    def open(self, image, prompt: str = "", seed: int = 0) -> None:
        """Take this picture (anything `read_picture` reads) and wait for `start`; points and the running take end."""
        picture = fitted(read_picture(image), self.geometry)
        with self._changed:
            self._end_take()
            self.image, self.prompt, self.seed = picture, prompt, seed
            self._random = random.Random(seed)
            self.points.clear()
            self._left.clear()
            self._undo.clear()
            self._want_open, self.state = True, "opening"
            self._tell()
        self._show_still()

    def start(self) -> None:
        """Begin a take; go on if it is paused; begin again from the picture if it has ended."""
        with self._changed:
            if self.state == "paused":
                return self.resume()
            if self.state in ("ended", "failed"):
                self.reset()
            if self.image is None:
                raise ProtocolError("there is no picture yet: choose one, then start")
            if self.state in ("opening", "ready"):
                self.state, self._next_due, self._touched = "playing", 0.0, time.monotonic()
                self._tell()

    def stop(self) -> None:
        """End the take and put it on disk; the last frame stays, `start` begins anew."""
        with self._changed:
            if self.state in ("playing", "paused"):
                self._end_take()
                self.state = "ended"
                self._tell()

    def pause(self) -> None:
        with self._changed:
            if self.state == "playing":
                self.state, self._paused_at = "paused", time.monotonic()
                self._tell()

    def resume(self) -> None:
        with self._changed:
            if self.state == "paused":
                self._delay(time.monotonic() - self._paused_at)
                self.state, self._touched = "playing", time.monotonic()
                self._tell()

    def reset(self) -> None:
        """Back to the picture: points return to where they were put on it, those added later are gone."""
        with self._changed:
            if self.image is None:
                return
            self._end_take()
            now = time.monotonic()
            self.points = {i: p for i, p in self.points.items() if p.home is not None}
            for point in self.points.values():
                point.follower.rest_at(point.home, now)
                point.leaving = False
            self._left.clear()
            self._undo = deque((u for u in self._undo if u[0] != "move" and u[1].home is not None), maxlen=UNDO_DEPTH)
            self._want_reset, self.state = True, "opening"
            self._tell()
        self._show_still()

    def add(self, id: int, x: float, y: float, kind: str = "live", t: float | None = None) -> None:
        """A new point at (x, y), shares of the picture."""
        with self._changed:
            if id in self.points:
                raise ProtocolError(f"there is a point {id} already: give a new one another number")
            if len(self.points) >= MAX_POINTS:
                raise ProtocolError(f"there are {MAX_POINTS} points already: remove one first")
            if self.image is None:
                raise ProtocolError("there is no picture yet: choose one, then add points")
            now, place = self._now(t), self._place(x, y)
            taken = {p.track_id for p in self.points.values()}
            track_id = next(i for i in iter(lambda: self._random.randrange(self.max_id), None) if i not in taken)
            on_picture = self.state in ("opening", "ready")
            point = Point(id, track_id, kind == "pin", Follower(place, now, self.follow), place if on_picture else None,
                          place if on_picture else self._origin(place))
            self.points[id] = point
            self._undo.append(("add", point))
            self._tell()

    def grab(self, id: int, t: float | None = None) -> None:
        with self._changed:
            point, now = self._point(id), self._now(t)
            point.grabbed_at, point.leaving, point.pinned = point.follower.target, False, False
            point.follower.put(point.follower.target, now)
            point.follower.held = True

    def move(self, samples: list[Sample]) -> None:
        """Pointer samples, oldest first; those of points that are gone are passed over."""
        with self._changed:
            for sample in samples:
                point = self.points.get(sample.id)
                if point is not None and not point.pinned:
                    point.follower.put(self._place(sample.x, sample.y), self._now(sample.t))

    def release(self, id: int, keep: bool = True, t: float | None = None) -> None:
        """The pointer lets go. The point holds its place (keep), or says no more once it has got there."""
        with self._changed:
            point = self.points.get(id)
            if point is None:
                return
            point.follower.held = False
            if abs(point.follower.target - point.grabbed_at) > 0.5:
                self._undo.append(("move", point, point.grabbed_at))
            point.leaving = not keep
            if not keep and self.state not in ("playing", "paused"):
                self._drop(id)
            self._tell()

    def pin(self, id: int, on: bool = True) -> None:
        """A pinned point stays where it is."""
        with self._changed:
            point = self._point(id)
            if point.pinned != on:
                self._undo.append(("pin", point, point.pinned))
                self._set_pinned(point, on)
                self._tell()

    def remove(self, id: int) -> None:
        with self._changed:
            point = self._drop(id)
            if point is not None:
                self._undo.append(("remove", point))
                self._tell()

    def undo(self) -> None:
        """Take back the last add, remove, pin or drag: what was dragged goes back to where it came from."""
        with self._changed:
            while self._undo:
                deed, point, *before = self._undo.pop()
                there = self.points.get(point.id) is point
                if deed == "remove" and point.id not in self.points and len(self.points) < MAX_POINTS:
                    self.points[point.id] = point
                elif deed == "add" and there:
                    self._drop(point.id)
                elif deed == "pin" and there:
                    self._set_pinned(point, before[0])
                elif deed == "move" and there:
                    point.follower.held = False
                    point.follower.put(before[0], time.monotonic())
                else:
                    continue                        # the point has gone in the meantime: look further back
                break
            self._tell()

    def hear(self, message: dict) -> None:
        """One message of the protocol (see protocol.py) that is about the stream."""
        kind = message["type"]
        with self._changed:
            self._touched = time.monotonic()
            if kind == "pointer":
                self.move(message["samples"])
            elif kind in ("add", "grab", "release", "pin", "remove"):
                getattr(self, kind)(**{k: v for k, v in message.items() if k != "type"})
            elif kind in ("start", "stop", "pause", "resume", "reset", "undo"):
                getattr(self, kind)()
            else:
                raise ProtocolError(f"a session does nothing with \"{kind}\"")

    def describe(self) -> dict:
        """The `state` message: all a page needs to draw itself."""
        with self._changed:
            return {"type": "state", "state": self.state, "prompt": self.prompt, "seed": self.seed, "undo": len(self._undo),
                    "frames": self._index,
                    "points": [{"id": p.id, "kind": "pin" if p.pinned else "live", "leaving": p.leaving,
                                **dict(zip("xy", self._share(p.follower.target)))} for p in self.points.values()]}

    def export(self, path: str | Path) -> Path:
        """The latest take as mp4 at `path`; it may be running."""
        if self.take is None:
            raise ProtocolError("nothing has been made yet: start the stream, then export")
        try:
            return self.take.export(path)
        except ValueError as error:
            raise ProtocolError(str(error)) from None

    def still(self) -> Frame | None:
        """The picture before anything was made of it."""
        if self.image is None:
            return None
        return Frame(np.asarray(self.image), 0, 0, self._marks(), None, time.monotonic(), still=True)

    def lose_link(self) -> None:
        """The page has gone: hold everything, and let no pointer drag on."""
        with self._changed:
            self.on_frame = self.on_event = None
            self.pause()
            self._clock = Clock()
            for point in self.points.values():
                point.follower.held = False

    def close(self, wait: float = 10.0) -> None:
        """Put the take on disk and end both threads."""
        with self._changed:
            self._end_take()
            self._closed = True
            self.on_frame = self.on_event = None
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(wait)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _now(self, t: float | None) -> float:
        now = time.monotonic()
        if t is None:
            return now
        self._echo = t if self._echo is None else max(self._echo, t)
        return self._clock.here(t, now)

    def _place(self, x: float, y: float) -> complex:
        """Shares of the picture -> pixels, inside it."""
        width, height = self.geometry.width, self.geometry.height
        return complex(min(max(x * width, 0.0), width - 1e-3), min(max(y * height, 0.0), height - 1e-3))

    def _share(self, place: complex) -> tuple[float, float]:
        return place.real / self.geometry.width, place.imag / self.geometry.height

    def _point(self, id: int) -> Point:
        if id not in self.points:
            raise ProtocolError(f"there is no point {id}: it was removed, or never added")
        return self.points[id]

    def _origin(self, place: complex) -> complex:
        """Where in the picture lies what is now seen at `place`: things move with the points on them, also with those that
        have gone; what no point is near to has not moved."""
        known = [(p.follower.at, p.origin) for p in self.points.values()] + list(self._left)
        nearest = min(known, key=lambda k: abs(k[0] - place), default=(place, place))
        if abs(nearest[0] - place) > NEAR * self.geometry.width:
            return place
        if nearest in self._left:                       # taken up again: it will not stay there
            self._left.remove(nearest)
        return place - (nearest[0] - nearest[1])

    def _drop(self, id: int) -> Point | None:
        point = self.points.pop(id, None)
        if point is not None:
            self._left.append((point.follower.at, point.origin))
        return point

    def _set_pinned(self, point: Point, on: bool) -> None:
        point.pinned = on
        if on:
            point.follower.held = False
            point.follower.rest_at(point.follower.at, time.monotonic())

    def _marks(self) -> list[Mark]:
        return [Mark(p.id, p.pinned, *self._share(p.follower.at)) for p in self.points.values()]

    def _tell(self) -> None:
        """Wake the threads, tell the page."""
        self._changed.notify_all()
        self._send(self.describe())

    def _send(self, event: dict) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _show_still(self) -> None:
        frame = self.still()
        if self.on_frame is not None and frame is not None:
            self.on_frame(frame)

    def _delay(self, seconds: float) -> None:
        self._queue = deque(replace(f, due=f.due + seconds) for f in self._queue)
        self._next_due += seconds

    def _end_take(self) -> None:
        """Whatever is on its way belongs to the past; the recording will be closed, its frames are kept."""
        self._era += 1
        self._queue.clear()
        self._chunk = self._index = 0
        self._next_due = 0.0
        self._take_ends = True
        self._changed.notify_all()

    # -- the engine --------------------------------------------------------------------------------------------------

    def _engine(self) -> None:
        torch.set_num_threads(torch.get_num_threads())      # OpenMP counts per calling thread
        while True:
            with self._changed:
                while (task := self._task()) is None:
                    self._changed.wait(self._patience())
            if task == "close":
                self._stream = None
                return
            try:
                getattr(self, f"_{task}")()
            except Exception as error:
                log.exception("the engine stopped")
                with self._changed:
                    self._end_take()
                    self.state, self._stream = "failed", None
                    self._send({"type": "error", "message": f"the stream stopped: {error} - press Reset to begin again"})
                    self._tell()

    def _task(self) -> str | None:
        if self._take_ends:
            return "close_take"
        if self._closed:
            return "close"
        if self._want_open or self._want_reset:
            return "open_picture"
        if self.state == "playing":
            if time.monotonic() - self._touched > self.idle_after:
                self._send({"type": "note", "message": "nobody has touched the stream for a while, so it rests: "
                                                       "press Space to go on"})
                self.pause()
            elif self._patience() <= 0:
                return "make_chunk"
        return None

    def _patience(self) -> float | None:
        """Seconds the next chunk can still wait for news of the pointer."""
        if self.state != "playing":
            return None
        slow = sorted(self._making)[-2:]                # of eight chunks, one may be slower than was waited for
        need = 1.1 * slow[0] + 0.03 if slow else 1e9
        return max(0.0, self._next_due - need - time.monotonic())

    def _close_take(self) -> None:
        with self._changed:
            self._take_ends, take = False, self.take
        if take is not None:
            try:
                take.close()
            except Exception as error:                  # a full disk must not end the session
                log.exception("closing a take")
                self._send({"type": "error", "message": f"the recording could not be finished: {error}"})

    def _open_picture(self) -> None:
        with self._changed:
            fresh, self._want_open, self._want_reset = self._want_open, False, False
            image, prompt, seed, era = self.image, self.prompt, self.seed, self._era
        if fresh or self._stream is None:
            self._stream = None
            self._stream = self.open_stream(prompt, image, seed)
        else:
            self._stream.reset(seed=seed)
        with self._changed:
            if era == self._era and self.state == "opening":
                self.state = "ready"
                self._tell()

    def _tracks(self, frames: int, first: bool, now: float) -> tuple[Tracks | None, list[list[Mark]]]:
        """What the model is asked for in the next frames, and the same for the page, frame by frame."""
        points, paths = list(self.points.values()), []
        for point in points:
            if point.pinned:
                paths.append([point.follower.at] * frames)
            else:
                paths.append(point.follower.path(frames, self.geometry.width, now, includes_now=first))
        marks = [[Mark(p.id, p.pinned, *self._share(path[i])) for p, path in zip(points, paths)] for i in range(frames)]
        gone = [p.id for p in points if p.leaving and abs(p.follower.at - p.follower.target) < 1]
        for id in gone:
            self._drop(id)
        if gone:
            self._tell()
        if not points:
            return None, marks
        xy = torch.tensor([[[p.real, p.imag] for p in path] for path in paths]).transpose(0, 1)[None]      # [1, T, N, 2]
        origin = torch.tensor([[[p.origin.real, p.origin.imag] for p in points]])                         # [1, N, 2]
        return Tracks(xy, torch.ones(1, frames, len(points), dtype=torch.bool),
                      torch.tensor([[p.track_id for p in points]]), origin), marks

    def _make_chunk(self) -> None:
        if self._chunk == 0:
            self.take = self._new_take()
        began = time.monotonic()
        frames = self._stream.frames_wanted
        with self._changed:
            era, echo, chunk = self._era, self._echo, self._chunk
            tracks, marks = self._tracks(frames, chunk == 0, began)
        made = self._stream.step(tracks)[0]                                                                 # [T, 3, H, W]
        pictures = made.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        with self._changed:
            now = time.monotonic()
            self._making.append(now - began)
            if era != self._era:
                return
            pace = max(1 / self.fps, 1.02 * median(self._cycle or [0.0]) / frames)         # a slow model plays slowly
            due = max(self._next_due, self._paused_at if self.state == "paused" else now)
            for i, picture in enumerate(pictures):
                self._queue.append(Frame(picture, self._index + i, chunk, marks[i], echo, due + i * pace))
            self._next_due, self._chunk, self._index = due + frames * pace, chunk + 1, self._index + frames
            self._changed.notify_all()
            take = self.take
        self._stream.settle()
        self._cycle.append(time.monotonic() - began)
        if take is not None:
            ids, xy = ([], []) if tracks is None else (tracks.ids[0], tracks.xy[0].double().round(decimals=3))
            take.note({"chunk": chunk, "frames": frames, "ids": list(map(int, ids)), "xy": [row.tolist() for row in xy]})

    def _new_take(self) -> Take | None:
        if self.folder is None:
            return None
        packed = io.BytesIO()
        self.image.save(packed, "PNG")
        return Take(self.folder, self.fps, {"model": self.name, "prompt": self.prompt, "seed": self.seed,
                                            "picture": base64.b64encode(packed.getvalue()).decode()})

    # -- the player --------------------------------------------------------------------------------------------------

    def _player(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    wait = None
                    if self.state == "playing" and self._queue:
                        wait = self._queue[0].due - self.ahead - time.monotonic()
                        if wait <= 0:
                            break
                    self._changed.wait(wait)
                if self._closed:
                    return
                frame, take, tell = self._queue.popleft(), self.take, self.on_frame
                if tell is not None:
                    tell(frame)
            if take is not None:
                try:
                    take.write(frame.picture)
                except Exception as error:
                    log.exception("recording")
                    with self._changed:
                        self.take = None
                        self._send({"type": "error", "message": f"recording has stopped, the stream goes on: {error}"})
