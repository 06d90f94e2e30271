"""The table of presets: what each asks of a machine."""
import pytest
import torch

from msk.cli import main
from msk.config import PRESETS
from msk.kit import Kit
from msk.models import Card, card, flops, offer, toy
from msk.stream import Stream


def test_the_table_names_every_preset_and_marks_licences_that_nobody_states(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.split() and line.split()[0] in PRESETS}
    assert rows.keys() == PRESETS.keys()
    assert "! unstated" in rows["wantrack-1.3b"] and "!" not in rows["wan2.1-1.3b"]
    assert "CPU" in rows["tiny"] and "GPU 16 GB" in rows["wan2.1-1.3b"] and "GPU 24 GB" in rows["wan2.2-5b"]
    assert all(word in said for word in ("parameters", "memory", "disk", "licence", "runs on", "slower on"))


def test_a_card_that_is_sold_as_large_enough_is_not_always():
    of = lambda gib: Card("a", 1, gib, gib, 1.0, "MIT", True, "").runs_on
    assert [of(gib) for gib in (6.1, 12.6, 12.8, 60, 200)] == ["GPU 16 GB", "GPU 16 GB", "GPU 24 GB", "GPU 80 GB",
                                                               "GPU > 141 GB"]


def test_an_offer_says_what_a_model_needs_and_what_stands_against_it(tmp_path, monkeypatch):
    tiny, large, teacher = (offer(name, "cpu") for name in ("tiny", "wantrack-1.3b", "wan2.1-1.3b"))
    assert tiny.why_not == "" and "MiB while streaming, CPU, Apache-2.0" in tiny.needs
    assert large.why_not == "it needs a GPU of 16 GB, and here is none" and "no licence is stated" in large.needs
    assert "GiB on disk" in large.needs and "no student of it is public" in teacher.why_not
    mine = offer(str(Kit.random("toy").save(tmp_path / "mine")), "cpu")
    assert (mine.label, mine.why_not) == ("mine", "") and "on disk" not in mine.needs
    assert offer(str(tmp_path / "mine.pt")).needs == "weights of yours"


def test_a_gpu_that_is_too_small_is_told(monkeypatch):
    from types import SimpleNamespace
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8e9))
    assert card(PRESETS["longlive-1.3b"]).obstacle() == "it needs 9.3 GiB while streaming, and this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16e9))
    assert card(PRESETS["longlive-1.3b"]).obstacle() == ""


def test_a_card_counts_what_wantracks_makers_counted():
    """1,564,577,376 parameters with norm_added_q, which we leave out; 1.73 GB of keys and values for six frames."""
    c = card(PRESETS["wantrack-1.3b"])
    assert c.parameters + 30 * 1536 == 1_564_577_376 and c.gpu and c.licence == "unstated"
    weights = (c.parameters + 11.3e6) * 2 / 2**30
    assert 2 * 1.7 * 1e9 / 2**30 < c.memory_gib - weights < 2 * 1.9 * 1e9 / 2**30   # the cache, and the past made of it
    assert c.disk_gib > 13 and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("name, first", [("wan2.1-1.3b", 9), ("wan2.2-5b", 9), ("wantrack-1.3b", 13)])
def test_a_toy_has_the_layout_of_the_large_one_and_streams(name, first):
    """The same columns at the patch embedding, the same chunks, at a ten-thousandth of the weights."""
    large, small = PRESETS[name], toy(PRESETS[name])
    assert small.dit.channels == large.dit.channels and small.dit.inputs == large.dit.inputs
    assert small.stream == large.stream and small.geometry.stride == large.geometry.stride
    kit = Kit.random(small)
    kit.clip = lambda pixels: torch.ones(len(pixels), 257, 24)
    stream = Stream(kit, "a fish", torch.zeros(1, 3, small.geometry.height, small.geometry.width))
    assert [stream.step().shape[1] for _ in range(3)] == [first, 12, 12]


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-5b", "wantrack-1.3b", "tiny"])
def test_a_pass_costs_what_its_products_cost(name):
    """Four products for its own tokens and two for the words, the feed-forward's two, and attention to all that is seen."""
    p = PRESETS[name]
    c, s, (h, w) = p.dit, p.stream, p.geometry.latent_size
    each = h * w // 4
    tokens, seen = s.chunk * each, (s.budget or s.chunk * (s.sink + s.window + 1)) * each
    words = (p.text.length if p.text else 512) + (257 if c.clip_dim else 0)
    once = 2 * tokens * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim) + 4 * tokens * (seen + words) * c.dim
    assert flops(p) == c.layers * once
    assert name != "wan2.1-1.3b" or round(flops(p) / 1e12, 2) == 24.26


def test_blocks_that_wait_make_room_on_a_smaller_card():
    """All but two of 5B's thirty blocks, four products of 3,072 squared twice and two of 3,072 by 14,336 each."""
    c = card(PRESETS["wan2.2-5b"])
    block = 2 * (8 * 3072**2 + 2 * 3072 * 14336 + 21 * 3072 + 14336)
    assert c.memory_gib - c.least_gib == pytest.approx(28 * block / 2**30)
    assert (c.runs_on, c.slower_on) == ("GPU 24 GB", "16 GB")
    assert card(PRESETS["wan2.1-i2v-14b"]).slower_on == "24 GB"
    assert card(PRESETS["wan2.1-1.3b"]).slower_on == card(PRESETS["tiny"]).slower_on == ""
