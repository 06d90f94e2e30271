"""Where a model looks while it makes a chunk: how much of its attention goes to sink, window and the chunk itself."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch

from ..attention import capture, shares

MOST_LAYERS = 8             # that are looked at, first to last: what is asked of a large model stays little


class Gaze:
    """`with gaze(stream, steps) as rows:` make a chunk in so many denoising steps (None: all); then rows are
    [layer, sink, window, now] of some layers, first to last: shares that sum to 1, mean over heads, in the last step."""

    def __init__(self, kit):
        c, (h, w) = kit.dit.config, kit.geometry.latent_size
        self.blocks, self.tokens = len(kit.dit.blocks), h // c.patch[1] * (w // c.patch[2])     # tokens of a latent frame
        some = min(self.blocks, MOST_LAYERS)
        self.layers = [round(i * (self.blocks - 1) / max(1, some - 1)) for i in range(some)]

    @contextmanager
    def __call__(self, stream, steps: int | None = None) -> Iterator[list[list[float]]]:
        stream.settle()                                         # a clean pass is none of this chunk's
        sink, last, calls, rows = self.sink(stream), (steps or stream.steps) - 1, count(), []

        def read(q, k, mask):
            step, layer = divmod(next(calls), self.blocks)
            return shares(q, k, mask, sink) if step == last and layer in self.layers else None

        with capture(read=read) as seen:
            yield rows
        seen = [one for one in seen if one is not None]
        if seen:                                                # a mirror has no attention
            rows += [[layer, *(round(v, 4) for v in row)] for layer, row in zip(self.layers, torch.stack(seen).tolist())]

    def sink(self, stream) -> int:
        """Tokens that the next chunk will see of the sink, which come first."""
        spans = [(0, 1) if stream.config.budget else stream.config.span(piece) for piece in stream.memory["sink"]]
        return sum(stop - start for start, stop in spans) * self.tokens
