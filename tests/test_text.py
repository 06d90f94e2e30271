import pytest
import torch

from msk.config import TextConfig
from msk.text import WORDS, TextEncoder, stirs, tokenize, unknown_words, words_of


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextConfig(dim=16, length=8, heads=2)).eval().requires_grad_(False)


def test_words_are_words_and_each_stands_once():
    assert len(set(WORDS)) == len(WORDS) and all(w == w.lower() and w.isalpha() for w in WORDS)


def test_case_and_punctuation_say_nothing(encoder):
    assert torch.equal(encoder(["A red fish, in the sea!"]), encoder(["a red fish in the sea"]))


def test_order_and_words_say_something(encoder):
    a, b, c = encoder(["red fish", "fish red", "blue fish"])
    assert not torch.allclose(a, b) and not torch.allclose(a, c)


def test_after_the_last_word_there_is_nothing(encoder):
    out = encoder(["red fish", ""])
    assert out.shape == (2, 8, 16)
    assert out[0, 2:].abs().max() == 0 and out[0, :2].abs().amin() > 0
    assert out[1, 1:].abs().max() == 0 and out[1, 0].norm() > 0                     # the null prompt is a word of its own


def test_a_prompt_reads_the_same_in_any_company(encoder, close):
    alone, together = encoder(["a red fish"]), encoder(["snow falls over the blue hills", "a red fish"])
    close(alone[0], together[1], atol=1e-6)


def test_unknown_words_share_one_place_and_can_be_named(encoder):
    assert torch.equal(encoder(["a zebra"]), encoder(["a giraffe"]))
    assert unknown_words("A zebra in the sea") == ["zebra"]


@pytest.mark.parametrize("said, known", [
    ("it snows", "it snow falling"), ("Rainy seas", "rain falling sea"), ("nightfall", "night"),
    ("bubbling", "bubbles rising"),
    ("a firefly", "a fireflies glowing"), ("rippling", "ripples running"), ("grassy", "grass"), ("flickers", "flickering"),
    ("fishes and birds", "fish and bird"), ("a thing on its way", "a thing on its way"), ("it falls", "it falls"),
])
def test_words_are_known_whatever_their_endings(said, known):
    assert " ".join(words_of(said)) == known
    assert stirs(said) == stirs(known)


def test_every_word_that_it_speaks_is_itself():
    assert words_of(" ".join(WORDS)) == list(WORDS)


def test_a_long_prompt_is_cut(encoder):
    assert len(tokenize("fish " * 50, 8)) == 8 and 0 not in tokenize("fish " * 50, 8)
    assert torch.equal(encoder(["fish " * 8]), encoder(["fish " * 50]))


def test_one_string_is_not_a_list(encoder):
    with pytest.raises(TypeError, match="give a list"):
        encoder("a red fish")


def test_every_word_can_be_learned():
    encoder = TextEncoder(TextConfig(dim=16, length=8, heads=2))
    encoder(["red fish", ""]).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
