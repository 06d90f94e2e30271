"""The same weights, faster: attention by the clock, blocks and decoder compiled, products in fp8. For GPUs.

Nothing else knows of it. The plain path stays as it is, and is what every row of `msk bench` is compared with.
"""
from __future__ import annotations

import os
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from . import attention
from .encoders import MixedVAE
from .kit import Kit
from .offload import Lent
from .tinyvae import TinyVAE

FP8 = torch.float8_e4m3fn


def prepare(kit: Kit, compiler: str | None = "inductor", fp8: bool = False, clock: bool = True) -> dict:
    """Make a kit faster where it stands, once it is on its device and in its dtype; -> what was done, for a report.

    compiler: torch.compile's backend, or None. What it makes is kept in $TORCHINDUCTOR_CACHE_DIR or ~/.cache/msk/compiled
    for the next run. Shapes are static: the first chunks, whose past still grows, are compiled apart, and from then on
    nothing is. fp8: the products of attention and feed-forward, see `Float8Linear`. clock: time what attention there is.
    """
    done: dict = {}
    if clock:
        done["attention_ms"] = attention.choose(kit.device, kit.dtype, *sizes(kit))
    if fp8:
        done["fp8_products"] = to_fp8(kit.dit)
    if compiler and kit.preset.stream.places != "absolute":                     # there every chunk has angles of its own
        if "torchinductor_" in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torchinductor_"):     # torch chose: in /tmp
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
                Path(os.environ.get("MSK_CACHE") or Path.home() / ".cache" / "msk") / "compiled")
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        setattr(torch._dynamo.config, limit, max(16, getattr(torch._dynamo.config, limit)))     # a past of 21 latents grows
        constants()
        if not hasattr(attention._record, "_torchdynamo_disable"):              # who looks on is no part of a graph
            attention._record = torch.compiler.disable(attention._record)
        for block in kit.dit.blocks:                                            # one graph for all: they differ in weights
            block.compile(backend=compiler, dynamic=False)
        if isinstance(kit.vae, (TinyVAE, MixedVAE)):
            kit.vae.decode = torch.compile(kit.vae.decode, backend=compiler, dynamic=False)
        done["compiled"] = compiler
    return done


def sizes(kit: Kit) -> tuple[int, int, int, int]:
    """Of self-attention in the steady state: queries, keys (tokens), heads, channels of a head."""
    c, s = kit.dit.config, kit.preset.stream
    each = prod(c.token_grid(kit.geometry.latent_size))
    return s.chunk * each, (s.budget or s.chunk * (s.sink + s.window + 1)) * each, c.heads, c.dim // c.heads


def constants() -> None:
    """What compiled code takes as it is: rotary tables, which `turns` keeps already, and traced would be made anew; and the
    packages that are here, as nothing can be imported in a graph."""
    found = attention._packages()
    attention._packages = lambda: found
    if not hasattr(attention.turns, "plain"):
        plain = attention.turns

        def turns(grid, start, dim, device):
            return plain(grid, start, dim, device)

        turns.plain = plain
        attention.turns = torch.compiler.assume_constant_result(turns)


class Float8Linear(nn.Module):
    """A linear layer in e4m3: rows of the input and of the weight each have a scale of their own, sums are float32.

    x [..., in] bfloat16 -> [..., out]. Rounded to three bits of mantissa, a product of random numbers is off by 3 to 4 %.
    On CUDA from Ada and Hopper on (8.9, 9.0).
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = self.scale_of(linear.weight.float())
        self.register_buffer("weight", (linear.weight.float() / scale).to(FP8))             # [out, in]
        self.register_buffer("scale", scale.t().contiguous())                               # [1, out]
        self.register_buffer("bias", linear.bias.bfloat16())

    @staticmethod
    def scale_of(x: Tensor) -> Tensor:
        """[N, C] float32 -> [N, 1]: what the largest number of a row must be divided by."""
        return x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / torch.finfo(FP8).max

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        scale = self.scale_of(rows)
        y = torch._scaled_mm((rows / scale).to(FP8), self.weight.t(), scale_a=scale, scale_b=self.scale,
                             out_dtype=torch.bfloat16)
        return (y + self.bias).to(x.dtype).unflatten(0, x.shape[:-1])


def to_fp8(dit: nn.Module) -> int:
    """Swap the products that every pass makes, in place; -> how many. What is read once for a prompt stays as it is."""
    if isinstance(dit.blocks, Lent):
        raise ValueError("blocks that wait in the CPU's memory cannot be made fp8 any more: leave out one of the two")
    swapped = 0
    for block in dit.blocks:
        for owner, names in ((block.self_attn, "qkvo"), (block.cross_attn, "qo"), (block.ffn, "02")):
            for name in names:
                linear = getattr(owner, name)
                if linear.in_features % 16 == 0 and linear.out_features % 16 == 0:          # else there is no kernel
                    setattr(owner, name, Float8Linear(linear))
                    swapped += 1
    return swapped
