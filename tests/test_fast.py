"""What makes it faster changes nothing but the last digits; what changes more says how much."""
import contextlib
import functools
import importlib
import tempfile
import warnings
from dataclasses import replace

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils._python_dispatch import TorchDispatchMode

from msk import attention, bench, fast, host
from msk.config import PRESETS
from msk.kit import Kit
from msk.live.gaze import Gaze
from msk.models import toy
from msk.stream import Stream
from msk.tracks import Tracks


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


class Sent(TorchDispatchMode):
    """Takes down what goes from the CPU to a device, and whether anybody waits for it."""

    def __init__(self):
        super().__init__()
        self.shapes, self.waited = [], []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if op is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and out.device.type != "cpu":
            self.shapes.append(tuple(out.shape))
            self.waited += [tuple(out.shape)] * (not (kwargs or {}).get("non_blocking"))
        return out


@pytest.mark.parametrize("name", ["toy", "tiny", "wantrack-1.3b", "wan2.1-1.3b", "wan2.2-5b", "longlive-1.3b"])
def test_a_chunk_waits_for_nothing_that_is_under_way_on_the_device(name, monkeypatch):
    """On torch's meta device, where there are no numbers: whoever asks for one (item, nonzero, a list as index) fails.

    What goes there are tracks and noise, and with places in the video the angles of one axis; nobody waits for them.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **where: contextlib.nullcontext())         # meta has none
    host.rates.cache_clear()
    attention.turns.cache_clear()
    preset = PRESETS[name] if name in ("toy", "tiny") else toy(PRESETS[name])
    with torch.device("meta"):
        kit = Kit.random(preset)
    features = lambda rows, width: lambda told: torch.zeros(len(told), rows, width, device="meta")
    kit.text = features(preset.text.length, preset.dit.text_dim)
    if preset.dit.clip_dim:
        kit.clip = features(257, preset.dit.clip_dim)
    stream = Stream(kit, "a fish", torch.rand(3, 40, 40) if bench.takes_picture(kit) else None)
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda *_: pytest.fail("waits for numbers"))    # `Sent` sees none of it
    ids, at = torch.arange(9)[None], 0
    for _ in range(5):
        tracks = bench.drag(kit, at, stream.frames_wanted, ids)
        at += stream.frames_wanted
        with Sent() as sent:
            frames = stream.step(tracks)
        assert frames.device.type == "meta" and frames.shape[1] == tracks.xy.shape[1] and not sent.waited
    if preset.stream.places == "held":
        assert len(sent.shapes) == 4 + stream.steps             # xy, visible, ids, origin; noise for each step


def test_what_repeats_itself_is_made_whole_before_it_is_pinned(monkeypatch):
    """Pinned memory has the strides of what is put there: torch refuses to write twice to one place."""
    def pin_memory(x):
        return torch.empty_strided(x.shape, x.stride()).copy_(x)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    tracks = Tracks.grid(PRESETS["toy"].geometry, 2, 5, batch=3)
    assert 0 in tracks.ids.stride() and torch.equal(host.pinned(tracks.ids), tracks.ids)


@pytest.mark.parametrize("name", ["wantrack-1.3b", "wan2.1-1.3b", "wan2.2-5b"])
def test_compiled_blocks_and_decoder_make_the_same_frames_and_then_stay_as_they_are(name, close):
    """Traced whole, run by torch itself; from the third chunk on nothing is compiled any more."""
    kit = drawn(name, steps=1)
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


def test_a_package_that_computes_attention_is_imported_before_anything_is_compiled(monkeypatch, close):
    def own(q, k, v):
        return sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    @functools.cache
    def packages():
        return {"flash-attn 2": own} if importlib.import_module("math") else {}

    kit = drawn("wan2.1-1.3b", steps=1)
    want = played(kit, 2)
    monkeypatch.setattr(attention, "_packages", packages)
    monkeypatch.setattr(attention, "_chosen", {("cpu", torch.float32): "flash-attn 2"})
    torch._dynamo.utils.counters.clear()
    fast.prepare(kit, "eager", clock=False)
    close(played(kit, 2), want)
    assert not torch._dynamo.utils.counters["graph_break"]


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


def test_what_was_compiled_is_kept_where_it_is_said_for_the_next_run(tmp_path, monkeypatch):
    """Torch names a folder of its own under /tmp as soon as it is asked to compile; one that somebody chose stays."""
    monkeypatch.setenv("MSK_CACHE", str(tmp_path))
    for before, after in ((f"{tempfile.gettempdir()}/torchinductor_me", tmp_path / "compiled"), ("/chosen", "/chosen")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        fast.prepare(drawn("wan2.1-1.3b"), "eager", clock=False)
        assert cache_dir() == str(after)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    fast.prepare(drawn("wan2.1-1.3b"), "eager", clock=False)
    assert cache_dir() == str(tmp_path / "compiled")


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
