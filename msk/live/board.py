"""The board: points that stand on a picture or in the video it has become, the things they hold, and how deeds are taken
back. It knows no thread and no model: who uses it holds the session's lock.
"""
from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable

from PIL import Image

from ..picture import middle
from .follow import Follow, Follower
from .hold import Hold
from .points import Deeds, Look, Point, Way
from .protocol import BEYOND, MAX_NODES, MAX_POINTS, Mark, ProtocolError

NEAR = 0.15         # of the picture's width: so close to a point, a thing is taken to move with it
MAX_ALL_NODES = 8 * MAX_NODES       # of all paths together


class Board:
    """Points by the page's numbers. `state()` gives the session's: it says whether there is a video already.

    max_id: track ids are smaller; cut, rest: see Hold.
    """

    def __init__(self, geometry, follow: Follow, max_id: int, state: Callable[[], str], cut: Callable | None = None,
                 rest: bool = False):
        self.geometry, self.follow, self.max_id, self.state = geometry, follow, max_id, state
        self.points: dict[int, Point] = {}
        self.hold = Hold(geometry.width, geometry.height, self._new_track, geometry.stride, cut, rest,
                         follow.max_step * geometry.width)
        self.usual = self.wish = cut is not None, rest  # what a new picture begins with: grips, rest
        self.deeds = Deeds()
        self.held: dict[int, Look] = {}                 # points that are in a hand, as they were before
        self._left: deque[tuple[complex, complex]] = deque(maxlen=MAX_POINTS)   # place and origin of points that have gone
        self._flown = time.monotonic()                  # when the camera was led last
        self._random = random.Random(0)

    @property
    def _runs(self) -> bool:
        return self.state() in ("playing", "paused")

    def __getitem__(self, id: int) -> Point:
        if id not in self.points:
            raise ProtocolError(f"there is no point {id}: it was removed, or never added")
        return self.points[id]

    # -- pictures and videos -----------------------------------------------------------------------------------------

    def clear(self, seed: int) -> None:
        """Another picture, and nothing on it."""
        self._random = random.Random(seed)
        self.points.clear()
        self.hold.grips, self.hold.rest = self.wish
        self._forget_video()
        self.deeds.clear()

    def begin_again(self) -> None:
        """Back to the picture: points return to where they were put on it, those added later are gone."""
        now = time.monotonic()
        for point in list(self.points.values()):
            if point.home is None:
                del self.points[point.id]
            else:
                point.rest_at(point.home, now)
                point.leaving = False
        self._forget_video()
        for point in self.deeds.points():               # one that was taken away may still be wanted back
            if self.points.get(point.id) is not point and point.home is not None:
                point.rest_at(point.home, now)
        self.deeds = self.deeds.from_home(lambda point: point if point.home is not None else None)

    def _forget_video(self) -> None:
        self._left.clear()
        self.held.clear()
        self.hold.reset(list(self.points.values()))

    def wish_as(self, other: Board) -> None:
        """What was chosen on another board is chosen here, as far as it can be."""
        chosen = zip((other.hold.grips, other.hold.rest), other.usual, self.usual)
        grips, rest = (now if now != usual else mine for now, usual, mine in chosen)
        self.wish = grips and self.hold.cut is not None, rest

    def go_on_from(self, other: Board, source: Image.Image, picture: Image.Image) -> int:
        """Take the points of another board where they began in its source, and its deeds; here the picture is given, perhaps
        the same drawn anew. How many are left out: those whose place is not seen here."""
        known, now = {}, time.monotonic()
        theirs, mine, size = other._seen(source), self._seen(picture), (self.geometry.width, self.geometry.height)

        def here(place: complex) -> complex:
            return complex(*((a + v * b - c) / d * side for v, a, b, c, d, side in zip(
                other.share(place), *theirs, *mine, size)))

        def within(place: complex) -> complex:
            return self.place(*self.share(here(place)))

        staying = {point: None for point in other.points.values() if not point.leaving}
        for old in staying | other.deeds.points():
            place = here(old.origin if old.home is None else old.home)
            if all(0 <= v < 1 for v in self.share(place)):
                known[old] = point = Point(old.id, self._new_track(), old.kind, Follower(place, now, self.follow), place,
                                           place, old.way and old.way.seen(within),
                                           looked=old.kind == "pin" and old.thing is None)
                point.rest_at(place, now)
                if old in staying:
                    self.points[point.id] = point
        self.deeds = other.deeds.from_home(known.get, within)
        return len(staying) - len(self.points)

    def _seen(self, source: Image.Image) -> tuple[tuple[float, float], tuple[float, float]]:
        """What is seen here of a given picture: corner and size, in shares of that."""
        left, top, wide, tall = middle(*source.size, self.geometry)
        return (left / source.width, top / source.height), (wide / source.width, tall / source.height)

    # -- places ------------------------------------------------------------------------------------------------------

    def place(self, x: float, y: float, beyond: float = BEYOND) -> complex:
        """Shares of the picture -> pixels, outside it by so much at most."""
        within = lambda share, size: min(max(share, -beyond) * size, (1 + beyond) * size - 1e-3)
        return complex(within(x, self.geometry.width), within(y, self.geometry.height))

    def share(self, place: complex) -> tuple[float, float]:
        return place.real / self.geometry.width, place.imag / self.geometry.height

    def cells(self, id: int, box: tuple, spacing: float) -> dict[int, complex]:
        """Places all over a box (left, top, right, bottom in shares), `spacing` widths apart, by numbers from `id` on."""
        left, top, right, bottom = (v * side for v, side in zip(box, 2 * (self.geometry.width, self.geometry.height)))
        columns, rows = (max(1, int(length / (spacing * self.geometry.width) + 1e-6))
                         for length in (right - left, bottom - top))
        return {id + row * columns + column: complex(left + (column + 0.5) * (right - left) / columns,
                                                     top + (row + 0.5) * (bottom - top) / rows)
                for row in range(rows) for column in range(columns)}

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

    # -- what a hand does --------------------------------------------------------------------------------------------

    def add(self, places: dict[int, complex], kind: str, now: float) -> None:
        """New points, by their numbers."""
        taken = [id for id in places if id in self.points]
        if taken:
            raise ProtocolError(f"there is a point {taken[0]} already: give a new one another number")
        if len(self.points) + len(places) > MAX_POINTS:
            raise ProtocolError(f"there are {len(self.points)} points already, of {MAX_POINTS}: remove some first"
                                + (f", {len(places)} more do not fit" if len(places) > 1 else ""))
        if max(places) > 65535:
            raise ProtocolError("point numbers end at 65535: reload the page")
        if self.state() == "empty":
            raise ProtocolError("there is no picture yet: choose one, then add points")
        for id, place in places.items():
            home, origin = (None, self._origin(place)) if self._runs else (place, place)
            point = self.points[id] = Point(id, self._new_track(), kind, Follower(place, now, self.follow), home, origin)
            self._touch(point)

    def lead(self, id: int, nodes: list[tuple], loop: str, speed: float, now: float) -> None:
        """A point, new or old, goes a way: nodes (seconds, x, y), x and y in shares."""
        others = sum(len(p.way.nodes) for p in self.points.values() if p.way is not None and p.id != id)
        if others + len(nodes) > MAX_ALL_NODES:
            raise ProtocolError(f"all paths together have {others + len(nodes)} nodes: at most {MAX_ALL_NODES} are kept")
        way = Way(tuple((s, self.place(x, y)) for s, x, y in nodes), loop, speed)
        if id in self.points:
            point = self.points[id]
            again = point.way is None or not way.goes_on_as(point.way)
            point.kind, point.way, point.leaving = "path", way, False
            point.played = 0.0 if again else point.played
            self._settle(point)
        else:
            self.add({id: self.place(*self.share(way.start), 0.0)}, "path", now)
            self.points[id].way = way

    def grab(self, ids: Iterable[int], now: float) -> None:
        for point in [self[id] for id in ids]:
            self.held.setdefault(point.id, point.look())
            point.leaving = False
            if point.thing is not None:
                self.hold.raise_(point.thing)
            if point.way is None:
                point.follower.put(point.follower.target, now)
                point.follower.held = True
            if point.kind == "pin":                     # it follows the hand, and stays where it is put
                point.follower.seen = now

    def release(self, ids: Iterable[int], keep: bool) -> None:
        """A hand lets go: of all that it led there is one deed. keep: see Session.release."""
        changes = {}
        for point in [self.points[id] for id in ids if id in self.points]:
            point.follower.held = False
            before = self.held.pop(point.id, None)
            if before is not None and (abs(before.target - point.target) > 0.5 or before.way != point.way):
                changes[point.id] = before, point.look()
            self._settle(point)
            point.leaving = not keep and point.kind == "live"
            if point.leaving and not self._runs:
                self.drop(point.id)
        self.deeds.did(changes)

    def pin(self, ids: Iterable[int], on: bool) -> None:
        for point in [self[id] for id in ids]:
            if on and point.kind != "pin":
                point.way = None
                point.follower.held = False
                point.follower.rest_at(point.follower.at, time.monotonic())
            point.kind = "pin" if on else "live" if point.kind == "pin" else point.kind
            if not on and point.thing is None:
                self._touch(point)

    def drop(self, id: int) -> None:
        point = self.points.pop(id, None)
        if point is not None:
            self.held.pop(id, None)
            if point.thing is None:
                self._left.append((point.follower.at, point.origin))

    def let_go(self) -> bool:
        """Points that were let go and have arrived say no more; were there any?"""
        gone = [p.id for p in self.points.values() if p.leaving and abs(p.follower.at - p.follower.target) < 1]
        for id in gone:
            self.drop(id)
        return bool(gone)

    def grip(self, on: bool) -> None:
        self.hold.grips, self.wish = on, (on, self.wish[1])
        for point in self.points.values():
            self._touch(point)

    def rest(self, on: bool) -> None:
        self.hold.rest, self.wish = on, (self.wish[0], on)

    def fly(self, move: dict[str, float]) -> bool:
        """The camera flies on by so much; is that another deed? One gesture is one."""
        taken, now = self.hold.flight.ask(move), time.monotonic()
        last = self.deeds.last().get("camera") if now - self._flown < 1 else None
        flown = tuple((part, v + (dict(last[1])[part] if last else 0.0)) for part, v in taken.items())
        self.deeds.did({"camera": (tuple((part, -v) for part, v in flown), flown)}, instead=last is not None)
        self._flown = now
        return last is None

    def looks(self, ids: Iterable[int]) -> dict[int, Look | None]:
        """How these points are now, to go back to; None: there is none."""
        return {id: self.points[id].look() if id in self.points else None for id in ids}

    def become(self, what: int | str, wanted) -> None:
        """Be as one of the deeds was before, or after: a point by its number, the camera, grip or rest."""
        if what == "camera":
            self.hold.flight.ask(dict(wanted))
        elif what == "grip":
            self.grip(wanted and self.hold.cut is not None)
        elif what == "rest":
            self.rest(wanted)
        elif wanted is None:
            self.drop(what)
        else:
            self._look_like(what, wanted)

    def _look_like(self, id: int, look: Look) -> None:
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
        self._settle(point)

    def _new_track(self) -> int:
        taken = {p.track_id for p in self.points.values()} | self.hold.ids
        return next(i for i in iter(lambda: self._random.randrange(self.max_id), None) if i not in taken)

    def _touch(self, point: Point) -> None:
        """What is under the point may be known; else the engine will look, and a pin holds but its spot."""
        thing = self.hold.of(point.origin) if self.hold.grips else None
        point.thing, point.looked = None, point.kind == "pin"
        if thing is not None:
            self.hold.join(point, thing)

    def _settle(self, point: Point) -> None:
        """Before the first frame a point is where it was put; what it holds is in the picture."""
        if self.state() in ("opening", "ready", "empty"):
            place = self.place(*self.share(point.target), 0.0)
            moved = place != point.origin
            point.rest_at(place if point.way is None else point.target, time.monotonic())
            point.home = point.origin = place
            if moved:
                self._touch(point)

    # -- told to others ----------------------------------------------------------------------------------------------

    def marks(self) -> list[Mark]:
        return [Mark(p.id, p.kind, *self.share(p.follower.at)) for p in self.points.values()]

    def outlines(self) -> list[list[list[float]]]:
        """What the points have taken hold of, as it lies now."""
        return [[[round(v, 4) for v in self.share(complex(z))] for z in line] for thing in self.hold.things
                if any(p.thing is thing for p in self.points.values()) for line in thing.outlines()]

    def told(self) -> list[dict]:
        """The points as the page and the session file know them; places in shares of the picture."""
        return [self._as_json(p) for p in self.points.values()]

    def _as_json(self, p: Point) -> dict:
        def share(place: complex) -> list[float]:
            return [round(v, 5) for v in self.share(place)]

        x, y = share(p.target)
        told = {"id": p.id, "kind": p.kind, "x": x, "y": y, "leaving": p.leaving, "track": p.track_id,
                "at": share(p.follower.at), "home": None if p.home is None else share(p.home), "origin": share(p.origin)}
        if p.way is not None:
            told |= {"loop": p.way.loop, "speed": p.way.speed, "played": round(p.played, 3),
                     "nodes": [[round(t, 3), *share(place)] for t, place in p.way.nodes]}
        return told

    def restore(self, told: list[dict], running: bool = False) -> None:
        """Be these points, as a session file knows them; what is damaged is passed over."""
        self.points.clear()
        now = time.monotonic()
        for p in told[:MAX_POINTS]:
            try:
                id, kind = int(p["id"]) % 65536, p["kind"] if p["kind"] in ("live", "pin", "path") else "live"
                target, at = self.place(float(p["x"]), float(p["y"])), self.place(*map(float, p["at"]))
                way = None
                if kind == "path":
                    nodes = tuple((float(t), self.place(float(x), float(y))) for t, x, y in p["nodes"][:MAX_NODES])
                    if not nodes or any(b[0] < a[0] for a, b in zip(nodes, nodes[1:])):
                        raise ValueError("the nodes of a path come one after the other")
                    way = Way(nodes, p["loop"], min(max(float(p["speed"]), 0.1), 10.0))
                point = Point(id, int(p["track"]) % self.max_id, kind, Follower(at, now, self.follow), None,
                              self.place(*map(float, p["origin"])), way, float(p.get("played", 0.0)))
                point.home = self.place(*map(float, p["home"])) if p.get("home") else None
                point.looked = kind == "pin"
            except (KeyError, TypeError, ValueError, IndexError, OverflowError):
                continue
            if not running:
                point.rest_at(target, now)
                point.home = point.origin = target
            elif way is None:
                point.follower.put(target, now)
            self.points[id] = point
