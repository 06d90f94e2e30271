"""Points of the canvas: dragged live (green), pinned (red), on a way drawn in advance (blue); and how deeds are taken back.

Places are complex numbers x + iy, in pixels; times are seconds.
"""
from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..grip import Thing
from .follow import Follower

LOOPS = ("once", "loop", "swing")
KINDS = ("live", "pin", "path")
MOVE = ("right", "down", "zoom", "roll", "orbit", "dolly")         # what a camera can do, see flight.py
UNDO_DEPTH = 100


@dataclass(frozen=True)
class Way:
    """Nodes (seconds from the start, place) joined by straight lines, played once, in a loop or there and back."""
    nodes: tuple[tuple[float, complex], ...]
    loop: str = "once"
    speed: float = 1.0

    @property
    def start(self) -> complex:
        return self.nodes[0][1]

    def at(self, seconds: float) -> complex:
        """Where it is after so many seconds of play."""
        length, t = self.nodes[-1][0], max(0.0, seconds * self.speed)
        if length <= 0:
            return self.start
        if self.loop == "loop":
            t %= length
        elif self.loop == "swing":
            t = length - abs(length - t % (2 * length))
        if t >= length:
            return self.nodes[-1][1]
        after = bisect_right(self.nodes, t, key=lambda node: node[0])
        (t0, p0), (t1, p1) = self.nodes[after - 1], self.nodes[after]
        return p0 + (p1 - p0) * ((t - t0) / (t1 - t0))

    def goes_on_as(self, other: Way) -> bool:
        """It lasts as long, as far as rounding on the line can tell: then it is the other one, bent or set otherwise."""
        return abs(self.nodes[-1][0] - other.nodes[-1][0]) < 2e-3

    def moved(self, by: complex) -> Way:
        return self.seen(lambda place: place + by)

    def seen(self, here: Callable[[complex], complex]) -> Way:
        """The same way with each of its places as `here` gives it."""
        return replace(self, nodes=tuple((t, here(place)) for t, place in self.nodes))


@dataclass(eq=False)
class Point:
    id: int                         # the page's number
    track_id: int                   # the model's number, the same for as long as the point lives
    kind: str                       # one of KINDS
    follower: Follower
    home: complex | None            # where it was put on the picture; None: it was added to a running stream
    origin: complex                 # where in the picture lies what it holds
    way: Way | None = None
    played: float = 0.0             # seconds of its way
    leaving: bool = False           # let go: says no more once it has arrived
    thing: Thing | None = None      # what it has taken hold of
    looked: bool = False            # has it been seen what that is?

    @property
    def target(self) -> complex:
        """Where it is wanted; of a way, its start."""
        return self.way.start if self.way is not None else self.follower.target

    def put(self, place: complex, time: float) -> None:
        """A hand's sample: the point follows, a way is moved whole."""
        if self.way is not None:
            self.way = self.way.moved(place - self.way.start)
        else:
            self.follower.put(place, time)

    def rest_at(self, place: complex, now: float) -> None:
        """Be there at once, without a path to it; a way begins again."""
        if self.way is not None:
            self.way, self.played = self.way.moved(place - self.way.start), 0.0
        self.follower.rest_at(place, now)

    def path(self, frames: int, width: float, now: float, fps: float, first: bool) -> list[complex]:
        """The places of the next frames; `first`: the video begins with them, so the first one is where the point is."""
        if self.way is None:
            return self.follower.path(frames, width, now, includes_now=first)
        places, longest = [], self.follower.follow.max_step * width
        for i in range(frames):
            if not (first and i == 0):
                self.played += 1 / fps
                step = self.way.at(self.played) - self.follower.at
                if abs(step) > longest:                             # no quicker than the model can follow
                    step *= longest / abs(step)
                self.follower.at += step
            places.append(self.follower.at)
        self.follower.rest_at(self.follower.at, now)
        return places

    def look(self) -> Look:
        return Look(self, self.kind, self.target, self.way)

    def at_home(self, kind: str, way: Way | None) -> Look:
        """How it would be where it was put on the picture, of this kind and on this way."""
        way = way and way.moved(self.home - way.start)
        return Look(self, kind, self.home, way)


@dataclass(frozen=True)
class Look:
    """How a point was at some moment, to go back to."""
    point: Point
    kind: str
    target: complex
    way: Way | None

    def like(self, other: Look) -> bool:
        """Is it the same, as far as a hand can tell?"""
        if (self.point, self.kind, self.way is None) != (other.point, other.kind, other.way is None):
            return False
        if self.way is None:
            return abs(self.target - other.target) < 1e-3
        mine, theirs = self.way, other.way
        return ((mine.loop, mine.speed, len(mine.nodes)) == (theirs.loop, theirs.speed, len(theirs.nodes))
                and all(abs(s - t) < 1e-3 and abs(p - q) < 1e-3 for (s, p), (t, q) in zip(mine.nodes, theirs.nodes)))


class Deeds:
    """What was done, one deed after the other, each as {what: (before, after)}; taken back and done again."""

    def __init__(self):
        self._done: deque[dict] = deque(maxlen=UNDO_DEPTH)
        self._undone: list[dict] = []

    def did(self, changes: dict, instead: bool = False) -> None:
        """One more deed, or one `instead` of the last."""
        changes = {what: (a, b) for what, (a, b) in changes.items() if a != b}
        if changes:
            if instead:
                self._done.pop()
            self._done.append(changes)
            self._undone.clear()

    def last(self) -> dict:
        """The deed that would be taken back, if nothing has been since."""
        return self._done[-1] if self._done and not self._undone else {}

    def back(self) -> dict:
        """The last deed's {what: before}; {} if there is none."""
        if not self._done:
            return {}
        self._undone.append(self._done.pop())
        return {what: before for what, (before, _) in self._undone[-1].items()}

    def again(self) -> dict:
        """{what: after} of the deed that was taken back last; {} if there is none."""
        if not self._undone:
            return {}
        self._done.append(self._undone.pop())
        return {what: after for what, (_, after) in self._done[-1].items()}

    def from_home(self, anew: Callable[[Point], Point | None], here: Callable = lambda place: place) -> Deeds:
        """These as a video knows them that begins again: points are where they were put on the picture, nobody has flown.

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

        deeds = Deeds()
        for mine, theirs in ((self._done, deeds._done), (self._undone, deeds._undone)):
            for deed in mine:
                changes = {what: pair for what, both in deed.items() if (pair := told(*both)) is not None}
                if changes:
                    theirs.append(changes)
        return deeds

    def points(self) -> dict[Point, None]:
        """All that they know of, also those that are gone."""
        return {look.point: None for deed in (*self._done, *self._undone) for pair in deed.values() for look in pair
                if isinstance(look, Look)}

    def clear(self) -> None:
        self._done.clear()
        self._undone.clear()

    @property
    def counts(self) -> tuple[int, int]:
        """How many can be taken back, and done again."""
        return len(self._done), len(self._undone)
