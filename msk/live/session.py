"""One player's stream: points that follow pointers, chunks made just in time, frames played at an even pace, all recorded.

Two threads. The engine makes chunks: it waits as long as playback allows, so that a chunk knows the newest motion. The
player hands out frames when they are due (`ahead` seconds early, for the journey) and records them. Callers only change
what stands under the lock, so no call waits for the model.

The session knows an environment, not a model: `open_stream(prompt, image, seed)` gives something with `frames_wanted`,
`step(tracks, steps) -> frames [1, T, 3, H, W]`, `steps`, `settle()`, `reset()`, `say(prompt)`, `anchor(on)` and `memory`;
to be tuned while it plays, also `tune(...)` and `tuning`.
"""
from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from ..grip import Thing, inside
from ..host import fetch
from ..picture import fitted, middle, read_picture
from .follow import Follow, Follower
from .hold import Hold
from .pace import Pace
from .points import Deeds, Look, Point, Way
from .protocol import BEYOND, MAX_NODES, MAX_POINTS, Mark, ProtocolError, Sample
from .record import MOST_HELD, MOST_SCALE, Take, anchors, check_session, find, read_session, tunable
from .replay import packed, picture_of, tracks_of

log = logging.getLogger("msk.live")
NEAR = 0.15         # of the picture's width: so close to a point, a thing is taken to move with it
MAX_ALL_NODES = 8 * MAX_NODES       # of all paths together
MAX_HAND = 240      # pointer samples kept of each chunk
PLAIN = ("start", "stop", "pause", "resume", "reset", "undo", "redo", "anchor", "skip")
ASKED = ("add", "grid", "path", "grab", "release", "pin", "remove", "say", "camera", "look", "gaze", "grip", "rest")


@dataclass(frozen=True)
class Frame:
    picture: np.ndarray             # [H, W, 3] uint8
    index: int                      # since the start of the take
    chunk: int
    marks: list[Mark]
    echo: float | None              # newest pointer sample the chunk knows of, in the page's milliseconds
    due: float                      # seconds of the session's clock
    still: bool = False
    passed: bool = False            # it is kept, and not shown: a kept session is skipped through


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
    def __init__(self, open_stream: Callable, geometry, *, name: str = "", revision: str = "", max_id: int = 16384,
                 folder: str | Path | None = None, follow: Follow | None = None, fps: float | None = None,
                 eye: Callable | None = None, watch: Callable | None = None, ahead: float = 0.12, idle_after: float = 900.0,
                 cut: Callable | None = None, rest: bool = False, fewest: int = 1):
        self.open_stream, self.geometry, self.name, self.revision = open_stream, geometry, name, revision
        self.max_id, self.eye = max_id, eye             # eye(tracks, start) -> [F, h, w, 3] uint8: what the model is told
        self.watch = watch                              # with watch(stream, steps, at) as seen: see gaze.py
        self.folder = Path(folder) if folder else None
        self.follow, self.fps, self.ahead, self.idle_after = follow or Follow(), fps or geometry.fps, ahead, idle_after
        self.on_frame: Callable[[Frame], None] | None = None
        self.on_event: Callable[[dict], None] | None = None
        self.state = "empty"        # empty, opening, ready, playing, paused, ended, failed
        self.image: Image.Image | None = None
        self.source: Image.Image | None = None          # the picture that was given: the image is what of it is seen here
        self.prompt, self.seed = "", 0
        self.points: dict[int, Point] = {}
        self._left: deque[tuple[complex, complex]] = deque(maxlen=MAX_POINTS)   # place and origin of points that have gone
        self.hold = Hold(geometry.width, geometry.height, self._new_track, geometry.stride, cut, rest,
                         self.follow.max_step * geometry.width)
        self.take: Take | None = None
        self.heard = 0                                  # the number of this page's latest message that was dealt with
        self._changed = threading.Condition(threading.RLock())
        self._deeds, self._held = Deeds(), {}           # looks of the points that are in a hand, from before
        self._stream = None
        self._fewest, self._pace = fewest, Pace(1)      # denoising steps of a chunk, at least; and of the next one
        self._tuning, self._tuned = {}, {}              # what was asked of `tune`, and what the stream knows of it
        self._usual_tuning = {}                         # the stream as it came
        self._want_open = self._want_reset = self._closed = False
        self._writing = False                           # a frame that is shown is on its way into a take
        self._ending: deque[Take] = deque()             # takes to be closed
        self._script: deque[dict] = deque()             # chunks of a kept session that are still to be played again
        self._skips = False                             # and that as fast as can be
        self._hold_at: int | None = None                # after so many frames, pause
        self._last_points: list | None = None           # how that session ended
        self._left_off: tuple | None = None             # and what was held in the chunk of it that was played last,
        self._resuming: tuple | None = None             # which is to be held again
        self._usual = self._wish = cut is not None, rest        # what a new picture begins with: grips, rest
        self._noted: tuple | None = None                # the same, as the take knows it
        self._tune_noted: dict = {}                     # and the tuning
        self._told: str | None = None                   # what the stream's prompt is
        self._said = ""                                 # the same, as the take knows it
        self._before: Take | None = None                # the last take that has frames
        self._began = time.monotonic()                  # when this take began
        self._look = self._gaze = False
        self._anchors: list[bool] = []                  # fresh anchors before the next chunk; False: the last is taken back
        self._gazer = -1                                # the point whose look is asked for
        self._era = 0                                   # frames of an era that has ended are not shown
        self._queue: deque[Frame] = deque()
        self._next_due = 0.0                            # when the next frame to be made should be seen
        self._paused_at = self.touched = self._flown = time.monotonic()
        self._chunk = self._index = 0
        self._looked = -1                               # the chunk in which a point was last looked at
        self._making: deque[float] = deque(maxlen=8)    # seconds from asking to frames, of the latest chunks
        self._cycle: deque[float] = deque(maxlen=8)     # the same with the clean pass
        self._echo: float | None = None
        self._hand: deque[list] = deque(maxlen=MAX_HAND)
        self._written: list = []                        # the points as the take knows them
        self._clock = Clock()
        self._random = random.Random(0)
        self._threads = [threading.Thread(target=run, name=f"msk-{run.__name__.strip('_')}", daemon=True)
                         for run in (self._engine, self._player)]
        for thread in self._threads:
            thread.start()

    # -- the stream --------------------------------------------------------------------------------------------------

    def open(self, image, prompt: str = "", seed: int = 0) -> None:
        """Take this picture (anything `read_picture` reads) and wait for `start`; points and the running take end."""
        source = read_picture(image)
        picture = fitted(source, self.geometry)
        with self._changed:
            self._end_take()
            self.source = source
            self.image, self.prompt, self.seed = picture, prompt, seed
            self._random = random.Random(seed)
            self.points.clear()
            self.hold.grips, self.hold.rest = self._wish
            self._forget_play()
            self._deeds.clear()
            self._want_open, self.state = True, "opening"
            self.take = self._new_take()
            self._tell()
        self._show_still()

    def load(self, session: dict) -> None:
        """Open a kept session: `start` plays it again; where it ended, or where a hand takes over, it goes on live."""
        check_session(session)
        image, size = picture_of(session), (self.geometry.width, self.geometry.height)
        with self._changed:
            self.open(image, session["prompt"][:1000], session["seed"] % 2 ** 31)
            chunks = session["chunks"]
            first = next((c["points"] for c in chunks if "points" in c), session.get("points", []))
            self._hold_as(chunks[0] if chunks else {})
            self._tuning = {}
            self._take_points(first)
            if (session["width"], session["height"]) == size:
                self._script = deque(chunks)
                self._last_points = session.get("points")
            elif chunks:
                self._send({"type": "note", "message": f"this session was played at {session['width']}x{session['height']}: "
                                                       "its points are here, its video cannot be played again"})
            self.take = self._new_take()
            self._tell()

    def go_on_from(self, other: Session, image=None) -> int:
        """Open what another session has, which may be of another size: its picture (or `image`, the same drawn anew), prompt
        and seed, its points where they began in the picture, whose things are cut again, and its deeds. How many points are
        left out: those whose place is not seen here."""
        with self._changed, other._changed:
            chosen = zip((other.hold.grips, other.hold.rest), other._usual, self._usual)
            grips, rest = (now if now != usual else mine for now, usual, mine in chosen)
            self._wish = grips and self.hold.cut is not None, rest
            self.open(image or other.source, other.prompt, other.seed)
            theirs, mine, now, known = other._seen(), self._seen(), time.monotonic(), {}

            def here(place: complex) -> complex:
                return complex(*((a + v * b - c) / d * size for v, a, b, c, d, size in zip(
                    other._share(place), *theirs, *mine, (self.geometry.width, self.geometry.height))))

            def within(place: complex) -> complex:
                return self._place(*self._share(place))

            staying = {point: None for point in other.points.values() if not point.leaving}
            for old in staying | other._deeds.points():
                place = here(old.origin if old.home is None else old.home)
                if all(0 <= v < 1 for v in self._share(place)):
                    way = old.way and old.way.seen(lambda z: within(here(z)))
                    known[old] = point = Point(old.id, self._new_track(), old.kind, Follower(place, now, self.follow), place,
                                               place, way, looked=old.kind == "pin" and old.thing is None)
                    point.rest_at(place, now)
                    if old in staying:
                        self.points[point.id] = point
            self._deeds = from_home(other._deeds, known.get, lambda z: within(here(z)))
            self.take = self._new_take()
            self._tell()
            return len(staying) - len(self.points)

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
                self.state, self._next_due = "playing", 0.0
                self.touch()
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
                self.state = "playing"
                self.touch()
            self._tell()

    def reset(self) -> None:
        """Back to the picture: points return to where they were put on it, those added later are gone."""
        with self._changed:
            if self.image is None:
                return
            self._end_take()
            self.points = {i: p for i, p in self.points.items() if p.home is not None}
            for point in self.points.values():
                point.rest_at(point.home, time.monotonic())
                point.leaving = False
            self._forget_play()
            gone = [p for p in self._deeds.points() if self.points.get(p.id) is not p and p.home is not None]
            for point in gone:                          # one that was taken away may still be wanted back
                point.rest_at(point.home, time.monotonic())
            self._deeds = from_home(self._deeds, lambda point: point if point.home is not None else None)
            self._want_reset, self.state = True, "opening"
            self.take = self._new_take()
            self._tell()
        self._show_still()

    def say(self, prompt: str) -> None:
        """Follow another text, from the next chunk on."""
        with self._changed:
            self._take_over()
            self._deeds.did({"prompt": (self.prompt, prompt)})
            self.prompt = prompt
            self._tell()

    def skip(self) -> None:
        """Make what is left of a kept session as fast as can be, to go on where it stood."""
        with self._changed:
            if self._script:
                self.start()
                now, self._skips = time.monotonic(), bool(self._script)
                self._queue = deque(replace(f, due=now) for f in self._queue)
                self._next_due = now
                self._tell()

    def anchor(self) -> None:
        """From the next chunk on, the video is held to how it looks now."""
        with self._changed:
            if self.state not in ("playing", "paused"):
                raise ProtocolError("there is nothing to hold on to yet: start the stream first")
            self._take_over()
            self._deeds.did({"anchor": (0, 1)})
            self._anchors.append(True)
            self._send({"type": "note", "message": "a fresh anchor: the video is now held to how it looks here"})
            self._tell()

    def camera(self, **move: float) -> None:
        """Fly on by so much; see flight.py for the units."""
        with self._changed:
            self._take_over()
            taken, now = self.hold.flight.ask(move), time.monotonic()
            last = self._deeds.last().get("camera") if now - self._flown < 1 else None      # one gesture, one deed
            flown = tuple((part, v + (dict(last[1])[part] if last else 0.0)) for part, v in taken.items())
            self._deeds.did({"camera": (tuple((part, -v) for part, v in flown), flown)}, instead=last is not None)
            self._flown = now
            if last is None:
                self._tell()                            # there is one more deed to take back
            else:
                self._changed.notify_all()

    def grip(self, on: bool = True) -> None:
        """Do points take hold of the whole thing under them, or of their spot alone?"""
        with self._changed:
            if on and self.hold.cut is None:
                raise ProtocolError('things can be taken hold of with OpenCV only: pip install "msk[demo]"')
            if on != self.hold.grips:
                self._take_over()
                self._deeds.did({"grip": (not on, on)})
                self._set_grip(on)
                self._tell()

    def _set_grip(self, on: bool) -> None:
        self.hold.grips, self._wish = on, (on, self._wish[1])
        for point in self.points.values():
            self._touch(point)

    def rest(self, on: bool = True) -> None:
        """Does all that no hand moves stay as it is, or is it free to do what the prompt says?"""
        with self._changed:
            self._take_over()
            self._deeds.did({"rest": (self.hold.rest, on)})
            self._set_rest(on)
            self._tell()

    def _set_rest(self, on: bool) -> None:
        self.hold.rest, self._wish = on, (self._wish[0], on)

    def tune(self, **how: float) -> None:
        """From the next chunk on, play with other `steps` (at most the student's), `sink`, `window`, `text_scale` or
        `motion_scale`: see Stream.tune. It is kept in the session file."""
        wrong = [f"{name}={value!r:.20}" for name, value in how.items() if not tunable(name, value)]
        if wrong:
            raise ProtocolError(f"{', '.join(wrong)} cannot be set: there are steps (from 1), sink and window (from 0; whole"
                                f" numbers to {MOST_HELD}), text_scale and motion_scale (0 to {MOST_SCALE})")
        with self._changed:
            if self._stream is not None and not hasattr(self._stream, "tune") and how.keys() != {"steps"}:
                raise ProtocolError("this stream has steps to set, and nothing else")
            if hasattr(self._stream, "tuned"):
                try:                                    # of a model's own budget only its stream knows what it holds
                    self._stream.tuned(**{name: value for name, value in how.items() if name != "steps"})
                except ValueError as error:
                    raise ProtocolError(str(error)) from None
            self._take_over()
            self._tuning = self._tuning | how
            self._tell()

    @property
    def tuning(self) -> dict:
        """What `tune` sets, as the next chunk is made; empty before there is a stream."""
        with self._changed:
            stream = self._stream
            steps = {} if stream is None else {"steps": min(stream.steps, self._tuning.get("steps", stream.steps))}
            return steps | {name: self._tuning.get(name, value) for name, value in self._usual_tuning.items()}

    def look(self, on: bool = True) -> None:
        """Send what the model is told, chunk by chunk."""
        with self._changed:
            if on and self.eye is None:
                raise ProtocolError("there is no map to look at: this model is not told in maps")
            self._look = on

    def gaze(self, on: bool = True, point: int = -1) -> None:
        """Send where the model looks, chunk by chunk; with a point, also where in the sink that one's place looks."""
        with self._changed:
            if on and self.watch is None:
                raise ProtocolError("there is no attention to look at: this stream shows none")
            self._gaze, self._gazer = on, point

    # -- points ------------------------------------------------------------------------------------------------------

    def add(self, id: int, x: float, y: float, kind: str = "live", t: float | None = None) -> None:
        """A new point at (x, y), shares of the picture."""
        with self._deed([id]):
            self._check_new([id])
            self._put_new(id, self._place(x, y, 0.0), kind, self._now(t))

    def grid(self, id: int, box: tuple, spacing: float, kind: str = "live", t: float | None = None) -> None:
        """New points all over a box (left, top, right, bottom in shares), `spacing` widths apart; ids from `id` on."""
        with self._changed:
            left, top, right, bottom = (v * side for v, side in zip(box, 2 * (self.geometry.width, self.geometry.height)))
            columns, rows = (max(1, int(length / (spacing * self.geometry.width) + 1e-6))
                             for length in (right - left, bottom - top))
            ids = range(id, id + columns * rows)
            with self._deed(ids):
                self._check_new(ids)
                now = self._now(t)
                for k in ids:
                    row, column = divmod(k - id, columns)
                    self._put_new(k, complex(left + (column + 0.5) * (right - left) / columns,
                                             top + (row + 0.5) * (bottom - top) / rows), kind, now)

    def path(self, id: int, nodes: list[tuple], loop: str = "once", speed: float = 1.0, t: float | None = None) -> None:
        """A way for a point, new or old: nodes (seconds, x, y), x and y in shares of the picture."""
        with self._deed([id]):
            others = sum(len(p.way.nodes) for p in self.points.values() if p.way is not None and p.id != id)
            if others + len(nodes) > MAX_ALL_NODES:
                raise ProtocolError(f"all paths together have {others + len(nodes)} nodes: at most {MAX_ALL_NODES} are kept")
            way, now = Way(tuple((s, self._place(x, y)) for s, x, y in nodes), loop, speed), self._now(t)
            if id in self.points:
                point = self.points[id]
                again = point.way is None or not way.goes_on_as(point.way)
                point.kind, point.way, point.leaving = "path", way, False
                point.played = 0.0 if again else point.played
                if not self._runs:
                    self._settle_on_picture(point)
            else:
                self._check_new([id])
                self._put_new(id, self._place(*self._share(way.start), 0.0), "path", now)
                self.points[id].way = way

    def grab(self, ids: Iterable[int], t: float | None = None) -> None:
        with self._changed:
            self._take_over()
            now = self._now(t)
            for point in [self._point(id) for id in ids]:
                self._held.setdefault(point.id, point.look())
                point.leaving = False
                if point.thing is not None:
                    self.hold.raise_(point.thing)
                if point.way is None:
                    point.follower.put(point.follower.target, now)
                    point.follower.held = True
                if point.kind == "pin":                 # it follows the hand, and stays where it is put
                    point.follower.seen = now

    def move(self, samples: list[Sample]) -> None:
        """Pointer samples, oldest first; those of points that are gone are passed over."""
        with self._changed:
            for sample in samples:
                point = self.points.get(sample.id)
                if point is not None:
                    point.put(self._place(sample.x, sample.y), self._now(sample.t))
                    self._hand.append([round(sample.t, 1), sample.id, round(sample.x, 4), round(sample.y, 4)])

    def release(self, ids: Iterable[int], keep: bool = True, t: float | None = None) -> None:
        """The pointer lets go. Points hold their place (keep), or say no more once they have got there."""
        with self._changed:
            points = [self.points[id] for id in ids if id in self.points]
            changes = {}
            for point in points:
                point.follower.held = False
                before = self._held.pop(point.id, None)
                if before is not None and (abs(before.target - point.target) > 0.5 or before.way != point.way):
                    changes[point.id] = before, point.look()
                if not self._runs:
                    self._settle_on_picture(point)
                point.leaving = not keep and point.kind == "live"
                if point.leaving and not self._runs:
                    self._drop(point.id)
            self._deeds.did(changes)
            self._note_points()
            self._tell()

    def pin(self, ids: Iterable[int], on: bool = True) -> None:
        """Pinned points stay where they are."""
        ids = list(ids)
        with self._deed(ids):
            for point in [self._point(id) for id in ids]:
                if on and point.kind != "pin":
                    point.way = None
                    point.follower.held = False
                    point.follower.rest_at(point.follower.at, time.monotonic())
                point.kind = "pin" if on else "live" if point.kind == "pin" else point.kind
                if not on and point.thing is None:
                    self._touch(point)

    def remove(self, ids: Iterable[int]) -> None:
        ids = list(ids)
        with self._deed(ids):
            for id in ids:
                self._drop(id)

    def undo(self) -> None:
        """Take back the last deed: what was dragged goes back to where it came from."""
        self._turn(self._deeds.back)

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._turn(self._deeds.again)

    def _turn(self, deed: Callable[[], dict]) -> None:
        with self._changed:
            self._take_over()
            for what, wanted in deed().items():
                if what == "prompt":
                    self.prompt = wanted
                elif what == "camera":
                    self.hold.flight.ask(dict(wanted))
                elif what == "grip":
                    self._set_grip(wanted and self.hold.cut is not None)
                elif what == "rest":
                    self._set_rest(wanted)
                elif what == "anchor":
                    if self._anchors and self._anchors[-1] != bool(wanted):     # no chunk has been made since
                        self._anchors.pop()
                    else:
                        self._anchors.append(bool(wanted))
                    self._send({"type": "note", "message": "the anchor is fresh again" if wanted else
                                "the anchor is taken back: the video is held to what it was held to before"})
                else:
                    self._become(what, wanted)
            self._note_points()
            self._tell()

    def _become(self, id: int, look: Look | None) -> None:
        if look is None:
            self._drop(id)
            return
        point, now = look.point, time.monotonic()
        if self.points.get(id) is not point:
            if id in self.points or len(self.points) >= MAX_POINTS:
                return
            self.points[id] = point
            if point.thing is not None and point.thing not in self.hold.things:     # forgotten meanwhile: look again
                point.thing, point.looked = None, False
        point.kind, point.leaving, point.follower.held = look.kind, False, False
        if look.way != point.way:
            point.way = look.way
        if point.way is None and abs(look.target - point.follower.target) > 0:
            point.follower.put(look.target, now)
        if not self._runs:
            self._settle_on_picture(point)

    # -- what a page, a notebook or a test may ask for ---------------------------------------------------------------

    def hear(self, message: dict) -> None:
        """One message of the protocol (see protocol.py) that is about the stream."""
        kind, fields = message["type"], {k: v for k, v in message.items() if k not in ("type", "n")}
        self.touch()
        if kind in ("recall", "load"):                  # files are read while nobody waits
            return getattr(self, f"_{kind}")(message["take"])
        with self._changed:
            self.heard = message.get("n", self.heard)
            try:
                if kind == "pointer":
                    self.move(message["samples"])
                elif kind in PLAIN:
                    getattr(self, kind)()
                elif kind in ASKED:
                    getattr(self, kind)(**fields)
                else:
                    raise ProtocolError(f"a session does nothing with \"{kind}\"")
            except ProtocolError:
                self._tell()                            # the page had shown it as done
                raise
            if kind != "pointer" and self.take is not None and self.take.begun:
                self._keep({"event": kind, "at": self._index, "seconds": round(time.monotonic() - self._began, 3), **fields})

    def _recall(self, take: str) -> None:
        path = find(self.folder, take)
        if path is not None:
            session = read_session(path)
            self._send({"type": "kept", "take": take, "prompt": session["prompt"], "points": len(session.get("points", [])),
                        "frames": sum(chunk["frames"] for chunk in session["chunks"])})

    def _load(self, take: str) -> None:
        path = find(self.folder, take)
        if path is None:
            raise ProtocolError("this session is not here any more: open its file instead")
        try:
            self.load(read_session(path))
        except (ValueError, OSError) as error:
            raise ProtocolError(str(error)) from None

    def describe(self) -> dict:
        """The `state` message: all a page needs to draw itself."""
        with self._changed:
            undo, redo = self._deeds.counts
            return {"type": "state", "state": self.state, "prompt": self.prompt, "seed": self.seed, "undo": undo,
                    "redo": redo, "heard": self.heard, "frames": self._index,
                    "script": sum(c["frames"] for c in self._script), "grip": self.hold.grips, "rest": self.hold.rest,
                    "things": self._outlines(), "tuning": self.tuning,
                    "take": self.take.name if self.take is not None and self.take.begun else "",
                    "points": [self._as_json(p) for p in self.points.values()]}

    def export(self, path: str | Path) -> Path:
        """The latest take as mp4 at `path`; it may be running."""
        return self.made().join(path)

    def made(self) -> Take:
        """The latest take that has a frame."""
        for take in (self.take, self._before):
            if take is not None and take.frames:
                return take
        raise ProtocolError("nothing has been made yet: start the stream, then export")

    def still(self) -> Frame | None:
        """The picture before anything was made of it."""
        if self.image is None:
            return None
        return Frame(np.asarray(self.image), 0, 0, self._marks(), None, time.monotonic(), still=True)

    def lose_link(self) -> None:
        """The page has gone: hold everything, and let no pointer drag on."""
        with self._changed:
            self.on_frame = self.on_event = None
            self._look = self._gaze = False
            self.pause()
            self._clock = Clock()
            self.release(list(self._held))

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

    def touch(self) -> None:
        """A hand is at the stage: `touched` says when that was last, in seconds of this machine's clock."""
        self.touched = time.monotonic()

    @property
    def _runs(self) -> bool:
        return self.state in ("playing", "paused")

    @contextmanager
    def _deed(self, ids: Iterable[int]):
        """What is done to these points in here can be taken back, and is told."""
        with self._changed:
            self._take_over()
            before = {id: self.points[id].look() if id in self.points else None for id in ids}
            yield
            self._deeds.did({id: (look, self.points[id].look() if id in self.points else None)
                             for id, look in before.items()})
            self._note_points()
            self._tell()

    def _take_over(self) -> None:
        """A hand has come in: what is left of a kept session is not played again."""
        if self._script:
            self._leave_script()
            self._last_points = self._hold_at = None
            self._send({"type": "note", "message": "your hand takes over: the rest of the kept session is left out"})

    def _leave_script(self) -> None:
        """What the kept session held where it was left is to be held again."""
        self._script.clear()
        self._skips = False
        self._resuming, self._left_off = self._left_off or self._resuming, None

    def _now(self, t: float | None) -> float:
        now = time.monotonic()
        if t is None:
            return now
        self._echo = t if self._echo is None else max(self._echo, t)
        return self._clock.here(t, now)

    def _place(self, x: float, y: float, beyond: float = BEYOND) -> complex:
        """Shares of the picture -> pixels, outside it by so much at most."""
        within = lambda share, size: min(max(share, -beyond) * size, (1 + beyond) * size - 1e-3)
        return complex(within(x, self.geometry.width), within(y, self.geometry.height))

    def _share(self, place: complex) -> tuple[float, float]:
        return place.real / self.geometry.width, place.imag / self.geometry.height

    def _seen(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where in the given picture the image lies: its corner and its size, in shares of that picture."""
        left, top, wide, tall = middle(*self.source.size, self.geometry)
        return (left / self.source.width, top / self.source.height), (wide / self.source.width, tall / self.source.height)

    def _point(self, id: int) -> Point:
        if id not in self.points:
            raise ProtocolError(f"there is no point {id}: it was removed, or never added")
        return self.points[id]

    def _check_new(self, ids: Iterable[int]) -> None:
        ids = list(ids)
        taken = [id for id in ids if id in self.points]
        if taken:
            raise ProtocolError(f"there is a point {taken[0]} already: give a new one another number")
        if len(self.points) + len(ids) > MAX_POINTS:
            raise ProtocolError(f"there are {len(self.points)} points already, of {MAX_POINTS}: remove some first"
                                + (f", {len(ids)} more do not fit" if len(ids) > 1 else ""))
        if ids[-1] > 65535:
            raise ProtocolError("point numbers end at 65535: reload the page")
        if self.image is None:
            raise ProtocolError("there is no picture yet: choose one, then add points")

    def _put_new(self, id: int, place: complex, kind: str, now: float) -> None:
        home, origin = (None, self._origin(place)) if self._runs else (place, place)
        point = self.points[id] = Point(id, self._new_track(), kind, Follower(place, now, self.follow), home, origin)
        self._touch(point)

    def _new_track(self) -> int:
        taken = {p.track_id for p in self.points.values()} | self.hold.ids
        return next(i for i in iter(lambda: self._random.randrange(self.max_id), None) if i not in taken)

    def _origin(self, place: complex) -> complex:
        """Where in the picture lies what is now seen at `place`: things move with the points on them, also with those that
        have gone; what no point is near to has not moved."""
        thing = self.hold.under(place)
        if thing is not None:
            return thing.origin(place)
        known = ([(p.follower.at, p.origin) for p in self.points.values() if p.thing is None] + list(self._left)
                 + [(p[1], p[3]) for p in self.hold.flight.points if p[3] is not None])
        nearest = min(known, key=lambda k: abs(k[0] - place), default=(place, place))
        if abs(nearest[0] - place) > NEAR * self.geometry.width:
            return place
        if nearest in self._left:                       # taken up again: it will not stay there
            self._left.remove(nearest)
        return place - (nearest[0] - nearest[1])

    def _touch(self, point: Point) -> None:
        """What is under the point may be known; else the engine will look, and a pin holds but its spot."""
        thing = self.hold.of(point.origin) if self.hold.grips else None
        point.thing, point.looked = None, point.kind == "pin"
        if thing is not None:
            self.hold.join(point, thing)

    def _hold_as(self, chunk: dict) -> None:
        """Grips and rest as a chunk of a kept session has them; of an old one: neither."""
        if "hold" in chunk or not chunk.get("chunk"):
            grips, self.hold.rest = chunk.get("hold", (False, False))
            self.hold.grips = grips and self.hold.cut is not None

    def _settle_on_picture(self, point: Point) -> None:
        """Before the first frame a point is where it was put; what it holds is in the picture."""
        if self.state in ("opening", "ready", "empty"):
            place = self._place(*self._share(point.target), 0.0)
            moved = place != point.origin
            point.rest_at(place if point.way is None else point.target, time.monotonic())
            point.home = point.origin = place
            if moved:
                self._touch(point)

    def _drop(self, id: int) -> Point | None:
        point = self.points.pop(id, None)
        if point is not None:
            self._held.pop(id, None)
            if point.thing is None:
                self._left.append((point.follower.at, point.origin))
        return point

    def _outlines(self) -> list[list[list[float]]]:
        """What the points have taken hold of, as it lies now."""
        return [[[round(v, 4) for v in self._share(complex(z))] for z in line] for thing in self.hold.things
                if any(p.thing is thing for p in self.points.values()) for line in thing.outlines()]

    def _marks(self) -> list[Mark]:
        return [Mark(p.id, p.kind, *self._share(p.follower.at)) for p in self.points.values()]

    def _as_json(self, p: Point) -> dict:
        """A point as the page and the session file know it; places in shares of the picture."""
        def share(place: complex) -> list[float]:
            return [round(v, 5) for v in self._share(place)]

        x, y = share(p.target)
        told = {"id": p.id, "kind": p.kind, "x": x, "y": y, "leaving": p.leaving, "track": p.track_id,
                "at": share(p.follower.at), "home": None if p.home is None else share(p.home), "origin": share(p.origin)}
        if p.way is not None:
            told |= {"loop": p.way.loop, "speed": p.way.speed, "played": round(p.played, 3),
                     "nodes": [[round(t, 3), *share(place)] for t, place in p.way.nodes]}
        return told

    def _take_points(self, told: list[dict], running: bool = False) -> None:
        """Points as a session file knows them; what is damaged is passed over."""
        self.points.clear()
        now = time.monotonic()
        for p in told[:MAX_POINTS]:
            try:
                id, kind = int(p["id"]) % 65536, p["kind"] if p["kind"] in ("live", "pin", "path") else "live"
                target, at = self._place(float(p["x"]), float(p["y"])), self._place(*map(float, p["at"]))
                way = None
                if kind == "path":
                    nodes = tuple((float(t), self._place(float(x), float(y))) for t, x, y in p["nodes"][:MAX_NODES])
                    if not nodes or any(b[0] < a[0] for a, b in zip(nodes, nodes[1:])):
                        raise ValueError("the nodes of a path come one after the other")
                    way = Way(nodes, p["loop"], min(max(float(p["speed"]), 0.1), 10.0))
                point = Point(id, int(p["track"]) % self.max_id, kind, Follower(at, now, self.follow), None,
                              self._place(*map(float, p["origin"])), way, float(p.get("played", 0.0)))
                point.home = self._place(*map(float, p["home"])) if p.get("home") else None
                point.looked = kind == "pin"
            except (KeyError, TypeError, ValueError, IndexError):
                continue
            if not running:
                point.rest_at(target, now)
                point.home = point.origin = target
            elif way is None:
                point.follower.put(target, now)
            self.points[id] = point

    def _tell(self) -> None:
        """Wake the threads, tell the page."""
        self._changed.notify_all()
        self._send(self.describe())

    def _send(self, event: dict) -> None:
        tell = self.on_event                            # another thread may take it away meanwhile
        if tell is not None:
            tell(event)

    def _show_still(self) -> None:
        frame, show = self.still(), self.on_frame
        if show is not None and frame is not None:
            show(frame)

    def _delay(self, seconds: float) -> None:
        self._queue = deque(replace(f, due=f.due + seconds) for f in self._queue)
        self._next_due += seconds

    def _forget_play(self) -> None:
        """What belongs to a stream that has ended."""
        self._left.clear()
        self._held.clear()
        self.hold.reset(list(self.points.values()))
        self._anchors.clear()
        self._hold_at = self._last_points = self._left_off = self._resuming = None

    def _end_take(self) -> None:
        """Whatever is on its way belongs to the past; the recording will be closed, its frames are kept."""
        self._era += 1
        self._queue.clear()
        self._script.clear()
        self._skips = False
        self._chunk = self._index = 0
        self._next_due = 0.0
        if self.take is not None and self.take not in self._ending:
            self._ending.append(self.take)
            self._before = self.take if self.take.frames else self._before
        self._changed.notify_all()

    def _new_take(self) -> Take | None:
        self._began, self._said, self._noted, self._tune_noted = time.monotonic(), self.prompt, None, {}
        self._written = [self._as_json(p) for p in self.points.values()]
        if self.folder is None:
            return None
        return Take(self.folder, self.fps, {
            "model": self.name, "revision": self.revision, "prompt": self.prompt, "seed": self.seed,
            "width": self.geometry.width, "height": self.geometry.height, "picture": packed(self.image)})

    def _keep(self, record: dict) -> None:
        """Write a line of the session, if there is where to."""
        if self.take is not None:
            try:
                self.take.note(record)
            except (OSError, ValueError) as error:      # a full disk; a file that could not be closed
                self._lose(self.take, error)

    def _lose(self, take: Take, error: Exception) -> None:
        """A take that cannot be written any more is closed: what it has is kept."""
        if take not in self._ending:
            self._ending.append(take)
            self._before = take if take.frames else self._before
        if self.take is take:
            self.take = None
        self._send({"type": "error", "message": f"recording has stopped, the stream goes on: {error}"})
        self._changed.notify_all()

    def _note_points(self) -> None:
        """The points, for the session file, if the last it knows is not the same."""
        points = [self._as_json(p) for p in self.points.values()]
        if points != self._written:
            self._written = points
            self._keep({"points": points})

    # -- the engine --------------------------------------------------------------------------------------------------

    def _engine(self) -> None:
        import torch
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
        if self._ending:
            return "close_take"
        if self._closed:
            return "close"
        if self._want_open or self._want_reset:
            return "open_picture"
        if self._resuming is not None:
            return "hold_again"
        if (self.hold.grips and not self._script and any(not p.looked for p in self.points.values())
                and (self.state != "playing" or self._looked != self._chunk)):         # one look a chunk: the video goes on
            return "take_hold"
        if self.state == "playing" and self._hold_at is None:
            if time.monotonic() - self.touched > self.idle_after:
                self._send({"type": "note", "message": "nobody has touched the stream for a while, so it rests: "
                                                       "press Space to go on"})
                self.pause()
            elif self._patience() == 0:
                return "make_chunk"
        return None

    def _patience(self) -> float | None:
        """Seconds the next chunk can still wait for news of the pointer; None: until something changes."""
        if self.state != "playing" or self._hold_at is not None:
            return None
        if self._stream is not None and len(self._queue) > 4 * self._stream.frames_wanted:     # recording them takes longer
            return None
        slow = sorted(self._making)[-2:]                # of eight chunks, one may be slower than was waited for
        need = 1.1 * slow[0] + 0.03 if slow else 1e9
        return max(0.0, self._next_due - need - time.monotonic())

    def _close_take(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)       # no take is closed before what was shown is in it
            take = self._ending.popleft()
        try:
            take.close()
        except Exception as error:                      # a full disk must not end the session
            log.exception("closing a take")
            self._send({"type": "error", "message": f"the recording could not be finished: {error}"})

    def _open_picture(self) -> None:
        with self._changed:
            fresh, self._want_open, self._want_reset = self._want_open, False, False
            image, prompt, seed, era = self.image, self.prompt, self.seed, self._era
        if fresh or self._stream is None:
            self._stream = None
            self._stream = self.open_stream(prompt, image, seed)
            self._pace, self._tuned = Pace(self._stream.steps, self._fewest), {}
            self._usual_tuning = dict(getattr(self._stream, "tuning", {}))
        else:
            self._stream.reset(prompt=prompt, seed=seed)
        self._told = prompt
        with self._changed:
            if era == self._era and self.state == "opening":
                self.state = "ready"
                self._tell()

    def _take_hold(self) -> None:
        """Find what is under a new point; all points on it take hold of it."""
        with self._changed:
            point = next((p for p in self.points.values() if not p.looked), None)
            if point is None:
                return
            picture, origin, known = self.image, point.origin, list(self.hold.things)
            self._looked, thing = self._chunk, self.hold.of(origin)
        thing = thing or self._find(picture, origin, known)
        with self._changed:
            if picture is not self.image or self.points.get(point.id) is not point or point.origin != origin or point.looked:
                return
            if thing is not None and thing not in self.hold.things:         # it is where its point is
                thing.lead([origin], [point.follower.at])
            self.hold.join(point, thing)
            for other in self.points.values() if thing is not None else ():
                if other.thing is None and self.hold.of(other.origin) is thing:
                    self.hold.join(other, thing)
            if thing is not None:
                self._tell()

    def _find(self, picture, origin: complex, known: list) -> Thing | None:
        try:
            return self.hold.find(np.asarray(picture), origin, known) if math.isfinite(abs(origin)) else None
        except Exception as error:                      # the point then holds its spot
            log.exception("looking for a thing")
            self._send({"type": "note", "message": f"what is under this point could not be found: {error}"})
            return None

    def _hold_again(self) -> None:
        """Find the things of a kept session once more, and hold them as they were."""
        with self._changed:
            (groups, flown), picture, found = self._resuming, self.image, []
        for group in groups:
            known = [thing for thing in found if thing is not None]
            seeded = "seed" in group and self.hold.cut is not None
            found.append(self._find(picture, complex(*group["seed"]), known) if seeded else None)
        with self._changed:
            if picture is self.image and self._resuming is not None:
                self.hold.again(groups, flown, self.points, found)
                self._resuming = None
                self._tell()

    def _ask(self, frames: int, first: bool, now: float) -> tuple[dict, list[list[Mark]]]:
        """What the model is asked for in the next frames, as the session file keeps it, and the marks for the page."""
        points, size = list(self.points.values()), (self.geometry.width, self.geometry.height)
        paths = [point.path(frames, size[0], now, self.fps, first) for point in points]
        flown, groups = self.hold.frames(frames, first, points, paths)
        asked = ([(p.track_id, p.id, p.kind, path, inside(np.array(path), size).tolist(), p.origin)
                  for p, path in zip(points, paths)]                # outside the picture a hand leads its thing, unseen
                 + [(track, mark, "camera", path, seen, origin) for track, mark, path, seen, origin in flown])
        marks = [[Mark(id, kind, *self._share(path[i])) for _, id, kind, path, seen, _ in asked
                  if seen[i] or kind != "camera"] for i in range(frames)]
        gone = [p.id for p in points if p.leaving and abs(p.follower.at - p.follower.target) < 1]
        for id in gone:
            self._drop(id)
        if gone:
            self._tell()
        record = {"ids": [a[0] for a in asked], "who": [[a[1], a[2]] for a in asked],
                  "xy": [[_round(a[3][i]) for a in asked] for i in range(frames)] if asked else [],
                  "origin": [None if a[5] is None else _round(a[5]) for a in asked]}
        if not all(all(a[4]) for a in asked):
            record["seen"] = [[int(a[4][i]) for a in asked] for i in range(frames)]
        if groups:
            record["held"] = groups
        return record, marks

    def _ask_again(self, frames: int) -> tuple[dict, list[list[Mark]]] | None:
        """The same from the kept session that is played again; None: it does not fit, and is left out."""
        record = self._script[0]
        if record["frames"] != frames or record.get("steps", 1) > self._stream.steps:
            self._leave_script()
            self._send({"type": "note", "message": "the kept session was made in other chunks or steps: it goes on live"})
            return None
        self._script.popleft()
        if "points" in record:
            self._take_points(record["points"], running=True)
        size, seen = complex(self.geometry.width, self.geometry.height), record.get("seen")
        marks = [[Mark(int(id) % 65536, kind, x / size.real, y / size.imag) for n, ((id, kind), (x, y)) in enumerate(
                  zip(record["who"], row)) if kind != "camera" or seen is None or seen[i][n]]
                 for i, row in enumerate(record["xy"])]
        where = {id: complex(*xy) for (id, kind), xy in zip(record["who"], record["xy"][-1] if record["xy"] else [])
                 if kind != "camera"}
        for point in self.points.values():
            if point.id in where:
                point.follower.rest_at(where[point.id], time.monotonic())
        flown = [(id, at, origin) for id, (_, kind), at, origin in zip(
            record["ids"], record["who"], record["xy"][-1] if record["xy"] else [], record["origin"]) if kind == "camera"]
        self.hold.flight.moved |= bool(flown)
        self._hold_as(record)
        self._left_off = record.get("held", []), flown
        if not self._script:
            if self._last_points is not None:
                self._take_points(self._last_points, running=True)
            self._leave_script()
            self._hold_at = self._index + frames
        self._anchors = list(anchors(record))
        self._tuning = {**record["tune"]} if "tune" in record else self._tuning
        self.prompt = record.get("say", self.prompt)
        kept = {k: record[k] for k in ("ids", "who", "xy", "origin", "seen", "held", "steps") if k in record}
        return kept, marks or [[] for _ in range(frames)]

    def _make_chunk(self) -> None:
        began = time.monotonic()
        frames = self._stream.frames_wanted
        with self._changed:
            era, echo, chunk, skips = self._era, self._echo, self._chunk, self._skips
            points = [self._as_json(p) for p in self.points.values()]
            again = self._ask_again(frames) if self._script else None
            asked, marks = again or self._ask(frames, chunk == 0, began)
            record = {"chunk": chunk, "frames": frames, **asked}
            full = min(self._tuning.get("steps", self._stream.steps), self._stream.steps)
            if full != self._pace.full:
                self._pace = Pace(full, self._fewest)
            if not again and self._pace.steps < self._stream.steps:
                record["steps"] = self._pace.steps
            tuning = {name: value for name, value in self._tuning.items() if name in self._usual_tuning}
            if tuning != self._tune_noted:
                record["tune"] = self._tune_noted = tuning
            if chunk == 0 or points != self._written:
                record["points"] = self._written = points
            if (holds := (self.hold.grips, self.hold.rest)) != self._noted:
                record["hold"] = self._noted = holds
            if self._hand:
                record["hand"] = list(self._hand)
                self._hand.clear()
            say, anchored, self._anchors, look = self.prompt, self._anchors, [], self._look and self.eye
            at = next(((m.x, m.y) for m in marks[-1] if m.id == self._gazer and m.kind != "camera"), None)
            watched = self.watch(self._stream, record.get("steps"), at) if self._gaze else nullcontext()
        if say != self._told:
            self._stream.say(say)
            self._told = say
        if say != self._said:
            record["say"] = self._said = say
        for on in anchored:
            self._stream.anchor(on)
        if anchored:
            record["anchor"] = anchored
        if tuning != self._tuned:
            self._stream.tune(**self._usual_tuning | tuning)
            self._tuned = tuning
        tracks = tracks_of(record)
        with watched as seen:
            made = self._stream.step(tracks, record.get("steps"))[0]                                        # [T, 3, H, W]
        pictures = fetch(made.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)).numpy()
        with self._changed:
            now = time.monotonic()
            self._making.append(now - began)
            if era != self._era:
                return
            pace = 0.0 if skips else max(1 / self.fps, 1.02 * median(self._cycle or [0.0]) / frames)    # slow models: slowly
            due = max(self._next_due, self._paused_at if self.state == "paused" else now)
            for i, picture in enumerate(pictures):
                self._queue.append(Frame(picture, self._index + i, chunk, marks[i], echo, due + i * pace,
                                         passed=skips and i + 1 < frames))
            self._next_due, self._chunk, self._index = due + frames * pace, chunk + 1, self._index + frames
            self._keep(record)                          # before any of it is seen
            self._changed.notify_all()
        self._stream.settle()
        took = time.monotonic() - began
        with self._changed:
            self._cycle.append(took)
            if era == self._era:
                if again:
                    self._tell()
                self._send({"type": "chunk", "chunk": chunk, "frames": frames, "made": round(1000 * self._making[-1], 1),
                            "whole": round(1000 * took, 1), "memory": self._stream.memory,
                            "steps": [record.get("steps", self._pace.full), self._pace.full]})
                if not again and self._pace.took(took, frames / self.fps):
                    self._making.clear()
                    self._cycle.clear()
        words = [{"type": "gaze", "chunk": chunk, **seen}] if seen else []
        if look:
            pictures = look(tracks, chunk == 0)                                                             # [F, h, w, 3]
            words.append({"type": "map", "chunk": chunk, "frames": len(pictures),
                          "picture": packed(Image.fromarray(np.concatenate(pictures, axis=1)))})
        with self._changed:
            for word in words if era == self._era else ():
                self._send(word)

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
                if tell is not None and not frame.passed:
                    tell(frame)
                if self._hold_at is not None and frame.index + 1 >= self._hold_at:
                    self._hold_at = None
                    self._send({"type": "note", "message": "this is where the kept session ended: Space goes on, live"})
                    self.pause()
                self._writing = take is not None
                self._changed.notify_all()              # there is room for one more
            if take is None:
                continue
            failed = None
            try:
                take.write(frame.picture)
            except Exception as error:
                log.exception("recording")
                failed = error
            with self._changed:
                self._writing = False
                if failed is not None:
                    self._lose(take, failed)
                self._changed.notify_all()


def from_home(deeds: Deeds, anew: Callable[[Point], Point | None], here: Callable = lambda place: place) -> Deeds:
    """Deeds as a video knows them that begins again: points are where they were put on the picture, nobody has flown.

    anew: who stands for a point now, None if nobody does; here: where a place of the old video is.
    """
    def told(before, after):
        if not isinstance(before or after, Look):
            return (before, after) if isinstance(before, (str, bool)) else None
        point = anew((before or after).point)
        if point is None:
            return None
        a, b = (look and point.at_home(look.kind, look.way and look.way.seen(here)) for look in (before, after))
        return None if a and b and a.like(b) else (a, b)
    return deeds.told(told)


def _round(place: complex) -> list[float]:
    """Pixels as they are asked and kept: what is written is what is read again."""
    return [round(place.real, 3), round(place.imag, 3)] if math.isfinite(abs(place)) else [0.0, 0.0]
