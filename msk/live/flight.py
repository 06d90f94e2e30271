"""A camera under the hand: moves asked for bit by bit become a grid of tracks that carries the whole picture.

A move has six parts: `right` and `down` in widths of the picture, `zoom` in doublings, `roll` and `orbit` in degrees,
`dolly` in units of depth. No depth is known, so one is guessed: what is low in the picture is near.
MotionStream (2511.01266 v5), section 4.2; the finished moves of msk.camera, cut into frames.
"""
from __future__ import annotations

import math
from collections.abc import Callable

from ..grip import REST as CELLS
from .points import MOVE

MOST = {"right": 2.0, "down": 2.0, "zoom": 2.0, "roll": 180.0, "orbit": 60.0, "dolly": 1.5}    # that may be waiting
STEP = {"right": 0.02, "down": 0.02, "zoom": 0.04, "roll": 1.5, "orbit": 0.8, "dolly": 0.02}   # of a frame, at most
SMOOTH = 0.2                        # share of what is asked for that one frame does
STAY = 12                           # frames for which the picture is held still after a move


class Flight:
    """The camera of one stream. `name()` gives a track id that is free."""

    def __init__(self, width: int, height: int, name: Callable[[], int]):
        self.width, self.height, self.name = width, height, name
        self.reset()

    def reset(self) -> None:
        self.asked = dict.fromkeys(MOVE, 0.0)
        self.points: list[list] = []            # [track id, place, depth, origin or None, mark id]
        self._rest, self.moved = 0, False

    def ask(self, move: dict[str, float]) -> dict[str, float]:
        """Add to what is to be done; what was taken of it, within bounds."""
        taken = {}
        for part, amount in move.items():
            most = MOST[part]
            now = min(max(self.asked[part] + amount, -most), most)
            taken[part], self.asked[part] = now - self.asked[part], now
        if any(taken.values()):
            self._rest = STAY
        return taken

    @property
    def flies(self) -> bool:
        return self._rest > 0

    def frames(self, count: int, first: bool, stays: bool = False) -> tuple[list[list[complex]], list[Callable | None]]:
        """Where the grid's points are in so many frames, [frames][points]; and how each frame moves a place of some depth,
        (place, depth) -> (place, depth), or None. first: the first frame is the picture itself.

        The grid is empty while the camera says nothing, unless the picture is to stay where it is.
        """
        if not (self.flies or stays):
            self.points.clear()
        else:
            self._fill()
        places, moves = [], []
        for i in range(count):
            move = self._step() if self.flies and not (first and i == 0) else None
            for point in self.points if move is not None else ():
                point[1], point[2] = move(point[1], point[2])
            places.append([point[1] for point in self.points])
            moves.append(move)
        return places, moves

    def depth(self, place: complex) -> float:
        """A guess: what is low is near."""
        return 1.6 - 0.9 * min(max(place.imag / self.height, 0.0), 1.0)

    def _inside(self, place: complex) -> bool:
        return 0 <= place.real < self.width and 0 <= place.imag < self.height

    def _fill(self) -> None:
        """One point in every cell: what has left is forgotten, and an empty cell gets a new one."""
        def cell(place: complex) -> int:
            return int(place.imag * CELLS / self.height) * CELLS + int(place.real * CELLS / self.width)

        by_cell = {cell(p[1]): p for p in self.points if self._inside(p[1])}
        taken = {p[0] for p in by_cell.values()}        # of the new ones nobody else knows yet
        for k in range(CELLS * CELLS):
            if k not in by_cell:
                row, column = divmod(k, CELLS)
                place = complex((column + 0.5) * self.width / CELLS, (row + 0.5) * self.height / CELLS)
                name = next(i for i in iter(self.name, None) if i not in taken)
                taken.add(name)
                by_cell[k] = [name, place, self.depth(place), None if self.moved else place, k]
        self.points = [by_cell[k] for k in sorted(by_cell)]
        for k, point in enumerate(self.points):
            point[4] = k

    def _step(self) -> Callable | None:
        """One frame's part of what is asked for, as a move of places; None: there is nothing left to do."""
        move = {}
        for part, left in self.asked.items():
            step = min(max(SMOOTH * left, -STEP[part]), STEP[part])
            if abs(left) < 0.02 * STEP[part]:
                step = left
            move[part], self.asked[part] = step, left - step
        if not any(move.values()):
            self._rest -= 1
            return None
        self._rest, self.moved = STAY, True
        centre, focal = complex(self.width / 2, self.height / 2), float(self.width)
        a, turn = math.radians(move["orbit"]), 2.0 ** move["zoom"] * complex(math.cos(math.radians(move["roll"])),
                                                                            math.sin(math.radians(move["roll"])))
        shift = complex(move["right"], move["down"]) * self.width

        def go(place: complex, z: float) -> tuple[complex, float]:
            x, y = ((place - centre) / focal * z).real, ((place - centre) / focal * z).imag
            x, z = math.cos(a) * x + math.sin(a) * (z - 1), 1 - math.sin(a) * x + math.cos(a) * (z - 1) - move["dolly"]
            z = max(z, 0.05)
            return centre + turn * complex(x / z, y / z) * focal - shift, z

        return go
