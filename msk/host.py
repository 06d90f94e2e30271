"""What the CPU makes for the device, and how it gets there: so that nobody waits for what is under way on a GPU."""
from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def send(x: Tensor, device) -> Tensor:
    """x on that device. To a GPU by pinned memory, in its turn; a plain copy would wait for all that was asked before."""
    there, here = torch.device(device).type, x.device.type == "cpu"
    if here and there == "cuda":
        x = pinned(x)
    return x.to(device, non_blocking=here and there != "mps")       # on MPS such a copy may read what is gone by then


def pinned(x: Tensor) -> Tensor:
    """x in memory that a GPU reads by itself; made whole first, as torch cannot pin what repeats itself (`expand`)."""
    return x.contiguous().pin_memory()


def fetch(x: Tensor) -> Tensor:
    """x on the CPU, by pinned memory; waits until it is there."""
    here = x.to("cpu", non_blocking=x.is_cuda)              # so torch takes pinned memory
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()
    return here


@lru_cache(maxsize=16)
def rates(count: int, device: torch.device) -> Tensor:
    """10,000 ** -(i / count) of the sinusoids for ids and noise levels, [count] float32.

    By the CPU wherever they are used: times a large id, the last digit of a rate is seen.
    """
    with torch.inference_mode(False), torch.no_grad():
        return send(torch.exp(torch.arange(count, device="cpu") * (-math.log(10_000) / count)), device)
