"""The stopwatch: what it writes, and that its parts are those of the whole."""
import json

import pytest
import torch

from msk import bench
from msk.config import PRESETS
from msk.models import toy

KEYS = {"model", "device", "dtype", "attention", "threads", "height", "width", "chunk", "sink", "window", "steps", "fps",
        "latency_ms", "dit_ms", "decode_ms", "first_chunk_ms", "chunk_ms_first_decile", "chunk_ms_last_decile",
        "peak_memory_mb"}


def test_the_figures_are_written_by_their_names(tmp_path, capsys):
    before = torch.get_num_threads()
    report = bench.run("toy", chunks=10, warmup=1, threads=1, random_weights=True, json_path=tmp_path / "deep" / "b.json",
                       quiet=True)
    written = json.loads((tmp_path / "deep" / "b.json").read_text())
    assert written == report and set(written) >= KEYS and set(written["latency_ms"]) == {"median", "p95"}
    assert (written["model"], written["height"], written["chunk"], written["threads"]) == ("toy", 32, 3, 1)
    assert written["latency_ms"]["median"] <= written["latency_ms"]["p95"]
    assert 0 < written["dit_ms"] and 0 < written["decode_ms"] and written["peak_memory_mb"] > 50
    assert "frames per second" in bench.table(report)
    assert torch.get_num_threads() == before and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-5b", "wantrack-1.3b"])
def test_a_big_preset_runs_at_toy_size_on_a_cpu(name, tmp_path):
    """`msk bench --model wan2.1-1.3b --random-weights`: no weight is zero, and the error of the dtype is said."""
    from msk.cli import main
    words = ["bench", "--model", name, "--random-weights", "--threads", "1", "--device", "cpu", "--json"]
    assert main([*words, str(tmp_path / "b.json"), "--chunks", "10", "--warmup", "2"]) == 0
    r = json.loads((tmp_path / "b.json").read_text())
    assert set(r) >= KEYS | {"fps_without_clean_pass", "fps_denoise_alone", "chunk_ms_p95", "tflops", "start_up_s"}
    assert r["model"] == f"{name}-toy" and r["random_weights"] and 0 <= r["relative_error"] < 0.05
    assert r["fps"] < r["fps_without_clean_pass"] < r["fps_denoise_alone"] and r["start_up_s"]["first_frames"] > 0
    assert main([*words, str(tmp_path / "t.json"), "--teacher"]) == 0
    t = json.loads((tmp_path / "t.json").read_text())
    assert (t["kind"], t["frames"], t["steps"]) == ("teacher", 81, 30 if "track" in name else 50)
    assert t["fps"] == pytest.approx(81 / (t["steps"] * t["step_ms"] + t["decode_ms"]) * 1000)


def test_random_weights_are_numbers_that_keep_their_size():
    kit = bench.random_kit(toy(PRESETS["wantrack-1.3b"]), torch.device("cpu"))
    assert all(p.abs().max() > 0 for module in kit.modules().values() for p in module.parameters() if p.ndim)
    assert kit.vae.std.eq(1).all() and kit.vae.mean.eq(0).all()
    answer = bench.probe(kit)
    assert answer.shape == (1, 3, 16, 6, 8) and 0.1 < answer.std() < 10
    assert torch.equal(answer, bench.probe(bench.random_kit(toy(PRESETS["wantrack-1.3b"]), torch.device("cpu"))))


def row(chunk, latency, memory=100.0):
    return dict(latency=latency, chunk=chunk, frames=12, memory=memory, denoise=6.0, decode=3.0, clean=2.0)


def test_frames_per_second_count_the_clean_pass_and_latency_does_not(kit):
    figures = bench.summary(kit, [row(100.0, 80.0)] * 20, 50.0, 1)
    assert figures["fps"] == pytest.approx(120) and figures["latency_ms"] == {"median": 80.0, "p95": 80.0}


def test_a_stream_that_slows_down_shows_in_the_last_tenth(kit):
    figures = bench.summary(kit, [row(100.0 + i, 80.0 + i, 100.0 + i) for i in range(100)], 50.0, 1)
    assert figures["chunk_ms_first_decile"] == pytest.approx(104.5)
    assert figures["chunk_ms_last_decile"] == pytest.approx(194.5)
    assert figures["memory_mb_last_decile"] - figures["memory_mb_first_decile"] == pytest.approx(90)
    assert figures["latency_ms"]["p95"] == pytest.approx(174)


def test_the_hand_keeps_moving_from_chunk_to_chunk_and_stays_in_the_frame(kit):
    ids = torch.arange(9)[None]
    first, second = bench.drag(kit, 0, 9, ids), bench.drag(kit, 9, 12, ids)
    step = (second.xy[:, 0] - first.xy[:, -1]).norm(dim=-1)
    assert 0 < step.min() and step.max() < 2
    both = torch.cat([first.xy, second.xy], dim=1)
    assert both.min() > 0 and both.max() < kit.geometry.width


def test_an_interrupt_keeps_what_was_measured(kit, monkeypatch):
    made = bench.stepper
    calls = []

    def impatient(kit, seed):
        step = made(kit, seed)

        def once():
            calls.append(1)
            if len(calls) > 12:
                raise KeyboardInterrupt
            return step()
        return once

    monkeypatch.setattr(bench, "stepper", impatient)
    assert bench.run(kit, chunks=50, warmup=0, threads=1, quiet=True)["chunks"] == 12


def test_too_few_chunks_are_refused():
    with pytest.raises(ValueError, match="use 10 or more"):
        bench.run("toy", chunks=3, random_weights=True)
