"""The stopwatch: what it writes, and that its parts are those of the whole."""
import json

import pytest
import torch

from msk import bench

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
