"""What a chunk is asked to be, as the session file keeps it: by the board, or again by a kept session."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from ..grip import inside
from .board import Board
from .hold import pair
from .protocol import Mark


def ask(board: Board, frames: int, first: bool, now: float, fps: float) -> tuple[dict, list[list[Mark]]]:
    """What the model is asked for in the next frames, and each frame's marks for the page."""
    points, size = list(board.points.values()), (board.geometry.width, board.geometry.height)
    paths = [point.path(frames, size[0], now, fps, first) for point in points]
    flown, groups = board.hold.frames(frames, first, points, paths)
    asked = ([(p.track_id, p.id, p.kind, path, inside(np.array(path), size).tolist(), p.origin)
              for p, path in zip(points, paths)]                # outside the picture a hand leads its thing, unseen
             + [(track, mark, "camera", path, seen, origin) for track, mark, path, seen, origin in flown])
    marks = [[Mark(id, kind, *board.share(path[i])) for _, id, kind, path, seen, _ in asked
              if seen[i] or kind != "camera"] for i in range(frames)]
    record = {"ids": [a[0] for a in asked], "who": [[a[1], a[2]] for a in asked],
              "xy": [[pair(a[3][i]) for a in asked] for i in range(frames)] if asked else [],
              "origin": [pair(a[5]) for a in asked]}
    if not all(all(a[4]) for a in asked):
        record["seen"] = [[int(a[4][i]) for a in asked] for i in range(frames)]
    if groups:
        record["held"] = groups
    return record, marks


class Script:
    """Chunks of a kept session that are still to be played again on a board. Where they end the video holds; where a hand
    takes over before, it goes on. `note(message)` tells the page."""

    def __init__(self, board: Board, note: Callable[[str], None]):
        self.board, self.note = board, note
        self.chunks: deque[dict] = deque()
        self.clear()
        self.forget()

    def clear(self) -> None:
        """Nothing is to be played again."""
        self.chunks.clear()
        self.skips = False                              # as fast as can be

    def forget(self) -> None:
        """The stream has ended in which it was played."""
        self.hold_at: int | None = None                 # after so many frames, pause
        self._points: list | None = None                # how the session ended
        self._left_off: tuple | None = None             # what was held in the chunk of it that was played last,
        self.resuming: tuple | None = None              # which is to be held again: groups, camera's rows

    def begin(self, chunks: list[dict], points: list | None) -> None:
        self.chunks, self._points = deque(chunks), points

    def take_over(self) -> None:
        """A hand has come in: what is left is not played again."""
        if self.chunks:
            self._leave()
            self._points = self.hold_at = None
            self.note("your hand takes over: the rest of the kept session is left out")

    def _leave(self) -> None:
        """What was held where it is left is to be held again."""
        self.clear()
        self.resuming, self._left_off = self._left_off or self.resuming, None

    def hold_as(self, chunk: dict) -> None:
        """Grips and rest as a chunk has them; one of an old session: neither."""
        hold = self.board.hold
        if "hold" in chunk or not chunk.get("chunk"):
            grips, hold.rest = chunk.get("hold", (False, False))
            hold.grips = grips and hold.cut is not None

    def again(self, frames: int, steps: int, index: int) -> tuple[dict, list[list[Mark]]] | None:
        """The chunk that comes next, from frame `index` of the take on, and its marks; the board becomes what it was then.
        None: it does not fit so many frames in at most so many steps, and the rest is left out."""
        board, record = self.board, self.chunks[0]
        if record["frames"] != frames or record.get("steps", 1) > steps:
            self._leave()
            self.note("the kept session was made in other chunks or steps: it goes on live")
            return None
        self.chunks.popleft()
        if "points" in record:
            board.restore(record["points"], running=True)
        seen, last = record.get("seen"), record["xy"][-1] if record["xy"] else []
        marks = [[Mark(int(id) % 65536, kind, *board.share(complex(*xy))) for n, ((id, kind), xy) in enumerate(
                  zip(record["who"], row)) if kind != "camera" or seen is None or seen[i][n]]
                 for i, row in enumerate(record["xy"])]
        where = {id: complex(*xy) for (id, kind), xy in zip(record["who"], last) if kind != "camera"}
        for point in board.points.values():
            if point.id in where:
                point.follower.rest_at(where[point.id], time.monotonic())
        flown = [(id, at, origin) for id, (_, kind), at, origin in zip(
            record["ids"], record["who"], last, record["origin"]) if kind == "camera"]
        board.hold.flight.moved |= bool(flown)
        self.hold_as(record)
        self._left_off = record.get("held", []), flown
        if not self.chunks:
            if self._points is not None:
                board.restore(self._points, running=True)
            self._leave()
            self.hold_at = index + frames
        return record, marks or [[] for _ in range(frames)]
