"""What a stream remembers: the first chunks for good, the latest ones for a while."""
from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

KV = tuple[Tensor, Tensor]          # keys (before RoPE) and values, [B, L, heads, D]


class ChunkCache:
    """Sinks and window, both counted in chunks; what they hold never changes, so memory is constant. Sec. 3.2."""

    def __init__(self, sink: int = 1, window: int = 1):
        if sink < 0 or window < 0:
            raise ValueError(f"sink {sink} and window {window} count remembered chunks: use 0 or more")
        self.sink, self.window = sink, window
        self.made = 0                                           # pieces pushed so far: the number of the next one
        self._sinks: list[tuple[int, list[KV]]] = []            # with their numbers
        self._recent: deque[tuple[int, list[KV]]] = deque(maxlen=window)

    def push(self, kvs: list[KV]) -> None:
        """Remember one clean chunk (a pair per layer); the oldest in the window is forgotten."""
        (self._sinks if len(self._sinks) < self.sink else self._recent).append((self.made, kvs))
        self.made += 1

    def past(self) -> list[KV] | None:
        """One pair per layer, sinks first; None while nothing is remembered."""
        return join([kvs for _, kvs in (*self._sinks, *self._recent)])

    def held(self) -> tuple[list[int], list[int]]:
        """Numbers of what is remembered: sinks, window."""
        return [n for n, _ in self._sinks], [n for n, _ in self._recent]

    def anchor(self, pieces: int = 1) -> None:
        """Of all that is remembered keep the latest pieces: they are the new sinks."""
        latest = [*self._sinks, *self._recent][-pieces:]
        self._sinks = latest[:self.sink]
        self._recent = deque(latest[self.sink:], maxlen=self.window)

    def loosen(self) -> None:
        """The sinks are none any more: they are remembered for as long as any other piece."""
        self._recent, self._sinks = deque([*self._sinks, *self._recent], maxlen=self.window), []

    def resize(self, sink: int, window: int) -> None:
        """From now on remember so many; what is held already is held on to as far as it fits."""
        held = [*self._sinks, *self._recent]
        self.sink, self.window = sink, window
        self._sinks, self._recent = held[:sink], deque(held[sink:], maxlen=window)

    def forget(self, number: int = 0, sinks: bool = True) -> None:
        """Be as before the piece of this number came; without `sinks`, those stay."""
        self._sinks, self.made = ([] if sinks else self._sinks), number
        self._recent.clear()

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for _, kvs in (*self._sinks, *self._recent) for pair in kvs for x in pair)


class FrameCache(ChunkCache):
    """Sinks and budget in latent frames: with a chunk of n, the sinks and the latest `budget - sink - n` others are seen.

    So WanTrack and the models after Self Forcing count: what is seen and what is being made share one window.
    """

    def __init__(self, sink: int, budget: int):
        super().__init__(sink, budget - sink)
        self.budget = budget

    def resize(self, sink: int, budget: int) -> None:
        self.budget = budget
        super().resize(sink, budget - sink)

    def push(self, kvs: list[KV], frames: int) -> None:
        """Remember a clean chunk of so many latent frames."""
        for i in range(frames):                         # copies: a view of one frame would keep its whole chunk alive
            super().push([tuple(x.chunk(frames, dim=1)[i].clone() for x in pair) for pair in kvs])

    def past(self, new: int) -> list[KV] | None:
        """What the next `new` latent frames may see."""
        return join([kvs for _, kvs in (*self._sinks, *self._latest(new))])

    def places(self, new: int) -> tuple[int, ...]:
        """Where the frames of `past(new)` and then the new ones stand in the video: each where it was made, as after
        `resize` and `anchor` there may be gaps."""
        return *(n for n, _ in (*self._sinks, *self._latest(new))), *range(self.made, self.made + new)

    def _latest(self, new: int) -> list[tuple[int, list[KV]]]:
        room = self.budget - self.sink - new
        if room < 0 and self._sinks:
            raise ValueError(f"a chunk of {new} latent frames and {self.sink} sinks do not fit a budget of {self.budget}: "
                             f"use {self.sink + new} or more")
        return list(self._recent)[max(0, len(self._recent) - room):]


def join(pieces: list[list[KV]]) -> list[KV] | None:
    """Keys and values of several pieces, one pair per layer, one after the other; None if there are none."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    return [(torch.cat([k for k, _ in layer], dim=1), torch.cat([v for _, v in layer], dim=1)) for layer in zip(*pieces)]
