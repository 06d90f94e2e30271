"""The engine: the thread that opens streams, finds things under points and makes chunks just in time.

With each chunk it waits as long as playback allows, so that the chunk knows the newest motion. What a chunk is to be is
gathered under the session's lock; while the model works, nobody waits for it.
"""
from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import numpy as np
from PIL import Image

from ..grip import Thing
from ..host import fetch
from .pace import Pace
from .protocol import Mark, ProtocolError
from .record import MOST_HELD, MOST_SCALE, anchors, tunable
from .replay import packed, tracks_of
from .script import ask

log = logging.getLogger("msk.live")
KEPT = ("ids", "who", "xy", "origin", "seen", "held", "steps")     # of a chunk that is made again


class Engine:
    """The stream of a Session, whose rooms it sees and changes under its lock; who has that may use what has no underscore.

    fewest: denoising steps that a late chunk gets at least.
    """

    def __init__(self, session, fewest: int = 1):
        self.session, self.fewest = session, fewest
        self.stream = None
        self.opens = self.resets = self.closed = False  # what it is to do first: another stream, another video, end
        self.wishes: dict = {}                          # what was asked of `tune`,
        self._tuned: dict = {}                          # what the stream knows of it,
        self._usual: dict = {}                          # and how it came
        self._prompt: str | None = None                 # the stream's
        self.anchors: list[bool] = []                   # fresh ones before the next chunk; False: the last is taken back
        self.looks = self.gazes = False
        self.gazer = -1                                 # the point whose look is asked for
        self._looked = -1                               # the chunk in which it was last looked what is under a point
        self._pace = Pace(1)
        self._making: deque[float] = deque(maxlen=8)    # seconds from asking to frames, of the latest chunks
        self._cycle: deque[float] = deque(maxlen=8)     # the same with the clean pass

    def check(self, how: dict) -> None:
        """May it be tuned so? Raises ProtocolError."""
        wrong = [f"{name}={value!r:.20}" for name, value in how.items() if not tunable(name, value)]
        if wrong:
            raise ProtocolError(f"{', '.join(wrong)} cannot be set: there are steps (from 1), sink and window (from 0; whole"
                                f" numbers to {MOST_HELD}), text_scale and motion_scale (0 to {MOST_SCALE})")
        stream = self.stream                            # the thread may open another
        if stream is not None and not hasattr(stream, "tune") and how.keys() != {"steps"}:
            raise ProtocolError("this stream has steps to set, and nothing else")
        if hasattr(stream, "tuned"):
            try:                                        # of a model's own budget only its stream knows what it holds
                stream.tuned(**{name: value for name, value in how.items() if name != "steps"})
            except ValueError as error:
                raise ProtocolError(str(error)) from None

    @property
    def tuning(self) -> dict:
        """As the next chunk is made; empty before there is a stream."""
        stream = self.stream
        steps = {} if stream is None else {"steps": min(stream.steps, self.wishes.get("steps", stream.steps))}
        return steps | {name: self.wishes.get(name, value) for name, value in self._usual.items()}

    def anchor(self, on: bool) -> None:
        """An anchor is taken back, or is to be there again."""
        if self.anchors and self.anchors[-1] != on:     # no chunk has been made since
            self.anchors.pop()
        else:
            self.anchors.append(on)

    def run(self) -> None:
        import torch
        torch.set_num_threads(torch.get_num_threads())      # OpenMP counts per calling thread
        while task := self._next():
            try:
                task()
            except Exception as error:
                log.exception("the engine stopped")
                self.stream = None
                self.session.fail(error)
        self.stream = None

    def _next(self) -> Callable | None:
        """What is to be done now, once there is something; None: nothing any more."""
        changed = self.session.changed
        with changed:
            while (task := self._task()) is None and not self.closed:
                changed.wait(self._patience())
            return task

    def _task(self) -> Callable | None:
        session, board = self.session, self.session.board
        if session.journal.ending:
            return session.journal.close_next
        if self.closed:
            return None
        if self.opens or self.resets:
            return self._open_picture
        if session.script.resuming is not None:
            return self._hold_again
        if (board.hold.grips and not session.script.chunks and any(not p.looked for p in board.points.values())
                and (session.state != "playing" or self._looked != session.player.chunk)):   # one a chunk: the video goes on
            return self._take_hold
        if self._makes:
            if time.monotonic() - session.touched > session.idle_after:
                session.note("nobody has touched the stream for a while, so it rests: press Space to go on")
                session.pause()
            elif self._patience() == 0:
                return self._make_chunk
        return None

    @property
    def _makes(self) -> bool:
        return (self.session.state == "playing" and self.session.script.hold_at is None
                and not (self.opens or self.resets or self.closed))

    def _patience(self) -> float | None:
        """Seconds the next chunk can still wait for news of the pointer; None: until something changes."""
        player = self.session.player
        if not self._makes:
            return None
        if self.stream is not None and len(player.frames) > 4 * self.stream.frames_wanted:  # recording them takes longer
            return None
        slow = sorted(self._making)[-2:]                # of eight chunks, one may be slower than was waited for
        need = 1.1 * slow[0] + 0.03 if slow else 1e9
        return max(0.0, player.next_due - need - time.monotonic())

    def _open_picture(self) -> None:
        session = self.session
        with session.changed:
            anew, self.opens, self.resets = self.opens, False, False
            image, prompt, seed, era = session.image, session.prompt, session.seed, session.player.era
        if anew or self.stream is None:
            self.stream = None
            self.stream = session.open_stream(prompt, image, seed)
            self._pace, self._tuned = Pace(self.stream.steps, self.fewest), {}
            self._usual = dict(getattr(self.stream, "tuning", {}))
        else:
            self.stream.reset(prompt=prompt, seed=seed)
        self._prompt = prompt
        with session.changed:
            if era == session.player.era and session.state == "opening":
                session.state = "ready"
                session.tell()

    def _take_hold(self) -> None:
        """Find what is under a new point; all points on it take hold of it."""
        session, board, hold = self.session, self.session.board, self.session.hold
        with session.changed:
            point = next((p for p in board.points.values() if not p.looked), None)
            if point is None:
                return
            picture, origin, known = session.image, point.origin, list(hold.things)
            self._looked, thing = session.player.chunk, hold.of(origin)
        thing = thing or self._find(picture, origin, known)
        with session.changed:
            if (picture is not session.image or board.points.get(point.id) is not point or point.origin != origin
                    or point.looked):
                return
            if thing is not None and thing not in hold.things:              # it is where its point is
                thing.lead([origin], [point.follower.at])
            hold.join(point, thing)
            for other in board.points.values() if thing is not None else ():
                if other.thing is None and hold.of(other.origin) is thing:
                    hold.join(other, thing)
            if thing is not None:
                session.tell()
            elif list(board.deeds.last()) == [point.id]:                    # just now, and alone: not one of a box of them
                session.note("Nothing whole was found here: this point moves what lies close about it")

    def _find(self, picture, origin: complex, known: list) -> Thing | None:
        try:
            return self.session.hold.find(np.asarray(picture), origin, known) if math.isfinite(abs(origin)) else None
        except Exception as error:                      # the point then holds its spot
            log.exception("looking for a thing")
            self.session.note(f"what is under this point could not be found: {error}")
            return None

    def _hold_again(self) -> None:
        """Find the things of a kept session once more, and hold them as they were."""
        session, hold, found = self.session, self.session.hold, []
        with session.changed:
            left_off, picture = session.script.resuming, session.image
        groups, flown = left_off
        for group in groups:
            known = [thing for thing in found if thing is not None]
            seeded = "seed" in group and hold.cut is not None
            found.append(self._find(picture, complex(*group["seed"]), known) if seeded else None)
        with session.changed:
            if session.script.resuming is left_off:
                session.script.resuming = None          # first: what cannot be held again is not tried for ever
                hold.again(groups, flown, session.points, found)
                session.tell()

    def _make_chunk(self) -> None:
        session, player, stream, began = self.session, self.session.player, self.stream, time.monotonic()
        frames = stream.frames_wanted
        with session.changed:
            if not self._makes:                         # a hand came in between
                return
            era, chunk, echo, skips = player.era, player.chunk, session.hand.echo, session.script.skips
            record, marks, again = self._ask(frames, began)
            prompt, anchored, self.anchors, look = session.prompt, self.anchors, [], session.eye if self.looks else None
            tuning = {name: value for name, value in self.wishes.items() if name in self._usual}
            record |= session.journal.news(tune=tuning, say=prompt) | ({"anchor": anchored} if anchored else {})
            at = next(((m.x, m.y) for m in marks[-1] if m.id == self.gazer and m.kind != "camera"), None)
            watched = session.watch(stream, record.get("steps"), at) if self.gazes else nullcontext()
        if prompt != self._prompt:
            stream.say(prompt)
            self._prompt = prompt
        for on in anchored:
            stream.anchor(on)
        if tuning != self._tuned:
            stream.tune(**self._usual | tuning)
            self._tuned = tuning
        tracks = tracks_of(record)
        with watched as seen:
            made = stream.step(tracks, record.get("steps"))[0]                                              # [T, 3, H, W]
        pictures = fetch(made.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)).numpy()
        with session.changed:
            now = time.monotonic()
            self._making.append(now - began)
            if era != player.era:
                return
            slow = 1.02 * median(self._cycle or [0.0]) / frames             # a slow model is shown slowly
            player.add(pictures, marks, echo, session.paused_at if session.state == "paused" else now,
                       0.0 if skips else max(1 / session.fps, slow), skips)
            session.journal.keep(record)                # before any of it is seen
            session.changed.notify_all()
        stream.settle()
        took = time.monotonic() - began
        words = [{"type": "chunk", "chunk": chunk, "frames": frames, "made": round(1000 * self._making[-1], 1),
                  "whole": round(1000 * took, 1), "memory": stream.memory,
                  "steps": [record.get("steps", self._pace.full), self._pace.full]}]
        words += [{"type": "gaze", "chunk": chunk, **seen}] if seen else []
        if look:
            maps = look(tracks, chunk == 0)                                                                 # [F, h, w, 3]
            words.append({"type": "map", "chunk": chunk, "frames": len(maps),
                          "picture": packed(Image.fromarray(np.concatenate(maps, axis=1)))})
        with session.changed:
            self._cycle.append(took)
            if era != player.era:
                return
            if again:
                session.tell()
            elif self._pace.took(took, frames / session.fps):
                self._making.clear()
                self._cycle.clear()
            for word in words:
                session.send(word)

    def _ask(self, frames: int, now: float) -> tuple[dict, list[list[Mark]], bool]:
        """What the next chunk is to be, as the session file keeps it, the marks of its frames, and is it made again?"""
        session, board, script, chunk = self.session, self.session.board, self.session.script, self.session.player.chunk
        points, steps = board.told(), self.stream.steps
        again = script.again(frames, steps, session.player.index) if script.chunks else None
        if again:
            kept, marks = again
            self.anchors, self.wishes = list(anchors(kept)), {**kept["tune"]} if "tune" in kept else self.wishes
            session.prompt = kept.get("say", session.prompt)
            asked = {key: kept[key] for key in KEPT if key in kept}
        else:
            asked, marks = ask(board, frames, chunk == 0, now, session.fps)
            if board.let_go():
                session.tell()
        full = min(self.wishes.get("steps", steps), steps)
        if full != self._pace.full:
            self._pace = Pace(full, self.fewest)
        if not again and self._pace.steps < steps:
            asked["steps"] = self._pace.steps
        record = {"chunk": chunk, "frames": frames, **asked, **session.journal.news(
            points=points, hold=(board.hold.grips, board.hold.rest))}
        if chunk == 0:
            record["points"] = points
        if session.hand.samples:
            record["hand"] = list(session.hand.samples)
            session.hand.samples.clear()
        return record, marks, again is not None
