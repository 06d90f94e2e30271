"""How many denoising steps a chunk gets: all, as long as there is time for them.

A machine that falls behind would play slowly and answer late. Fewer of the noise levels (`flow.fewer`) cost the tiny student
hardly anything (LOG.md has the figures), so they go first, one by one, and come back when there is time again.
"""
from __future__ import annotations

from collections import deque

LATE = 2        # chunks one after the other that took longer to make than to play, until there is a step less
EARLY = 4       # the same of chunks that would have been in time with a step more, until there is one


class Pace:
    """full: steps of a chunk when there is time; fewest: there are never less; `steps`: of the next one."""

    def __init__(self, full: int, fewest: int = 1):
        self.full, self.fewest = full, max(1, min(fewest, full))
        self.steps = full
        self._share: deque[float] = deque(maxlen=EARLY)

    def took(self, seconds: float, playing: float) -> bool:
        """A chunk that plays for so long took so long to make; did that change the steps of the next one?

        With a step more, all of the time is taken to grow alike, also what does not depend on steps: on the safe side, so
        that a step which has just come back does not go again.
        """
        self._share.append(seconds / playing)
        steps, recent = self.steps, list(self._share)
        if len(recent) >= LATE and min(recent[-LATE:]) > 1:
            self.steps = max(self.fewest, steps - 1)
        elif len(recent) == EARLY and max(recent) * (steps + 1) / steps < 1:
            self.steps = min(self.full, steps + 1)
        if self.steps != steps:
            self._share.clear()
        return self.steps != steps
