"""The player: the thread that shows frames when they are due and records them."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from .journal import Journal
from .protocol import Mark


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


class Player:
    """The frames of a take from when they are made until they are shown, `ahead` seconds early, for the journey.

    All but `run` is for those who hold the lock of `changed`. `plays()`: may frames be shown now? `show(frame)` shows one.
    """

    def __init__(self, changed: threading.Condition, journal: Journal, ahead: float, plays: Callable[[], bool],
                 show: Callable[[Frame], None]):
        self.changed, self.journal, self.ahead, self.plays, self.show = changed, journal, ahead, plays, show
        self.frames: deque[Frame] = deque()
        self.era = 0                    # what was made for an era that has ended is not shown
        self.closed = False
        self.clear()

    def clear(self) -> None:
        """Another era: whatever is on its way belongs to the past."""
        self.era += 1
        self.frames.clear()
        self.chunk = self.index = 0     # of the next chunk, of its first frame
        self.next_due = 0.0             # when that should be seen

    def add(self, pictures: Iterable[np.ndarray], marks: list[list[Mark]], echo: float | None, now: float, seconds: float,
            skips: bool = False) -> None:
        """The next chunk's pictures, each to be seen for so many seconds, `now` at the earliest; skips: only the last."""
        due = max(self.next_due, now)
        for i, picture in enumerate(pictures):
            self.frames.append(Frame(picture, self.index + i, self.chunk, marks[i], echo, due + i * seconds,
                                     passed=skips and i + 1 < len(marks)))
        self.next_due, self.chunk, self.index = due + len(marks) * seconds, self.chunk + 1, self.index + len(marks)

    def delay(self, seconds: float) -> None:
        self.frames = deque(replace(f, due=f.due + seconds) for f in self.frames)
        self.next_due += seconds

    def hurry(self) -> None:
        """All that is here is due now."""
        self.next_due = now = time.monotonic()
        self.frames = deque(replace(f, due=now) for f in self.frames)

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.closed and (wait := self._wait()) != 0:
                    self.changed.wait(wait)
                if self.closed:
                    return
                frame, take = self.frames.popleft(), self.journal.take
                self.show(frame)
                self.journal.writing = take is not None
                self.changed.notify_all()               # there is room for one more
            if take is not None:
                self.journal.write(take, frame.picture)

    def _wait(self) -> float | None:
        """Seconds until the next frame is shown; None: until something changes."""
        if not (self.frames and self.plays()):
            return None
        return max(0.0, self.frames[0].due - self.ahead - time.monotonic())
