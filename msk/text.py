"""Prompts as features: a small learned encoder over the words that the procedural world speaks."""
from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig

WORDS = tuple("""
a an and the over in on with of above under near
red orange yellow green teal blue purple pink white brown grey plain striped spotted checked marbled
fish bird balloon leaf boat butterfly kite star blob turtle jellyfish flower
sea sky meadow sand forest hills
snow rain falling bubbles rising ripples running flickering light night day falls breaks fireflies glowing swaying grass
still calm camera moves quiet
""".split())

SPECKS = "snow", "rain", "bubbles", "fireflies"         # in the air: nobody can know where each of them will be
LIGHTS = "night", "day", "flickering", "fireflies"      # another light, on all there is
STIRRING = *SPECKS, "ripples", "flickering", "night", "day", "swaying"      # what no picture shows and no track says

BESIDE = {"snow": "falling", "rain": "falling", "bubbles": "rising", "ripples": "running", "fireflies": "glowing"}
ENDINGS = "fall", "ing", "ies", "es", "ed", "s", "y", "e"

_SPECIAL = ("<pad>", "<null>", "<unk>")
_INDEX = {word: i for i, word in enumerate((*_SPECIAL, *WORDS))}


def _stem(word: str) -> str:
    """snow of snows, snowy, snowing and snowfall."""
    ends = (end for end in ENDINGS if word.endswith(end) and not word.endswith("ss") and len(word) > len(end) + 2)
    return word[:-len(next(ends, "")) or None]


_BY_STEM = {_stem(word): word for word in reversed(WORDS)}          # of two with the same stem, the first


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, each as the encoder knows it, if it does, whatever its ending; and with what goes the word that
    it has always heard beside it: it rains, rain falling."""
    said = re.findall(r"[a-z]+", prompt.lower())
    said = [word if word in _INDEX else _BY_STEM.get(_stem(word), word) for word in said]
    return [each for word in said for each in (word, BESIDE.get(word)) if each and (each == word or each not in said)]


def tokenize(prompt: str, length: int) -> list[int]:
    """Word numbers, padded with 0 to `length`; unknown words share one number, the empty prompt is a word of its own."""
    known = [_INDEX.get(word, _INDEX["<unk>"]) for word in words_of(prompt)][:length] or [_INDEX["<null>"]]
    return known + [0] * (length - len(known))


def stirs(prompt: str) -> bool:
    """Does it ask for what no picture shows and no track says?"""
    return any(word in STIRRING for word in words_of(prompt))


def lights(prompt: str) -> bool:
    """Does it ask for another light?"""
    return any(word in LIGHTS for word in words_of(prompt))


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt, longer than two letters, that this encoder cannot tell apart."""
    return [word for word in words_of(prompt) if word not in _INDEX and len(word) > 2]


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x [B, L, dim], real [B, L] bool: where a word stands."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


class TextEncoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(len(_INDEX), config.dim)
        self.place = nn.Parameter(torch.randn(config.length, config.dim) * 0.1)
        self.layers = nn.ModuleList(Layer(config.dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, L, dim], zeros after the last word; "" is the null prompt."""
        if isinstance(prompts, str):
            raise TypeError(f"prompts came as one string, {prompts[:40]!r}: give a list, one prompt per clip")
        index = torch.tensor([tokenize(p, self.config.length) for p in prompts], device=self.place.device)
        real = index != _INDEX["<pad>"]
        x = self.word(index) + self.place
        for layer in self.layers:
            x = layer(x, real)
        return self.norm(x) * real[..., None]
