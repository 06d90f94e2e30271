"""Every preset at a glance: how big, whose licence, what it takes to run it."""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from .config import PRESETS, Preset
from .doctor import UMT5_GIB, count
from .motion import TrackHead
from .tinyvae import TinyVAE

WAN_VAE_GIB = {16: 0.5, 48: 2.8}        # the full autoencoder in float32, by latent channels
CLIP_GIB = 2.4                          # ViT-H/14 in float32

FOOTNOTES = """\
memory: while streaming. disk: with autoencoder, umT5 and CLIP, which are needed once per prompt and picture.
!: no licence is stated for these weights: ask their makers before you use them for more than a look."""


@dataclass(frozen=True)
class Card:
    name: str
    parameters: int         # transformer and track head
    memory_gib: float       # while streaming: weights, what is remembered, and one chunk's work; prompts are read before
    disk_gib: float         # transformer, autoencoder, umT5 and CLIP, as they are fetched in bf16 or kept here
    licence: str
    gpu: bool               # is a GPU needed for more than a try?
    repo: str


def card(preset: Preset) -> Card:
    """What a preset asks of a machine, in bf16 for Wan's sizes and float32 for the small ones. Nothing is loaded."""
    with torch.device("meta"):
        head, vae = TrackHead(preset.tracks, preset.geometry), TinyVAE(preset.vae)
    parameters = count(preset.dit) + sum(p.numel() for p in head.parameters())
    c, s, big = preset.dit, preset.stream, preset.text is None
    each = 2 if big else 4                                              # bytes
    (h, w), patch = preset.geometry.latent_size, c.patch
    tokens = h * w // prod(patch)                                       # of one latent frame
    held = s.budget or s.chunk * (s.sink + s.window)                    # latent frames remembered
    remembered = 2 * 2 * c.layers * held * tokens * c.dim * each        # keys and values; the cache, and the past made of it
    work = s.chunk * tokens * (4 * c.dim + 2 * c.ffn_dim) * each
    weights = parameters * each + sum(p.numel() for p in vae.parameters()) * each
    outside = UMT5_GIB + WAN_VAE_GIB.get(c.latent_channels, 0) + (CLIP_GIB if c.clip_dim else 0) if big else 0
    return Card(preset.name, parameters, (weights + remembered + work) / 2**30, weights / 2**30 + outside, preset.licence,
                big, preset.repo)


def table() -> str:
    """All presets, one line each; a licence that is not stated anywhere is marked."""
    lines = [f"{'name':<20}{'parameters':>12}{'memory':>10}{'disk':>10}  {'licence':<14}{'runs on':<12}from"]
    for preset in PRESETS.values():
        c = card(preset)
        licence = "! unstated" if c.licence == "unstated" else c.licence
        size = f"{c.parameters / 1e9:.2f} B" if c.parameters > 1e9 else f"{c.parameters / 1e6:.1f} M"
        lines.append(f"{c.name:<20}{size:>12}{c.memory_gib:>6.1f} GiB{c.disk_gib:>6.1f} GiB  {licence:<14}"
                     f"{'a GPU' if c.gpu else 'CPU':<12}{c.repo or ('a folder of yours' if c.gpu else 'this package')}")
    return "\n".join([*lines, "", FOOTNOTES])
