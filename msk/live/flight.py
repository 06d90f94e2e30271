"""A camera under the hand: moves asked for bit by bit become a grid of tracks that carries the whole picture.

A move has six parts: `right` and `down` in widths of the picture, `zoom` in doublings, `roll` and `orbit` in degrees,
`dolly` in units of depth. No depth is known, so one is guessed: what is low in the picture is near.
MotionStream (2511.01266 v5), section 4.2; the finished moves of msk.camera, cut into frames.
"""
from __future__ import annotations

import math
from collections.abc import Callable

from .points import MOVE

CELLS = 6                           # the grid: so many columns and rows
MOST = {"right": 2.0, "down": 2.0, "zoom": 2.0, "roll": 180.0, "orbit": 60.0, "dolly": 1.5}    # that may be waiting
STEP = {"right": 0.02, "down": 0.02, "zoom": 0.04, "roll": 1.5, "orbit": 0.8, "dolly": 0.02}   # of a frame, at most
SMOOTH = 0.2                        # share of what is asked for that one frame does
REST = 12                           # frames for which the picture is held still after a move


class Flight:
    """The camera of one stream. `name()` gives a track id that is free."""

    def __init__(self, width: int, height: int, name: Callable[[], int]):
        self.width, self.height, self.name = width, height, name
        self.reset()

    def reset(self) -> None:
        self.asked = dict.fromkeys(MOVE, 0.0)
        self.points: list[list] = []            # [track id, place, depth, origin or None, mark id]
        self._rest, self._moved = 0, False

    def ask(self, move: dict[str, float]) -> dict[str, float]:
        """Add to what is to be done; what was taken of it, within bounds."""
        taken = {}
        for part, amount in move.items():
            most = MOST[part]
            now = min(max(self.asked[part] + amount, -most), most)
            taken[part], self.asked[part] = now - self.asked[part], now
        if any(taken.values()):
            self._rest = REST
        return taken

    @property
    def flies(self) -> bool:
        return self._rest > 0

    def frames(self, count: int, first: bool, near: Callable[[int, complex], bool]) -> list[tuple]:
        """(track id, mark id, places, seen, origin) of the grid over so many frames; [] while the camera says nothing.

        near(frame, place): a point speaks there, so the camera does not. first: the first frame is the picture itself.
        """
        if not self.flies:
            self.points.clear()
            return []
        self._fill()
        places, seen = [[] for _ in self.points], [[] for _ in self.points]
        for i in range(count):
            if not (first and i == 0):
                self._step()
            for n, point in enumerate(self.points):
                places[n].append(point[1])
                seen[n].append(self._inside(point[1]) and not near(i, point[1]))
        return [(p[0], p[4], places[n], seen[n], p[3]) for n, p in enumerate(self.points)]

    def _inside(self, place: complex) -> bool:
        return 0 <= place.real < self.width and 0 <= place.imag < self.height

    def _fill(self) -> None:
        """One point in every cell: what has left is forgotten, and an empty cell gets a new one."""
        def cell(place: complex) -> int:
            return int(place.imag * CELLS / self.height) * CELLS + int(place.real * CELLS / self.width)

        by_cell = {cell(p[1]): p for p in self.points if self._inside(p[1])}
        for k in range(CELLS * CELLS):
            if k not in by_cell:
                row, column = divmod(k, CELLS)
                place = complex((column + 0.5) * self.width / CELLS, (row + 0.5) * self.height / CELLS)
                depth = 1.6 - 0.9 * place.imag / self.height
                by_cell[k] = [self.name(), place, depth, None if self._moved else place, k]
        self.points = [by_cell[k] for k in sorted(by_cell)]
        for k, point in enumerate(self.points):
            point[4] = k

    def _step(self) -> None:
        """One frame's part of what is asked for, done to every point."""
        move = {}
        for part, left in self.asked.items():
            step = min(max(SMOOTH * left, -STEP[part]), STEP[part])
            if abs(left) < 0.02 * STEP[part]:
                step = left
            move[part], self.asked[part] = step, left - step
        if not any(move.values()):
            self._rest -= 1
            return
        self._rest, self._moved = REST, True
        centre, focal = complex(self.width / 2, self.height / 2), float(self.width)
        a, turn = math.radians(move["orbit"]), 2.0 ** move["zoom"] * complex(math.cos(math.radians(move["roll"])),
                                                                            math.sin(math.radians(move["roll"])))
        shift = complex(move["right"], move["down"]) * self.width
        for point in self.points:
            place, z = point[1] - centre, point[2]
            x, y = place.real / focal * z, place.imag / focal * z
            x, z = math.cos(a) * x + math.sin(a) * (z - 1), 1 - math.sin(a) * x + math.cos(a) * (z - 1) - move["dolly"]
            z = max(z, 0.05)
            point[1], point[2] = centre + turn * complex(x / z, y / z) * focal - shift, z
