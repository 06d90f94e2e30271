"""Blocks that wait outside the device: what is computed is the same to the bit, and two places are all they take there."""
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msk import bench, fast, offload
from msk.config import PRESETS
from msk.models import card, toy
from msk.offload import Lent, lend, needed, tensors, wanted, working

CPU = torch.device("cpu")


def drawn(layers=7, name="wan2.1-1.3b"):
    preset = toy(PRESETS[name])
    return bench.random_kit(replace(preset, dit=replace(preset.dit, layers=layers)), CPU)


@pytest.mark.parametrize("count", [3, 4, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_is_the_same_to_the_bit_whoever_waits(count, dtype):
    """Words read, denoising passes, and the clean one, which ends before its last block does; pass after pass."""
    want, made = (bench.probe(kit) for kit in (drawn().to(CPU, dtype), lend(drawn(), count, CPU, dtype)))
    assert torch.equal(made, want)


def test_those_that_wait_share_two_places_and_go_home():
    kit = drawn()
    first = kit.dit.blocks[0].ffn[0].weight.clone()
    lend(kit, 5, CPU, torch.float32)
    blocks, seen = kit.dit.blocks, {}
    assert isinstance(blocks, Lent) and len(blocks) == 7 and len(blocks.turns) == 5
    for _ in range(2):
        for i, block in enumerate(blocks):
            seen.setdefault(i, set()).add(tuple(x.data_ptr() for x in tensors(block)))
    stay = [i for i in range(7) if i not in blocks.turns]
    assert len({at for i in blocks.turns for at in seen[i]}) == 2 and all(len(seen[i]) == 1 for i in stay)
    state = kit.dit.state_dict()                                                    # at any time all weights are there
    assert torch.equal(state["blocks.0.ffn.0.weight"], first) and not torch.equal(state["blocks.2.ffn.0.weight"], first)


def test_a_pass_that_was_broken_off_harms_none_after_it():
    kit, again = drawn(), lend(drawn(), 5, CPU, torch.float32)
    for stop in (0, 1, 4):
        for i, _ in enumerate(again.dit.blocks):
            if i == stop:
                break
        assert torch.equal(bench.probe(again), bench.probe(kit))


def test_two_passes_at_once_do_not_take_each_others_places():
    """As when a page is opened while the model still warms up."""
    want, kit = bench.probe(drawn()), lend(drawn(), 5, CPU, torch.float32)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert all(torch.equal(made, want) for made in pool.map(bench.probe, [kit] * 4))
    finally:
        sys.setswitchinterval(before)


def test_nobody_computes_with_a_block_before_it_is_there(monkeypatch):
    """As on a GPU: a copy is asked for and done later, here as late as can be, when its event is waited for."""
    done = []

    class Later(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op is not torch.ops.aten.copy_.default:
                return op(*args, **(kwargs or {}))
            asked.append(args[:2])
            return args[0]

    class Event:
        def record(self, stream):
            self.work = asked[:]
            asked.clear()

    class Stream:
        device = CPU

        def wait_stream(self, other):
            done.append("the place is free")

        def wait_event(self, event):
            for there, here in event.work:
                there.copy_(here)
            event.work = []

    @contextmanager
    def stream(of):
        with Later():
            yield

    asked, want, kit = [], bench.probe(drawn()), drawn()
    lend(kit, 5, CPU, torch.float32)
    kit.dit.blocks.copies, kit.dit.blocks.there = Stream(), [Event(), Event()]
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    assert torch.equal(bench.probe(kit), want) and done


def test_how_many_wait_is_what_the_room_asks_for():
    assert needed(100, 10, 30, 100) == 0
    assert needed(101, 10, 30, 100) == 3 and needed(110, 10, 30, 100) == 3 and needed(111, 10, 30, 100) == 4
    with pytest.raises(MemoryError, match="even with all 4 blocks in the CPU's memory"):
        needed(100, 10, 4, 79)
    with pytest.raises(ValueError, match="2 of 7 blocks are to wait, which saves nothing.*use 3 to 7"):
        lend(drawn(), 2, CPU, torch.float32)


def test_it_is_asked_for_by_name_or_by_the_memory_of_the_gpu(monkeypatch):
    from types import SimpleNamespace
    with torch.device("meta"):
        kit = bench.Kit.random(PRESETS["wan2.2-5b"])
    half, cuda = torch.float16, torch.device("cuda")
    of = lambda gigabytes: monkeypatch.setattr(torch.cuda, "get_device_properties",
                                               lambda device: SimpleNamespace(total_memory=gigabytes * 1e9))
    monkeypatch.delenv("MSK_OFFLOAD", raising=False)
    assert wanted(kit, CPU, half) == 0
    for gigabytes in (16, 24):
        of(gigabytes)
        count = wanted(kit, cuda, half)
        block = 2 * sum(p.numel() for p in kit.dit.blocks[0].parameters())
        left = card(PRESETS["wan2.2-5b"]).memory_gib * 2**30 - (max(count, 2) - 2) * block
        assert left <= offload.SPARE * gigabytes * 1e9 < left + block or count == 0
        assert (count == 0) == card(PRESETS["wan2.2-5b"]).fits(gigabytes) == (gigabytes == 24)
    monkeypatch.setenv("MSK_OFFLOAD", "12")
    assert wanted(kit, CPU, half) == 12
    for wrong in ("31", "1", "2", "-3", "all", "\N{SUPERSCRIPT TWO}"):
        monkeypatch.setenv("MSK_OFFLOAD", wrong)
        with pytest.raises(ValueError, match=f"MSK_OFFLOAD={wrong}: use 0, or 3 to 30 blocks"):
            wanted(kit, CPU, half)


def test_a_wrong_number_is_told_before_anything_is_fetched_or_built(monkeypatch, tmp_path):
    from msk import load, wan
    unwanted = lambda *_, **__: pytest.fail("fetched or built")
    monkeypatch.setattr(wan, "fetch", unwanted)
    monkeypatch.setenv("MSK_OFFLOAD", "2")
    with pytest.raises(ValueError, match="MSK_OFFLOAD=2: use 0, or 3 to 30 blocks"):
        load("wantrack-1.3b", device="cpu")
    wan.export(drawn(4), tmp_path)
    monkeypatch.setattr(wan, "DiT", unwanted)
    with pytest.raises(ValueError, match="MSK_OFFLOAD=2: use 0, or 3 to 4 blocks"):
        load(tmp_path, device="cpu")


def test_what_a_stream_works_with_is_counted():
    """Keys and values of two chunks, kept and joined, in 30 layers of 1,536; the products of one chunk of 4,680 tokens."""
    assert working(PRESETS["wan2.1-1.3b"]) == 2 * (4 * 30 * 9360 * 1536 + 4680 * (4 * 1536 + 2 * 8960))


def test_waiting_blocks_are_not_rounded_to_fp8():
    with pytest.raises(ValueError, match="leave out one of the two"):
        fast.prepare(lend(drawn(), 3, CPU, torch.float32), None, fp8=True, clock=False)


def test_a_checkpoint_is_opened_with_blocks_that_wait(tmp_path, monkeypatch, capsys):
    from msk import wan
    from msk.stream import Stream
    kit = drawn(4)
    kit.role = "student"
    wan.export(kit, tmp_path)
    weights = {k: x for k, x in kit.vae.state_dict().items() if k not in ("mean", "std")}
    wan.save_weights(weights, tmp_path / "taew2_1.safetensors")
    frames = []
    for asked in ("0", "3"):
        monkeypatch.setenv("MSK_OFFLOAD", asked)
        again = wan.open_path(tmp_path, device="cpu", dtype=torch.float32)
        again.text = kit.text
        frames.append(Stream(again, "a fish", seed=1).step())
    assert bench.waiting(again) == 3 and torch.equal(*frames)
    assert "3 of 4 blocks wait in the CPU's memory" in capsys.readouterr().err
    assert os.environ["MSK_OFFLOAD"] == "3"
