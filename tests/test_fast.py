"""What makes it faster changes nothing but the last digits; what changes more says how much."""
import warnings
from dataclasses import replace

import pytest
import torch

from msk import attention, bench, fast
from msk.config import PRESETS
from msk.kit import Kit
from msk.live.gaze import Gaze
from msk.models import toy
from msk.stream import Stream


@pytest.fixture(autouse=True)
def plain_again(monkeypatch):
    """What `prepare` sets for the whole process is undone."""
    monkeypatch.setattr(attention, "_chosen", {})
    monkeypatch.setattr(attention, "turns", attention.turns)
    monkeypatch.setattr(attention, "_record", attention._record)
    yield
    torch._dynamo.reset()


def drawn(name, **changes):
    preset = toy(PRESETS[name])
    return bench.random_kit(replace(preset, stream=replace(preset.stream, **changes)), torch.device("cpu"))


def played(kit, chunks):
    stream = Stream(kit, "a fish", seed=3)
    return torch.cat([stream.step() for _ in range(chunks)], 1)


def test_compiled_blocks_and_decoder_make_the_same_frames_and_then_stay_as_they_are(close):
    """Traced whole, run by torch itself; from the third chunk on nothing is compiled any more."""
    kit = drawn("wantrack-1.3b", steps=1)
    want = played(kit, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = fast.prepare(kit, "eager")
        assert done["compiled"] == "eager" and set(done["attention_ms"]) == {"sdpa", "matmul"}
        stream = Stream(kit, "a fish", seed=3)
        frames = [stream.step() for _ in range(3)]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with torch.compiler.set_stance("fail_on_recompile"):
            frames += [stream.step() for _ in range(2)]
    close(torch.cat(frames, 1), want)
    assert graphs and torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_compiled_blocks_can_be_looked_into():
    def look(kit):
        stream = Stream(kit, "a fish", seed=3)
        with Gaze(kit)(stream) as seen:
            stream.step()
        return seen["layers"]
    kit = drawn("wantrack-1.3b", steps=1)
    want = look(kit)
    assert fast.prepare(kit, "eager", clock=False)["compiled"] == "eager"
    assert look(kit) == [pytest.approx(row, abs=2e-4) for row in want]


def test_angles_that_change_with_every_chunk_are_not_compiled():
    kit = Kit.random(replace(toy(PRESETS["longlive-1.3b"])))
    assert "compiled" not in fast.prepare(kit, "eager", clock=False)


def test_the_clock_measures_the_steady_state():
    full = Kit.__new__(Kit)
    for name, want in (("wan2.1-1.3b", (4680, 14040, 12, 128)), ("wan2.2-5b", (2640, 7920, 24, 128)),
                       ("wantrack-1.3b", (4680, 9360, 12, 128))):
        full.preset, full.dit = PRESETS[name], type("D", (), {"config": PRESETS[name].dit})
        assert fast.sizes(full) == want


def test_fp8_rounds_to_three_bits_row_by_row():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[None, :, None]             # rows of very different size
    want, made = linear(x), fast.Float8Linear(linear)(x)
    off = (made - want).norm(dim=-1) / want.norm(dim=-1)
    assert made.shape == want.shape and made.dtype == x.dtype and 0.005 < off.mean() < 0.06
    assert (fast.Float8Linear(linear)(torch.zeros(2, 64)) - linear.bias).abs().max() < 1e-3


def test_fp8_swaps_every_product_of_a_pass_and_says_what_it_costs():
    kit = drawn("wan2.1-1.3b")
    exact = bench.probe(kit)
    assert bench.relative(bench.probe(kit), exact) == 0
    swappable = [m for b in kit.dit.blocks for m in (b.self_attn.q, b.self_attn.o, b.cross_attn.q, b.ffn[0], b.ffn[2])
                 if m.in_features % 16 == 0 and m.out_features % 16 == 0]
    done = fast.prepare(kit, None, fp8=True, clock=False)
    assert done["fp8_products"] >= len(swappable) > 0 and isinstance(kit.dit.blocks[0].self_attn.q, fast.Float8Linear)
    assert 0.001 < bench.relative(bench.probe(kit), exact) < 0.2
    assert isinstance(kit.dit.blocks[0].cross_attn.k, torch.nn.Linear)              # read once for a prompt
