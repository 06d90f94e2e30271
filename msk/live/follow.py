"""How a point follows the pointer.

A chunk is made before it is seen, so its path must say where the hand is going to be. While the hand moves, the point
retraces what the hand has done since the last chunk and runs a little ahead at the pointer's speed (`foresight`); spread
over the whole chunk, a steady drag becomes a steady motion. Once the hand rests, the point hurries to it and is there
after half a chunk. A critically damped spring joins the chunks without a jerk, and no
step is longer than the model can follow.

Places are complex numbers x + iy, in pixels; times are seconds.
"""
from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

MAX_TRAIL = 256             # pointer samples remembered for each point
MAX_HAND = 240              # and of all together, for one chunk


@dataclass(frozen=True)
class Follow:
    max_step: float = 0.04      # of the picture's width, per frame
    foresight: float = 0.15     # seconds for which the pointer's speed is believed; 0: never run ahead
    hurry: float = 0.5          # share of a chunk in which a resting pointer is reached
    stiffness: float = 0.7      # of the spring, per frame
    rest: float = 0.1           # seconds without a sample after which the hand counts as resting


@dataclass
class Clock:
    """The page's milliseconds as the server's seconds: the quickest message so far tells the difference."""
    offset: float | None = None
    recent: deque = field(default_factory=lambda: deque(maxlen=200))

    def here(self, t: float, now: float) -> float:
        self.recent.append(now - t / 1000)
        self.offset = min(self.recent)
        return min(t / 1000 + self.offset, now)


class Hand:
    """What a page tells of its pointers: samples [t, id, x, y] since the last chunk, and when, by its own clock."""

    def __init__(self):
        self.samples: deque[list] = deque(maxlen=MAX_HAND)
        self.echo: float | None = None      # the newest time it told, in its milliseconds
        self.clock = Clock()

    def now(self, t: float | None) -> float:
        """The page's time as seconds of this machine; None: it told none, so now."""
        now = time.monotonic()
        if t is None:
            return now
        self.echo = t if self.echo is None else max(self.echo, t)
        return self.clock.here(t, now)


class Follower:
    """One point: where the model was last told it is (`at`), and where the pointer has been since."""

    def __init__(self, at: complex, now: float, follow: Follow | None = None):
        self.follow = follow or Follow()
        self.at = at                        # last place the model was told
        self.speed = 0j                     # pixels per frame
        self.held = False
        self.seen = now                     # the pointer has been followed up to this time
        self.trail: deque[tuple[float, complex]] = deque([(now, at)], maxlen=MAX_TRAIL)

    @property
    def target(self) -> complex:
        """Where the pointer was last."""
        return self.trail[-1][1]

    def put(self, place: complex, time: float) -> None:
        """A new sample; one that is not newer than the last replaces it."""
        if time <= self.trail[-1][0]:
            time, _ = self.trail.pop()
        self.trail.append((time, place))

    def rest_at(self, place: complex, now: float) -> None:
        """Forget the pointer's motion: be at `place`, without a path to it."""
        self.at, self.speed, self.seen = place, 0j, now
        self.trail = deque([(now, place)], maxlen=MAX_TRAIL)

    def _pointer(self, time: float) -> complex:
        """The pointer's place, between its samples; constant before the first and after the last."""
        times = [t for t, _ in self.trail]
        after = bisect_left(times, time)
        if after == 0:
            return self.trail[0][1]
        if after == len(times):
            return self.trail[-1][1]
        (t0, p0), (t1, p1) = self.trail[after - 1], self.trail[after]
        return p0 + (p1 - p0) * ((time - t0) / (t1 - t0))

    def path(self, frames: int, width: float, now: float, includes_now: bool = False) -> list[complex]:
        """The next `frames` places; with `includes_now` the first of them is where the point already is.

        No step is longer than follow.max_step * width. The spring is integrated exactly, about a reference that moves.
        """
        if includes_now:
            return [self.at] + (self.path(frames - 1, width, now) if frames > 1 else [])
        f, (newest, place) = self.follow, self.trail[-1]
        moving = self.held and now - newest < f.rest and f.foresight > 0
        velocity = (place - self._pointer(newest - 0.08)) / 0.08 if moving else 0j

        def reference(time: float) -> complex:
            if time <= newest:
                return self._pointer(time)
            return place + velocity * (time - newest)

        begin, end = self.seen, now + f.foresight if moving else max(now, newest)
        spread = frames if moving else max(1, round(f.hurry * frames))
        longest, decay, places = f.max_step * width, math.exp(-f.stiffness), []
        goal = reference(begin)
        for i in range(1, frames + 1):
            before, goal = goal, reference(begin + (end - begin) * min(1.0, i / spread))
            drift = goal - before                                   # the reference's own step
            error, slip = self.at - before, self.speed - drift
            pull = slip + f.stiffness * error
            step = goal + (error + pull) * decay - self.at
            self.speed = drift + (slip - f.stiffness * pull) * decay
            if abs(step) > longest:
                step *= longest / abs(step)
                self.speed = step
            self.at += step
            places.append(self.at)
        self.seen = max(self.seen, end)
        while len(self.trail) > 1 and self.trail[1][0] < min(self.seen, now) - 0.2:
            self.trail.popleft()
        return places
