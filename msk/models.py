"""Every preset at a glance: how big, whose licence, what it takes to run it."""
from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from .config import PRESETS, Preset, TextConfig
from .dit import Block
from .doctor import UMT5_GIB, count
from .kit import assets, device_of, is_kit
from .motion import TrackHead
from .offload import SPARE, working
from .tinyvae import TinyVAE
from .wan import SOURCES

WAN_VAE_GIB = {16: 0.5, 48: 2.8}        # the full autoencoder in float32, by latent channels
CLIP_GIB = 2.4                          # ViT-H/14 in float32
WORDS = 512                             # of umT5's features, whatever the prompt's length

GPUS = (16, 24, 48, 80, 141)            # gigabytes that cards are sold with

FOOTNOTES = """\
memory: while streaming, in bf16; runs on: the smallest usual GPU that this leaves some air; slower on: one with less, where
blocks wait in the CPU's memory and come for each pass (so many as it takes, or MSK_OFFLOAD says).
disk: at most (weights in float32), with autoencoder, umT5 and CLIP, which are needed once per prompt and picture; before a
download its true size is said. umT5 reads on the CPU where a GPU has no room for its 10.6 GiB.
!: no licence is stated for these weights: ask their makers before you use them for more than a look."""


@dataclass(frozen=True)
class Card:
    name: str
    parameters: int         # transformer and track head
    memory_gib: float       # while streaming: weights, what is remembered, and one chunk's work; prompts are read before
    least_gib: float        # the same with all blocks in the CPU's memory but for two, see `offload`
    disk_gib: float         # at most: transformer in float32 as most are published, autoencoder, umT5 in bf16, CLIP
    licence: str
    gpu: bool               # is a GPU needed for more than a try?
    repo: str

    def fits(self, gigabytes: float, waiting: bool = False) -> bool:
        """On a card sold with so many gigabytes, with a little to spare. waiting: with blocks in the CPU's memory."""
        return (self.least_gib if waiting else self.memory_gib) * 2**30 <= SPARE * gigabytes * 1e9

    @property
    def runs_on(self) -> str:
        """The smallest usual card for it."""
        if not self.gpu:
            return "CPU"
        fits = [size for size in GPUS if self.fits(size)]
        return f"GPU {fits[0]} GB" if fits else f"GPU > {GPUS[-1]} GB"

    @property
    def slower_on(self) -> str:
        """The smallest usual card for it with blocks in the CPU's memory, if that is a smaller one."""
        fits = [size for size in GPUS if self.fits(size, waiting=True)] if self.gpu else []
        return f"{fits[0]} GB" if fits and not self.fits(fits[0]) else ""

    @property
    def size(self) -> str:
        """Of its parameters, in words."""
        return f"{self.parameters / 1e9:.2f} B" if self.parameters > 1e9 else f"{self.parameters / 1e6:.1f} M"

    def obstacle(self, device=None) -> str:
        """Why this machine cannot run it, in half a sentence; "" if it can."""
        device = device_of(device)
        if not self.gpu:
            return ""
        if device.type != "cuda":
            return f"it needs a {self.runs_on.replace('GPU', 'GPU of')}, and here is none"
        there = torch.cuda.get_device_properties(device).total_memory
        if self.memory_gib * 2**30 > SPARE * there:
            return f"it needs {self.memory_gib:.1f} GiB while streaming, and this GPU has {there / 2**30:.1f}"
        return ""


@dataclass(frozen=True)
class Offer:
    """A model to choose from a list, as `load` takes it; `why_not`: what stands against it here, or ""."""
    name: str
    label: str
    needs: str
    why_not: str


def offer(name: str, device=None) -> Offer:
    """What a preset, a kit of the package or a folder asks of this machine. Nothing is loaded."""
    folder = next((folder for folder in (Path(name), assets() / name) if is_kit(folder)), None)
    if folder is None and name not in PRESETS:
        return Offer(name, Path(name).name, "weights of yours", "")
    c = card(Preset.from_dict(json.loads((folder / "config.json").read_text())) if folder else PRESETS[name])
    licence = "no licence is stated" if c.licence == "unstated" else c.licence
    disk = "" if folder else f"{c.disk_gib:.1f} GiB on disk, "
    memory = f"{c.memory_gib:.1f} GiB" if c.memory_gib > 0.1 else f"{1024 * c.memory_gib:.0f} MiB"
    needs = f"{c.size} parameters, {memory} while streaming, {disk}{c.runs_on}, {licence}"
    public = folder or (name, "student") in SOURCES
    return Offer(name, folder.name if folder else name, needs,
                 c.obstacle(device) if public else "no student of it is public: give the folder of yours with --model")


def card(preset: Preset) -> Card:
    """What a preset asks of a machine, in bf16 for Wan's sizes and float32 for the small ones. Nothing is loaded."""
    with torch.device("meta"):
        parts = TrackHead(preset.tracks, preset.geometry), TinyVAE(preset.vae), Block(preset.dit)
    head, vae, block = (sum(p.numel() for p in part.parameters()) for part in parts)
    parameters = count(preset.dit) + head
    c, big = preset.dit, preset.text is None
    each = 2 if big else 4                                              # bytes
    weights = (parameters + vae) * each
    outside = UMT5_GIB + WAN_VAE_GIB.get(c.latent_channels, 0) + (CLIP_GIB if c.clip_dim else 0) if big else 0
    memory = weights + working(preset, each)
    return Card(preset.name, parameters, memory / 2**30, (memory - (c.layers - 2) * block * each) / 2**30,
                weights * 4 / each / 2**30 + outside, preset.licence, big, preset.repo)


def toy(preset: Preset) -> Preset:
    """The same layout, names and stream at a size that needs no GPU: narrow, two layers, 6 x 8 latent cells, a text encoder
    of its own. For `Kit.random`: what is true of wiring, shapes and memory there is true at full size."""
    c, g = preset.dit, preset.geometry
    dit = replace(c, dim=48, heads=2, ffn_dim=48 * c.ffn_dim // c.dim, layers=2, text_dim=16, freq_dim=32,
                  clip_dim=24 if c.clip_dim else 0)
    return replace(preset, name=f"{preset.name}-toy", geometry=replace(g, height=6 * g.stride, width=8 * g.stride), dit=dit,
                   vae=replace(preset.vae, encoder_width=8, decoder_widths=(16, 16, 8, 8), blocks=1),
                   text=TextConfig(dim=16, length=16, heads=2))


@cache
def flops(preset: Preset, held: int | None = None) -> int:
    """Of one pass over a chunk, twice its multiplications: one block counted by torch on the meta device, at full size.

    held: latent frames remembered, by default as many as the stream keeps. Keys and values of the words are read before.
    """
    c, s = preset.dit, preset.stream
    rows, columns = c.token_grid(preset.geometry.latent_size)
    held = (s.budget - s.chunk if s.budget else s.chunk * (s.sink + s.window)) if held is None else held
    with torch.device("meta"), torch.no_grad():
        block, zeros = Block(c), lambda *size: torch.zeros(1, *size, c.dim)
        length = (preset.text.length if preset.text else WORDS) - 257 * c.text_split
        words = block.cross_attn.read(zeros(length), zeros(257) if c.clip_dim else None)
        past = block.self_attn.keys(zeros(held * rows * columns))
        with FlopCounterMode(display=False) as counter:
            block(zeros(s.chunk, rows * columns), zeros(s.chunk, 6), words, (s.chunk, rows, columns), None, past)
    return c.layers * counter.get_total_flops()


def table() -> str:
    """All presets, one line each; a licence that is not stated anywhere is marked."""
    heads = f"{'licence':<14}{'runs on':<12}{'slower on':<11}from"
    lines = [f"{'name':<20}{'parameters':>12}{'memory':>10}{'disk':>10}  {heads}"]
    for preset in PRESETS.values():
        c = card(preset)
        licence = "! unstated" if c.licence == "unstated" else c.licence
        lines.append(f"{c.name:<20}{c.size:>12}{c.memory_gib:>6.1f} GiB{c.disk_gib:>6.1f} GiB  {licence:<14}"
                     f"{c.runs_on:<12}{c.slower_on:<11}{c.repo or ('a folder of yours' if c.gpu else 'this package')}")
    return "\n".join([*lines, "", FOOTNOTES])
