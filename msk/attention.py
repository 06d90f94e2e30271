"""Attention, rotary positions, and the one rule that says who may look at whom."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from threading import get_ident
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .host import send


def sees(q, k, sink: int, window: int):
    """May a token of chunk `q` look at a token of chunk `k`? Ints or integer tensors; sink, window in chunks. Sec. 3.2."""
    return (k <= q) & ((k < sink) | (q - k <= window))


def chunk_mask(frames: int, tokens_per_frame: int, chunk: int, sink: int, window: int, device=None) -> Tensor:
    """[L, L] bool, True where the query (row) may look at the key (column); L = frames * tokens_per_frame."""
    index = torch.arange(frames, device=device).div(chunk, rounding_mode="floor").repeat_interleave(tokens_per_frame)
    return sees(index[:, None], index[None, :], sink, window)


def budget_mask(frames: int, tokens_per_frame: int, config, device=None) -> Tensor:
    """`chunk_mask` where a `StreamConfig` has a budget: a query sees the sinks and what fits before its end."""
    ends = torch.empty(frames, dtype=torch.long, device=device)
    for index in range(frames):
        start, stop = config.span(index)
        ends[start:stop] = min(stop, frames)
    k = torch.arange(frames, device=device)
    seen = (k < ends[:, None]) & ((k < config.sink) | (k >= ends[:, None] - (config.budget - config.sink)))
    return seen.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


@lru_cache(maxsize=16)
def turns(grid: tuple[int, int, int], start: int | tuple[int, ...], dim: int, device: torch.device
          ) -> tuple[Tensor, Tensor, Tensor | None]:
    """cos and signed sin [L, 1, D] of every token's angles, and on the CPU both as complex numbers [L, 1, D/2].

    Frames count from `start`, or stand at the places it lists. Angles in float64, tables in float32.
    """
    f, h, w = grid
    rows = columns = 2 * (dim // 6)
    with torch.inference_mode(False), torch.no_grad():
        places = torch.tensor(start) if isinstance(start, tuple) else start + torch.arange(f)

        def angles(size: int, positions: Tensor) -> Tensor:
            return torch.outer(positions.double(), 10_000.0 ** -(torch.arange(0, size, 2).double() / size))

        def spread(of: Callable[[Tensor], Tensor]) -> Tensor:
            """of(angle) for each axis, and only then for all tokens: tables are long, axes are not. -> [L, 1, D/2]"""
            frame, row, column = (send(of(angles(size, at)).float(), device) for size, at in (
                (dim - rows - columns, places), (rows, torch.arange(h)), (columns, torch.arange(w))))
            return torch.cat([frame[:, None, None].expand(f, h, w, -1), row[None, :, None].expand(f, h, w, -1),
                              column[None, None, :].expand(f, h, w, -1)], dim=-1).reshape(f * h * w, 1, dim // 2)

        cos, sin = spread(torch.cos), spread(torch.sin)
        return (cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2),
                torch.complex(cos, sin) if cos.device.type == "cpu" else None)


def rope(x: Tensor, grid: tuple[int, int, int], start: int | tuple[int, ...] = 0) -> Tensor:
    """Rotate x [B, L, heads, D] by the (frame, row, column) of each token; frames count from `start`, or it lists them."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin, turn = turns(tuple(grid), start, x.shape[-1], x.device)
    if x.device.type == "cpu":                      # two to five times faster there
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).type_as(x)
    return torch.addcmul(x * cos, pairs.flip(-1).flatten(-2), sin).type_as(x)


@cache
def _packages() -> dict:
    """FlashAttention 3 and 2, as far as they can be imported: name -> function."""
    found = {}
    for name, module in (("flash-attn 3", "flash_attn_interface"), ("flash-attn 2", "flash_attn")):
        try:
            found[name] = importlib.import_module(module).flash_attn_func
        except (ImportError, AttributeError):
            continue
    return found


_SDPA = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
         "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
_chosen: dict[tuple[str, torch.dtype], str] = {}        # by kind of device and dtype: what `choose` has found fastest


def ways(device, dtype: torch.dtype) -> list[str]:
    """Every attention that may be had there, by name."""
    kind, half = torch.device(device).type, dtype in (torch.bfloat16, torch.float16)
    if kind == "cpu":
        return ["sdpa", "matmul"]
    own = [name for name in _SDPA if name != "math"] if kind == "cuda" else []      # that one only fills the memory
    return [*(_packages() if kind == "cuda" and half else ()), *own, "sdpa"]


def backend(device, dtype: torch.dtype) -> str:
    """Which attention `attend` takes there, by name."""
    device = torch.device(device)
    if chosen := _chosen.get((device.type, dtype)):
        return chosen
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cpu":
        return "matmul" if half else "sdpa"         # torch's CPU SDPA leaves the bf16 dot products unused
    if device.type == "cuda" and half:              # cards that want float16 are older than what FlashAttention takes
        return next(iter(_packages() if dtype == torch.bfloat16 else ()), "sdpa (cuDNN first)")
    return "sdpa"


def choose(device, dtype: torch.dtype, queries: int, keys: int, heads: int, dim: int, repeats: int = 5) -> dict[str, float]:
    """Let the clock decide what `attend` takes on this kind of device: milliseconds of each way at these sizes.

    queries, keys: tokens; dim: of one head. A way that refuses is left out; the fastest stays chosen until the next call.
    """
    device, took = torch.device(device), {}
    q, k, v = (torch.randn(1, n, heads, dim, device=device).to(dtype) for n in (queries, keys, keys))
    wait = lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None
    for name in ways(device, dtype):
        try:
            _by(name, q, k, v, alone=True)
            wait()
            began = perf_counter()
            for _ in range(repeats):
                _by(name, q, k, v, alone=True)
            wait()
        except Exception:                               # no kernel, too old a card, too little memory: each says it its way
            continue
        took[name] = 1000 * (perf_counter() - began) / repeats
    _chosen.pop((device.type, dtype), None)
    if took:
        _chosen[device.type, dtype] = min(took, key=took.get)
    return took


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, kind: str = "self") -> Tensor:
    """q [B, Lq, heads, D], k and v [B, Lk, heads, D] -> [B, Lq, heads * D]; mask [Lq, Lk] bool, True: may look."""
    if _capturing:
        _record(q, k, mask, kind)
    return _by(backend(q.device, q.dtype), q, k, v, mask)


def _by(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, alone: bool = False) -> Tensor:
    """`attend` in the way of that name; of torch's own kernels it comes first, and `alone` lets no other stand in for it."""
    if name.startswith("flash-attn") and mask is None:
        out = _packages()[name](q, k, v)
        return (out[0] if isinstance(out, tuple) else out).flatten(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)               # [B, heads, L, D]
    if name == "matmul":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(-1).to(v.dtype) @ v
    elif q.is_cuda:
        first = [_SDPA[name]] if name in _SDPA and mask is None else []         # it may still refuse other lengths
        with sdpa_kernel(first if alone and first else [*first, *(x for x in _SDPA.values() if x not in first)],
                         set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


@dataclass(eq=False)
class _Capture:
    kind: str
    read: Callable
    found: list = field(default_factory=list)
    thread: int = field(default_factory=get_ident)      # another model may be at work in another one


_capturing: list[_Capture] = []


@contextmanager
def capture(kind: str = "self", read: Callable | None = None):
    """Collect what `read(q, k, mask)` makes of each call in this thread, in layer order. By default its map: [B, Lq, Lk]
    float32 on the CPU, averaged over heads."""
    one = _Capture(kind, read or (lambda *call: looks(*call).cpu()))
    _capturing.append(one)
    try:
        yield one.found
    finally:
        _capturing.remove(one)


@torch.no_grad()
def _record(q: Tensor, k: Tensor, mask: Tensor | None, kind: str) -> None:
    one = next((one for one in tuple(_capturing)[::-1] if one.thread == get_ident()), None)
    if one is not None and one.kind == kind:
        one.found.append(one.read(q, k, mask))


def looks(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Where each query looks: [B, Lq, Lk] float32, rows sum to 1, averaged over heads."""
    total = 0
    for head in range(q.shape[2]):                                                  # one head at a time bounds memory
        scores = q[:, :, head].float() @ k[:, :, head].float().transpose(-1, -2) * q.shape[-1] ** -0.5
        total = total + (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
    return total / q.shape[2]


def shares(q: Tensor, k: Tensor, mask: Tensor | None = None, sink: int = 0, queries: int = 32) -> Tensor:
    """How much of the attention goes to the first `sink` keys, to the window after them, and to the queries' own, the last
    ones: [3], sum 1. So many queries, spread over all, speak for the rest: at Wan's size a whole map would fill the memory.
    """
    own, at = q.shape[1], torch.arange(min(queries, q.shape[1]), device=q.device)
    some = ((at + at * 0.618 % 1) * own / len(at)).long()                           # no row or column of cells is left out
    look = looks(q[:, some], k, None if mask is None else mask[some])
    return torch.stack([part.sum(-1).mean() for part in look.split([sink, k.shape[1] - own - sink, own], dim=-1)])
