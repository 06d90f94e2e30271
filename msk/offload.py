"""Blocks that wait in the CPU's memory for their turn: what no card holds still runs, slower, and to the bit alike."""
from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .config import Preset
from .host import pinned
from .kit import Kit

SPARE = 0.85        # of a card's memory, what may be counted on: contexts, kernels' own work, fragments


def working(preset: Preset, each: int = 2) -> int:
    """Bytes that a stream takes beside its weights, each number so many: what it remembers, and one chunk's work.

    Keys and values count twice, in the cache and in the past that is made of it for a chunk.
    """
    c, s, (h, w) = preset.dit, preset.stream, preset.geometry.latent_size
    tokens = h * w // c.patch_volume                                    # of one latent frame
    held = s.budget or s.chunk * (s.sink + s.window)                    # latent frames remembered
    return (2 * 2 * c.layers * held * tokens * c.dim + s.chunk * tokens * (4 * c.dim + 2 * c.ffn_dim)) * each


def asked(layers: int) -> int | None:
    """How many of so many blocks are to wait, as $MSK_OFFLOAD says; None where it says nothing."""
    said = os.environ.get("MSK_OFFLOAD", "")
    if not said:
        return None
    if not said.isdecimal() or int(said) in (1, 2) or int(said) > layers:
        more = f", or 3 to {layers} blocks: two have places on the device" if layers > 2 else f": there are {layers} blocks"
        raise ValueError(f"MSK_OFFLOAD={said}: use 0{more}")
    return int(said)


def wanted(kit: Kit, device: torch.device, dtype: torch.dtype) -> int:
    """How many blocks are to wait in the CPU's memory: as $MSK_OFFLOAD says, else as many as the GPU has no room for.

    kit: in float32, or on the meta device; nothing of it is touched.
    """
    layers = len(kit.dit.blocks)
    if (said := asked(layers)) is not None:
        return said
    if device.type != "cuda":
        return 0
    each = dtype.itemsize
    weights, block = (each * sum(p.numel() for p in module.parameters()) for module in (kit.dit, kit.dit.blocks[0]))
    weights += sum(p.nbytes for p in kit.vae.parameters())              # a full one keeps its float32
    room = SPARE * torch.cuda.get_device_properties(device).total_memory
    return needed(weights + working(kit.preset, each), block, layers, room)


def needed(size: int, block: int, layers: int, room: float) -> int:
    """Blocks that must wait, of so many bytes each, for `size` bytes to fit in: two places for them stay on the device."""
    short = size - room
    if short <= 0:
        return 0
    count = 2 + -int(-short // block)
    if count > layers:
        raise MemoryError(f"{(size - (layers - 2) * block) / 2**30:.1f} GiB are needed even with all {layers} blocks in the "
                          f"CPU's memory, and {room / 2**30:.1f} are there: use a smaller model, or a shorter window")
    return count


def lend(kit: Kit, count: int, device: torch.device, dtype: torch.dtype) -> Kit:
    """`kit.to(device, dtype)`, but for `count` blocks, which the device never holds together. In place."""
    kit.to(dtype=dtype)
    kit.dit.blocks = Lent(kit.dit.blocks, count, device)
    for module in kit.modules().values():
        module.to(device)
    return kit


class Lent(nn.ModuleList):
    """A transformer's blocks, `count` of which live in the CPU's memory and share two places on the device.

    Whoever goes through them, as every pass does, meets each block on the device: while one works, the next of those that
    wait is copied, on a stream of its own. Those that stay lie evenly between. Weights alone: nothing here is trained.
    One pass at a time, as there are but two places: another thread's waits for its end.
    """

    def __init__(self, blocks: nn.ModuleList, count: int, device):
        super().__init__(blocks)
        self.passing = threading.RLock()
        if not 3 <= count <= len(self):
            raise ValueError(f"{count} of {len(self)} blocks are to wait, which saves nothing, as two have places on the "
                             f"device: use 3 to {len(self)}")
        self.turns = [i * len(self) // count for i in range(count)]     # numbers of those that wait
        device = torch.device(device)
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        keep = pinned if self.copies else lambda x: x
        self.home = {i: [keep(x.data) for x in tensors(self[i])] for i in self.turns}
        self.places = [[torch.empty_like(x, device=device) for x in self.home[0]] for _ in range(2)]
        self.held: list[int | None] = [None, None]                      # which block is in each place, or on its way there
        self.there = [torch.cuda.Event() for _ in range(2)] if self.copies else None
        for i in self.turns:
            self._point(i, self.home[i])

    def __iter__(self) -> Iterator[nn.Module]:
        with self.passing:
            for i, block in enumerate(super().__iter__()):
                if i not in self.home:
                    yield block
                    continue
                place = self._arrived(i)
                self._point(i, self.places[place])
                try:
                    yield block
                finally:                                                # the last pass may end before its last block does
                    self._point(i, self.home[i])
                    self._bring(self._after(i, 2), place)

    def state_dict(self, *args, **kwargs) -> dict:
        with self.passing:                                              # then all are at home
            return super().state_dict(*args, **kwargs)

    def _after(self, i: int, steps: int) -> int:
        """The one whose turn it is so many turns after i; after the last pass comes the next."""
        return self.turns[(self.turns.index(i) + steps) % len(self.turns)]

    def _arrived(self, i: int) -> int:
        """The place where block i is, once it is there."""
        if i not in self.held:                                          # at first, or after a pass that was broken off
            self._bring(i, 0)
            self._bring(self._after(i, 1), 1)
        place = self.held.index(i)
        if self.copies:
            torch.cuda.current_stream(self.copies.device).wait_event(self.there[place])
        return place

    def _bring(self, i: int, place: int) -> None:
        """Copy block i to a place, in the copies' own time: after all that was asked of the place's last block."""
        self.held[place] = i
        if self.copies:
            self.copies.wait_stream(torch.cuda.current_stream(self.copies.device))
        with torch.cuda.stream(self.copies):                            # None: in the usual order
            for there, here in zip(self.places[place], self.home[i]):
                there.copy_(here, non_blocking=True)
            if self.copies:
                self.there[place].record(self.copies)

    def _point(self, i: int, where: list[Tensor]) -> None:
        for x, data in zip(tensors(self[i]), where):
            x.data = data

    def _apply(self, fn, recurse: bool = True) -> Lent:
        """What is done to all weights (`to`) is done to those that stay."""
        for i, block in enumerate(super().__iter__()):
            if i not in self.home:
                block._apply(fn, recurse)
        return self


def tensors(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]
