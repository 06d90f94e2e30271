"""Where a model looks while it makes a chunk: how much of its attention goes to sink, window and the chunk itself."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from PIL import Image
from torch import Tensor

from ..attention import capture, looks, shares
from .replay import packed

MOST_LAYERS = 8             # that are looked at, first to last: what is asked of a large model stays little
GLOW = 255, 196, 87         # of the cells that are looked at


class Gaze:
    """`with gaze(stream, steps) as seen:` make a chunk in so many denoising steps (None: all); of the last step (guided: of
    its pass with text and tracks) it has seen

        layers      [layer, sink, window, now] of some of them, first to last: shares that sum to 1, mean over heads
        cells       where in the sink the place `at` (shares of the picture) looks at the chunk's end: a picture of cells,
                    mean over those layers; only with `at`, and once there is a sink
    """

    def __init__(self, kit):
        self.rows, self.columns = kit.dit.config.token_grid(kit.geometry.latent_size)
        blocks = len(kit.dit.blocks)
        some = min(blocks, MOST_LAYERS)
        self.layers = [round(i * (blocks - 1) / max(1, some - 1)) for i in range(some)]

    @contextmanager
    def __call__(self, stream, steps: int | None = None, at: tuple[float, float] | None = None) -> Iterator[dict]:
        if not hasattr(stream, "config"):                       # no stream of ours, and nobody knows where its sink ends
            yield {}
            return
        stream.settle()                                         # a clean pass is none of this chunk's
        sink, last, seen = self.sink(stream), (steps or stream.steps) - 1, {}
        step, level, asked, layers = -1, None, False, count()

        def begin(dit, given: tuple) -> None:                   # a pass; guided, a step has more, first the one asked for
            nonlocal step, level, asked, layers
            asked, level, layers = given[1] is not level, given[1], count()
            step += asked

        def read(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
            layer = next(layers)
            if not asked or step != last or layer not in self.layers:
                return None
            spot = looks(q[:, [self.token(*at)]], k)[0, 0, :sink] if at is not None else k.new_zeros(0)
            return torch.cat([shares(q, k, mask, sink), spot])

        hook = stream.kit.dit.register_forward_pre_hook(begin)
        try:
            with capture(read=read) as found:
                yield seen
        finally:
            hook.remove()
        found = [one for one in found if one is not None]
        if found:                                               # a mirror has no attention
            found = torch.stack(found).cpu()
            seen["layers"] = [[n, *(round(v, 4) for v in row)] for n, row in zip(self.layers, found[:, :3].tolist())]
            if found.shape[1] > 3:
                seen["cells"] = packed(self.picture(found[:, 3:].mean(0)))

    def sink(self, stream) -> int:
        """Tokens that the next chunk will see of the sink, which come first."""
        spans = [(0, 1) if stream.config.budget else stream.config.span(piece) for piece in stream.memory["sink"]]
        return sum(stop - start for start, stop in spans) * self.rows * self.columns

    def token(self, x: float, y: float) -> int:
        """The token of a place in the last latent frame, counted from the end."""
        row, column = (min(max(int(v * n), 0), n - 1) for v, n in ((y, self.rows), (x, self.columns)))
        return (row - self.rows) * self.columns + column

    def picture(self, weights: Tensor) -> Image.Image:
        """Weights of the sink's tokens as a glow on nothing, all its frames together."""
        cells = weights.unflatten(0, (-1, self.rows, self.columns)).sum(0)
        glow = torch.tensor(GLOW).expand(*cells.shape, 3)
        strength = (255 * cells / cells.max().clamp_min(1e-9)).round()
        return Image.fromarray(torch.cat([glow, strength[..., None]], dim=-1).byte().numpy(), "RGBA")
