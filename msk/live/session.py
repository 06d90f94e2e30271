"""One player's stream: points that follow pointers, chunks made just in time, frames played at an even pace, all recorded.

A Session is the door; behind it are five rooms. The board has the points and what hands do to them, the engine makes chunks
and the player shows them, each in a thread of its own, the journal keeps takes, and the script plays a kept one again. One
lock is over all of them, `changed`. What takes long the threads do outside of it: no call waits for the model.

The session knows an environment, not a model: `open_stream(prompt, image, seed)` gives something with `frames_wanted`,
`step(tracks, steps) -> frames [1, T, 3, H, W]`, `steps`, `settle()`, `reset()`, `say(prompt)`, `anchor(on)` and `memory`;
to be tuned while it plays, also `tune(...)` and `tuning`.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ..picture import fitted, read_picture
from .board import Board
from .engine import Engine
from .follow import Clock, Follow, Hand
from .journal import Journal
from .player import Frame, Player
from .points import Deeds
from .protocol import ProtocolError, Sample
from .record import Take, check_session, find, read_session
from .replay import packed, picture_of
from .script import Script

HEARD = ("start", "stop", "pause", "resume", "reset", "skip", "look", "gaze", "add", "grid", "path", "grab", "release",
         "pin", "remove", "say", "anchor", "camera", "grip", "rest", "undo", "redo")


class Session:
    def __init__(self, open_stream: Callable, geometry, *, name: str = "", revision: str = "", max_id: int = 16384,
                 folder: str | Path | None = None, follow: Follow | None = None, fps: float | None = None,
                 eye: Callable | None = None, watch: Callable | None = None, ahead: float = 0.12, idle_after: float = 900.0,
                 cut: Callable | None = None, rest: bool = False, fewest: int = 1,
                 unknown: Callable[[str], list[str]] = lambda prompt: []):
        self.open_stream, self.geometry, self.name, self.revision = open_stream, geometry, name, revision
        self.max_id, self.eye = max_id, eye             # eye(tracks, start) -> [F, h, w, 3] uint8: what the model is told
        self.watch = watch                              # with watch(stream, steps, at) as seen: see gaze.py
        self.unknown = unknown                          # of a prompt the words that say nothing to the model
        self.folder = Path(folder) if folder else None
        self.follow, self.fps, self.ahead, self.idle_after = follow or Follow(), fps or geometry.fps, ahead, idle_after
        self.on_frame: Callable[[Frame], None] | None = None
        self.on_event: Callable[[dict], None] | None = None
        self.state = "empty"        # empty, opening, ready, playing, paused, ended, failed
        self.image: Image.Image | None = None
        self.source: Image.Image | None = None          # the picture that was given: the image is what of it is seen here
        self.prompt, self.seed = "", 0
        self.heard = 0                                  # the number of this page's latest message that was dealt with
        self.paused_at = self.touched = time.monotonic()
        self.hand = Hand()
        self.changed = threading.Condition(threading.RLock())
        self.board = Board(geometry, self.follow, max_id, lambda: self.state, cut, rest)
        self.points, self.hold = self.board.points, self.board.hold
        self.journal = Journal(self.changed, self.send)
        self.script = Script(self.board, self.note)
        self.player = Player(self.changed, self.journal, ahead, lambda: self.state == "playing", self._show)
        self.engine = Engine(self, fewest)
        self._threads = [threading.Thread(target=room.run, name=f"msk-{type(room).__name__.lower()}", daemon=True)
                         for room in (self.engine, self.player)]
        for thread in self._threads:
            thread.start()

    @property
    def take(self) -> Take | None:
        return self.journal.take

    # -- the stream --------------------------------------------------------------------------------------------------

    def open(self, image, prompt: str = "", seed: int = 0) -> None:
        """Take this picture (anything `read_picture` reads) and wait for `start`; points and the running take end."""
        source = read_picture(image)
        picture = fitted(source, self.geometry)
        with self.changed:
            self.source, self.image, self.prompt, self.seed = source, picture, prompt, seed
            self.board.clear(seed)
            self.engine.opens = True
            self._begin()
        self._show_still()

    def load(self, session: dict) -> None:
        """Open a kept session: `start` plays it again; where it ended, or where a hand takes over, it goes on live."""
        check_session(session)
        image, size = picture_of(session), (self.geometry.width, self.geometry.height)
        with self.changed:
            self.open(image, session["prompt"][:1000], session["seed"] % 2 ** 31)
            chunks = session["chunks"]
            self.script.hold_as(chunks[0] if chunks else {})
            self.engine.wishes = {}
            self.board.restore(next((c["points"] for c in chunks if "points" in c), session.get("points", [])))
            self.journal.news(points=self.board.told())             # they came with it: no hand has put them
            if (session["width"], session["height"]) == size:
                self.script.begin(chunks, session.get("points"))
            elif chunks:
                self.note(f"this session was played at {session['width']}x{session['height']}: "
                          "its points are here, its video cannot be played again")
            self.tell()

    def go_on_from(self, other: Session, image=None) -> int:
        """Open what another session has, which may be of another size: its picture (or `image`, the same drawn anew), prompt
        and seed, its points where they began in the picture, whose things are cut again, and its deeds. How many points are
        left out: those whose place is not seen here."""
        with self.changed, other.changed:
            self.board.wish_as(other.board)
            self.open(image or other.source, other.prompt, other.seed)
            left_out = self.board.go_on_from(other.board, other.source, self.source)
            self.journal.news(points=self.board.told())
            self.tell()
            return left_out

    def start(self) -> None:
        """Begin a take; go on if it is paused; begin again from the picture if it has ended."""
        with self.changed:
            if self.state == "paused":
                return self.resume()
            if self.state in ("ended", "failed"):
                self.reset()
            if self.image is None:
                raise ProtocolError("there is no picture yet: choose one, then start")
            if self.state in ("opening", "ready"):
                self.state, self.player.next_due = "playing", 0.0
                self.touch()
            self.tell()

    def stop(self) -> None:
        """End the take and put it on disk; the last frame stays, `start` begins anew."""
        with self.changed:
            if self.state in ("playing", "paused"):
                self._end("ended")
            self.tell()

    def pause(self) -> None:
        with self.changed:
            if self.state == "playing":
                self.state, self.paused_at = "paused", time.monotonic()
            self.tell()

    def resume(self) -> None:
        with self.changed:
            if self.state == "paused":
                self.player.delay(time.monotonic() - self.paused_at)
                self.state = "playing"
                self.touch()
            self.tell()

    def reset(self) -> None:
        """Back to the picture: points return to where they were put on it, those added later are gone."""
        with self.changed:
            if self.image is None:
                return
            self.board.begin_again()
            self.engine.resets = True
            self._begin()
        self._show_still()

    def skip(self) -> None:
        """Make what is left of a kept session as fast as can be, to go on where it stood."""
        with self.changed:
            if self.script.chunks:
                self.start()
                self.script.skips = bool(self.script.chunks)
                self.player.hurry()
                self.tell()

    def tune(self, **how: float) -> None:
        """From the next chunk on, play with other `steps` (at most the student's), `sink`, `window`, `text_scale` or
        `motion_scale`: see Stream.tune. It is kept in the session file."""
        with self.changed:
            self.engine.check(how)
            with self._deed():
                self.engine.wishes = self.engine.wishes | how

    @property
    def tuning(self) -> dict:
        """What `tune` sets, as the next chunk is made; empty before there is a stream."""
        with self.changed:
            return self.engine.tuning

    def look(self, on: bool = True) -> None:
        """Send what the model is told, chunk by chunk."""
        with self.changed:
            if on and self.eye is None:
                raise ProtocolError("there is no map to look at: this model is not told in maps")
            self.engine.looks = on

    def gaze(self, on: bool = True, point: int = -1) -> None:
        """Send where the model looks, chunk by chunk; with a point, also where in the sink that one's place looks."""
        with self.changed:
            if on and self.watch is None:
                raise ProtocolError("there is no attention to look at: this stream shows none")
            self.engine.gazes, self.engine.gazer = on, point

    # -- deeds -------------------------------------------------------------------------------------------------------

    def add(self, id: int, x: float, y: float, kind: str = "live", t: float | None = None) -> None:
        """A new point at (x, y), shares of the picture."""
        with self._deed([id]):
            self.board.add({id: self.board.place(x, y, 0.0)}, kind, self.hand.now(t))

    def grid(self, id: int, box: tuple, spacing: float, kind: str = "live", t: float | None = None) -> None:
        """New points all over a box (left, top, right, bottom in shares), `spacing` widths apart; ids from `id` on."""
        places = self.board.cells(id, box, spacing)
        with self._deed(places):
            self.board.add(places, kind, self.hand.now(t))

    def path(self, id: int, nodes: list[tuple], loop: str = "once", speed: float = 1.0, t: float | None = None) -> None:
        """A way for a point, new or old: nodes (seconds, x, y), x and y in shares of the picture."""
        with self._deed([id]):
            self.board.lead(id, nodes, loop, speed, self.hand.now(t))

    def grab(self, ids: Iterable[int], t: float | None = None) -> None:
        with self.changed:
            self.script.take_over()
            self.board.grab(ids, self.hand.now(t))

    def move(self, samples: list[Sample]) -> None:
        """Pointer samples, oldest first; those of points that are gone are passed over."""
        with self.changed:
            for sample in samples:
                point = self.points.get(sample.id)
                if point is not None:
                    point.put(self.board.place(sample.x, sample.y), self.hand.now(sample.t))
                    self.hand.samples.append([round(sample.t, 1), sample.id, round(sample.x, 4), round(sample.y, 4)])

    def release(self, ids: Iterable[int], keep: bool = True, t: float | None = None) -> None:
        """The pointer lets go. Points hold their place (keep), or say no more once they have got there."""
        with self.changed:
            self.board.release(ids, keep)
            self.tell(points=True)

    def pin(self, ids: Iterable[int], on: bool = True) -> None:
        """Pinned points stay where they are."""
        with self._deed(ids := list(ids)):
            self.board.pin(ids, on)

    def remove(self, ids: Iterable[int]) -> None:
        with self._deed(ids := list(ids)):
            for id in ids:
                self.board.drop(id)

    def say(self, prompt: str) -> None:
        """Follow another text, from the next chunk on."""
        with self._deed():
            self.board.deeds.did({"prompt": (self.prompt, prompt)})
            self.prompt = prompt
        if strange := self.unknown(prompt):
            self.note(f"words that this model does not know: {', '.join(strange[:6])}")

    def anchor(self) -> None:
        """From the next chunk on, the video is held to how it looks now."""
        with self.changed:
            if self.state not in ("playing", "paused"):
                raise ProtocolError("there is nothing to hold on to yet: start the stream first")
            with self._deed():
                self.board.deeds.did({"anchor": (0, 1)})
                self.engine.anchors.append(True)
                self.note("a fresh anchor: the video is now held to how it looks here")

    def camera(self, **move: float) -> None:
        """Fly on by so much; see flight.py for the units."""
        with self.changed:
            self.script.take_over()
            if self.board.fly(move):
                self.tell()                             # there is one more deed to take back
            else:
                self.changed.notify_all()

    def grip(self, on: bool = True) -> None:
        """Do points take hold of the whole thing under them, or of their spot alone?"""
        with self.changed:
            if on and self.hold.cut is None:
                raise ProtocolError('things can be taken hold of with OpenCV only: pip install "msk[demo]"')
            if on != self.hold.grips:
                with self._deed():
                    self.board.deeds.did({"grip": (not on, on)})
                    self.board.grip(on)

    def rest(self, on: bool = True) -> None:
        """Does all that no hand moves stay as it is, or is it free to do what the prompt says?"""
        with self._deed():
            self.board.deeds.did({"rest": (self.hold.rest, on)})
            self.board.rest(on)

    def undo(self) -> None:
        """Take back the last deed: what was dragged goes back to where it came from."""
        self._turn(Deeds.back)

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._turn(Deeds.again)

    def _turn(self, deed: Callable[[Deeds], dict]) -> None:
        with self._deed(()):
            for what, wanted in deed(self.board.deeds).items():
                if what == "prompt":
                    self.prompt = wanted
                elif what == "anchor":
                    self.engine.anchor(bool(wanted))
                    self.note("the anchor is fresh again" if wanted else
                              "the anchor is taken back: the video is held to what it was held to before")
                else:
                    self.board.become(what, wanted)

    @contextmanager
    def _deed(self, ids: Iterable[int] | None = None):
        """A hand has come in. What it does to these points in here can be taken back; None: it does nothing to points."""
        with self.changed:
            self.script.take_over()
            before = self.board.looks(ids or ())
            yield
            after = self.board.looks(before)
            self.board.deeds.did({id: (look, after[id]) for id, look in before.items()})
            self.tell(points=ids is not None)

    def touch(self) -> None:
        """A hand is at the stage: `touched` says when that was last, in seconds of this machine's clock."""
        self.touched = time.monotonic()

    # -- what a page, a notebook or a test may ask for ---------------------------------------------------------------

    def hear(self, message: dict) -> None:
        """One message of the protocol (see protocol.py) that is about the stream."""
        kind, fields = message["type"], {k: v for k, v in message.items() if k not in ("type", "n")}
        self.touch()
        if kind in ("recall", "load"):                  # files are read while nobody waits
            return getattr(self, f"_{kind}")(message["take"])
        with self.changed:
            self.heard = message.get("n", self.heard)
            try:
                if kind == "pointer":
                    self.move(message["samples"])
                elif kind in HEARD:
                    getattr(self, kind)(**fields)
                else:
                    raise ProtocolError(f"a session does nothing with \"{kind}\"")
            except ProtocolError:
                self.tell()                             # the page had shown it as done
                raise
            if kind != "pointer":
                self.journal.event(kind, self.player.index, fields)

    def _recall(self, take: str) -> None:
        with suppress(ValueError, OSError):             # what is damaged or gone is not offered
            session = self._kept(take)
            self.send({"type": "kept", "take": take, "prompt": session["prompt"], "points": len(session.get("points", [])),
                       "frames": sum(chunk["frames"] for chunk in session["chunks"])})

    def _load(self, take: str) -> None:
        try:
            self.load(self._kept(take))
        except (ValueError, OSError) as error:
            raise ProtocolError(str(error)) from None

    def _kept(self, take: str) -> dict:
        path = find(self.folder, take)
        if path is None:
            raise FileNotFoundError("this session is not here any more: open its file instead")
        return read_session(path)

    def describe(self) -> dict:
        """The `state` message: all a page needs to draw itself."""
        with self.changed:
            undo, redo = self.board.deeds.counts
            return {"type": "state", "state": self.state, "prompt": self.prompt, "seed": self.seed, "undo": undo,
                    "redo": redo, "heard": self.heard, "frames": self.player.index,
                    "script": sum(c["frames"] for c in self.script.chunks), "grip": self.hold.grips, "rest": self.hold.rest,
                    "things": self.board.outlines(), "tuning": self.tuning,
                    "take": self.take.name if self.take is not None and self.take.begun else "",
                    "points": self.board.told()}

    def export(self, path: str | Path) -> Path:
        """The latest take as mp4 at `path`; it may be running."""
        return self.made().join(path)

    def made(self) -> Take:
        """The latest take that has a frame."""
        return self.journal.made()

    def still(self) -> Frame | None:
        """The picture before anything was made of it."""
        with self.changed:
            if self.image is None:
                return None
            return Frame(np.asarray(self.image), 0, 0, self.board.marks(), None, time.monotonic(), still=True)

    def lose_link(self) -> None:
        """The page has gone: hold everything, and let no pointer drag on."""
        with self.changed:
            self.on_frame = self.on_event = None
            self.engine.looks = self.engine.gazes = False
            self.pause()
            self.hand.clock = Clock()
            self.release(list(self.board.held))

    def close(self, wait: float = 10.0) -> None:
        """Put the take on disk and end both threads."""
        with self.changed:
            self._end(self.state)
            self.engine.closed = self.player.closed = True
            self.on_frame = self.on_event = None
            self.changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(wait)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- for the rooms -----------------------------------------------------------------------------------------------

    def tell(self, points: bool = False) -> None:
        """Wake the threads, tell the page; of points also the session file, if those it knows are not the same."""
        if points:
            self.journal.keep(self.journal.news(points=self.board.told()))
        self.changed.notify_all()
        self.send(self.describe())

    def send(self, event: dict) -> None:
        tell = self.on_event                            # another thread may take it away meanwhile
        if tell is not None:
            tell(event)

    def note(self, message: str) -> None:
        self.send({"type": "note", "message": message})

    def fail(self, error: Exception) -> None:
        """The engine has no stream any more."""
        with self.changed:
            self._end("failed")
            self.send({"type": "error", "message": f"the stream stopped: {error} - press Reset to begin again"})
            self.tell()

    def _show(self, frame: Frame) -> None:
        """One that is due."""
        tell = self.on_frame
        if tell is not None and not frame.passed:
            tell(frame)
        if self.script.hold_at is not None and frame.index + 1 >= self.script.hold_at:
            self.script.hold_at = None
            self.note("this is where the kept session ended: Space goes on, live")
            self.pause()

    def _show_still(self) -> None:
        frame, show = self.still(), self.on_frame
        if show is not None and frame is not None:
            show(frame)

    def _begin(self) -> None:
        """Be at the picture, with a take that has nothing yet."""
        self._end("opening")
        self.script.forget()
        self.engine.anchors.clear()
        take = self.folder and Take(self.folder, self.fps, {
            "model": self.name, "revision": self.revision, "prompt": self.prompt, "seed": self.seed,
            "width": self.geometry.width, "height": self.geometry.height, "picture": packed(self.image)})
        self.journal.begin(take, points=self.board.told(), say=self.prompt, tune={})
        self.tell()

    def _end(self, state: str) -> None:
        """Whatever is on its way belongs to the past; the recording will be closed, its frames are kept."""
        self.state = state
        self.player.clear()
        self.script.clear()
        self.journal.end()
        self.changed.notify_all()
