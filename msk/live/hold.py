"""What goes along with the hand's points, and what stays: things, the rest of the picture, the camera's grid (see msk.grip).

A group of points that move as one is kept in a session as

    {"ids": [...], "origin": [[x, y] or null, ...], "at": [[x, y], ...], "way": [[turn, shift as four numbers], ...],
     "unseen": {"3": [frames], ...}, "seed": [x, y], "points": [ids of the hand's points on it]}

where `at` (by default the origin) is what `way`, frame by frame, turns and shifts; without a way it stands. Only things have
a seed: the place in the picture where they were taken hold of. A group with "beside": n is of the rest, close about the
thing of group n.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..grip import Thing, speaking
from .flight import Flight
from .points import Point

FAR = (-1.0, -1.0)
MOST_THINGS = 24


class Hold:
    """The things of one stream, nearest first, and all the rest. `name()` gives a track id that is free.

    cut(picture [H, W, 3] uint8, place) -> mask: how things are found; None: points are alone. rest: does all stay that no
    hand moves? longest: step of a thing in one frame, in pixels.
    """

    def __init__(self, width: int, height: int, name: Callable[[], int], stride: int = 8, cut: Callable | None = None,
                 rest: bool = False, longest: float | None = None):
        self.size, self.name, self.stride, self.cut, self.longest = (width, height), name, stride, cut, longest
        self.grips, self.rest = cut is not None, rest
        self.flight = Flight(width, height, name)
        self.things: list[Thing] = []

    @property
    def ids(self) -> set[int]:
        """Track ids that are in use."""
        things = [*self.things, *(thing.beside for thing in self.things if thing.beside)]
        return {i for thing in things for i in thing.ids} | {p[0] for p in self.flight.points}

    def reset(self, points: list[Point]) -> None:
        """All is in the picture again, where it was."""
        self.flight.reset()
        self.things = list(dict.fromkeys(p.thing for p in points if p.thing is not None))
        for thing in self.things:
            for part in (thing, thing.beside) if thing.beside else (thing,):
                part.turn, part.shift, part.depth = 1 + 0j, 0j, None
            self._lay(thing)

    def under(self, place: complex) -> Thing | None:
        """The nearest thing that is now at this place."""
        return next((t for t in self.things if t.covers(np.array(place), wide=False)), None)

    def of(self, origin: complex) -> Thing | None:
        """The thing that this place of the picture belongs to, as far as is known."""
        return next((t for t in self.things if t.covers(np.array(origin), (1, 0), wide=False)), None)

    def join(self, point: Point, thing: Thing | None) -> None:
        """The point takes hold of a thing; None: of its spot alone."""
        point.thing, point.looked = thing, True
        if thing is not None:
            thing.ids = thing.ids or self._names(len(thing.origins))
            self.raise_(thing)
            self._lay(thing)

    def _lay(self, thing: Thing) -> None:
        """Name the points beside a thing, unless the camera has moved: where they would be then is not known."""
        if thing.beside and not thing.beside.ids and not self.flight.moved:
            thing.beside.ids = self._names(len(thing.beside.origins))

    def raise_(self, thing: Thing) -> None:
        """What was taken last lies above."""
        if thing in self.things:
            self.things.remove(thing)
        self.things.insert(0, thing)

    def find(self, picture: np.ndarray, place: complex, known: list[Thing]) -> Thing | None:
        """The thing at this place of the picture, beside those that are known. It takes a while, and changes nothing."""
        return Thing.at(picture, place, self.stride, known, self.cut) if len(known) < MOST_THINGS else None

    def _names(self, count: int) -> list[int]:
        """So many track ids that nobody has."""
        names: dict[int, None] = {}
        while len(names) < count:
            names[self.name()] = None
        return list(names)

    def frames(self, count: int, first: bool, points: list[Point], paths: list[list[complex]]
               ) -> tuple[list[tuple], list[dict]]:
        """What is told beside the hand's points [N], which go along paths [N][frames]: the camera's grid while it flies, as
        (track id, mark id, places, seen, origin), and the groups.
        """
        self.things = [t for t in self.things if any(p.thing is t for p in points) or self._near(t)]
        for thing in self.things:
            if thing.beside and not self._near(thing.beside):       # though a hand holds the thing, and it is here
                thing.beside.ids = []
        told = [t for t in self.things if self.rest or any(p.thing is t for p in points)]
        beside = [t.beside for t in told if self.rest and t.beside and t.beside.ids]
        flies, parts = self.flight.flies, [*told, *beside]
        grid, moves = self.flight.frames(count, first, stays=self.rest)
        own, speaks, ways = self.flight.points, [], []
        known = np.array([p[3] if p[3] is not None else complex(*FAR) for p in own], complex)
        free = lambda origins: ~np.logical_or.reduce([t.covers(origins, (1, 0)) for t in told] + [origins != origins])
        said = free(known)                              # on a thing a point of the rest would hold back a part of it
        says = [*(np.ones(len(t.origins), bool) for t in told), *(free(part.origins) for part in beside)]
        own = [p for p, say in zip(own, said) if say]
        ends = np.cumsum([len(own), *(say.sum() for say in says[len(told):])])[:-1]
        for i in range(count):
            for thing in self.things:
                self._go(thing, [(p.origin, path[i]) for p, path in zip(points, paths) if p.thing is thing], moves[i])
                if thing.beside and thing.beside.ids:
                    self._go(thing.beside, [], moves[i])
            ways.append([(part.turn, part.shift) for part in parts])
            spots = [path[i] for p, path in zip(points, paths) if p.thing is None]
            grid[i] = [place for place, say in zip(grid[i], said) if say]
            still = np.concatenate([np.array(grid[i], complex),
                                    *(part.here()[say] for part, say in zip(beside, says[len(told):]))])
            *of_things, of_rest = speaking(told, ways[i][:len(told)], still, spots, self.size)
            of_grid, *of_beside = np.split(of_rest, ends)
            speaks.append([*of_things, *of_beside, of_grid])
        groups = []
        for k, (part, say) in enumerate(zip(parts, says)):
            way = [[round(v, 5) for z in frame[k] for v in (z.real, z.imag)] for frame in ways]
            if not say.any():
                continue
            ids = [i for i, on in zip(part.ids, say) if on]
            groups.append(_group(ids, part.origins[say], [s[k] for s in speaks]) | {"way": way} | (
                {"seed": pair(part.seed), "points": [p.id for p in points if p.thing is part]} if k < len(told)
                else {"beside": next(n for n, thing in enumerate(told) if thing.beside is part)}))
        if flies:
            rows = [(p[0], p[4], [at[n] for at in grid], [bool(s[-1][n]) for s in speaks], p[3]) for n, p in enumerate(own)]
            return rows, groups
        if own:
            groups.append(_group([p[0] for p in own], [p[3] for p in own], [s[-1] for s in speaks])
                          | {"at": [pair(p[1]) for p in own]})
        return [], groups

    def _near(self, thing: Thing) -> bool:
        """Not so far behind the camera, or so near to it, that it may be forgotten?"""
        return abs(thing.here().mean()) < 20 * max(self.size) and 0.05 < abs(thing.turn) < 20

    def _go(self, thing: Thing, led: list[tuple[complex, complex]], move: Callable | None) -> None:
        """One frame of a thing: where the hand leads it, else with the camera, else it stays."""
        if led:
            thing.lead(*zip(*led), self.longest)
        elif move is not None:
            centre = thing.here().mean()
            z = self.flight.depth(centre) if thing.depth is None else thing.depth
            (after, thing.depth), (beside, _) = move(centre, z), move(centre + 1, z)
            turn = thing.turn * (beside - after)
            thing.shift = after - turn * (centre - thing.shift) / thing.turn
            thing.turn = turn

    def again(self, groups: list[dict], flown: list[tuple], points: dict[int, Point], found: list[Thing | None]) -> None:
        """Be as a kept session left it: its last chunk's `groups`, and the camera's rows (track id, place, origin).

        found: the thing of each group, None where it is none.
        """
        self.things = [thing for thing in found if thing is not None]
        for group, thing in zip(groups, found):
            if "beside" in group:
                whose = found[group["beside"]]
                thing = whose and whose.beside
            elif "seed" not in group:
                flown = zip(group["ids"], group.get("at", group["origin"]), group["origin"])
            if thing is not None:
                thing.turn, thing.shift = (complex(*group["way"][-1][k:k + 2]) for k in (0, 2))
                thing.ids = [int(i) for i in group["ids"]] if len(group["ids"]) == len(thing.origins) else []
                for point in (points[i] for i in group.get("points", []) if i in points):
                    point.thing, point.looked = thing, True
        self.flight.points = [[i, complex(*at), self.flight.depth(complex(*at)), o and complex(*o), k]
                              for k, (i, at, o) in enumerate(flown) if at is not None]
        self.flight.moved |= any(p[3] is None or p[3] != p[1] for p in self.flight.points)
        for thing in self.things:                       # what has another number of points now gets other names
            thing.ids = thing.ids or self._names(len(thing.origins))
            self._lay(thing)


def pair(place: complex | None) -> list[float] | None:
    """Pixels as they are asked and kept, so that what is written is what is read again."""
    if place is None:
        return None
    return [round(float(place.real), 3), round(float(place.imag), 3)] if math.isfinite(abs(place)) else [0.0, 0.0]


def _group(ids: list[int], origins, seen: list[np.ndarray]) -> dict:
    hidden = np.argwhere(~np.stack(seen, axis=1)).tolist()                          # [[point, frame], ...]
    group = {"ids": list(ids), "origin": [pair(o) for o in origins]}
    if hidden:
        group["unseen"] = {str(n): [i for m, i in hidden if m == n] for n in {n for n, _ in hidden}}
    return group


def told(groups: list[dict], frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups of one chunk as xy [T, N, 2], visible [T, N], ids [N], origin [N, 2]."""
    xy, visible, ids, origins = [torch.zeros(frames, 0, 2)], [torch.zeros(frames, 0, dtype=torch.bool)], [], []
    for group in groups:
        origin = [o if o is not None else (torch.nan, torch.nan) for o in group["origin"]]
        at = np.array(group.get("at", origin), float).reshape(-1, 2) @ np.array([1, 1j])
        way = np.array(group.get("way") or [[1, 0, 0, 0]] * frames, float)
        turn, shift = (way[:, k] + 1j * way[:, k + 1] for k in (0, 2))
        places = turn[:, None] * at + shift[:, None]                                                    # [T, N]
        seen = np.ones(places.shape, bool)
        for n, when in group.get("unseen", {}).items():
            seen[when, int(n)] = False
        xy.append(torch.from_numpy(np.stack([places.real, places.imag], axis=-1)).float())
        visible.append(torch.from_numpy(seen))
        ids += group["ids"]
        origins += origin
    return (torch.cat(xy, 1), torch.cat(visible, 1), torch.tensor(ids, dtype=torch.long),
            torch.tensor(origins, dtype=torch.float32).reshape(-1, 2))
