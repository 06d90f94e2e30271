"""Every row of the speed table for Wan's sizes: random weights, a process each, kept in one file as they come.

A row that fails (no memory, no kernel, out of time) is an error in its row and nothing more. Asked again, what is there
stays and the rest is made: first what was never tried, then what failed least often, so that no row stands before another
for good.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import torch

from .kit import best_device
from .weights import write_whole

LONGEST = 240       # seconds that one row may take, compiling included
SHORTEST = 45       # below that none is begun
LONG = 540          # of those that stream two thousand chunks, which have a call of ten minutes to themselves

# Row: the words of its command, and frames a second as predicted for an H200 from published rates of kernels (0: not).
# The most telling first: what the time does not reach is left for the next call.
ROWS: dict[str, tuple[list[str], float]] = {
    "1.3B compiled": (["--model", "wan2.1-1.3b", "--fast"], 65),
    "5B compiled": (["--model", "wan2.2-5b", "--fast"], 55),
    "1.3B teacher": (["--model", "wan2.1-1.3b", "--fast", "--teacher"], 1.1),
    "1.3B compiled, fp8": (["--model", "wan2.1-1.3b", "--fast", "--fp8"], 74),
    "5B compiled, fp8": (["--model", "wan2.2-5b", "--fast", "--fp8"], 70),
    "1.3B compiled, fp8, no clean pass": (["--model", "wan2.1-1.3b", "--fast", "--fp8", "--no-clean"], 102),
    "5B compiled, fp8, no clean pass": (["--model", "wan2.2-5b", "--fast", "--fp8", "--no-clean"], 97),
    "WanTrack 1.3B compiled": (["--model", "wantrack-1.3b", "--fast"], 0),
    "1.3B plain": (["--model", "wan2.1-1.3b"], 42),
    "5B plain": (["--model", "wan2.2-5b"], 41),
    "1.3B teacher, batch of three": (["--model", "wan2.1-1.3b", "--fast", "--teacher", "--together"], 1.1),
    "1.3B teacher, 25 steps of UniPC": (["--model", "wan2.1-1.3b", "--fast", "--teacher", "--steps", "25", "--solver",
                                         "unipc"], 2.2),
    "5B plain, as a card of 16 GB holds it": (["--model", "wan2.2-5b", "--offload", "4"], 0),
    "1.3B compiled, 2,000 chunks": (["--model", "wan2.1-1.3b", "--fast", "--chunks", "2000"], 65),
}


def run(path, budget: float = 600.0, device=None, chunks: int = 60, rows: dict[str, tuple[list[str], float]] | None = None,
        quiet: bool = False) -> dict:
    """Make the rows that `path` (json) does not hold yet, for `budget` seconds; -> {row: what `msk bench --json` writes}.

    A row that was made on another device or torch is made again. On a CPU nothing is compiled, and sizes are toys.
    """
    path, rows = Path(path), ROWS if rows is None else rows
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    here = {"device": str(device or best_device()), "card": card, "torch": torch.__version__}
    made = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    end = monotonic() + budget
    failed = {name: made[name].get("failed", 1) if name in made and made[name].get("asked") == here else 0 for name in rows}
    for name in sorted(rows, key=failed.get):                           # the same often: in their order
        (words, predicted), kept = rows[name], made.get(name, {})
        if "error" not in kept and kept.get("asked") == here:
            continue
        left, long = end - monotonic(), "--chunks" in words
        if left < (LONG if long else SHORTEST):
            print(f"{name:<38} no time left: ask again to go on", file=sys.stderr)
            continue
        if here["device"] == "cpu":
            at = words.index("--offload") if "--offload" in words else len(words)
            words = [word for word in (*words[:at], *words[at + 2:]) if word != "--fast"]
        words = [*words, "--random-weights", "--device", here["device"]]
        words += [] if long or "--teacher" in words else ["--chunks", str(chunks)]
        predicted *= here["device"] != "cpu"                            # a toy is there
        made[name] = one(words, left if long else min(left, LONGEST)) | {"asked": here, "predicted_fps_h200": predicted}
        if "error" in made[name]:
            made[name]["failed"] = failed[name] + 1
        write_whole(path, (json.dumps(made, indent=2, ensure_ascii=False) + "\n").encode())
        if not quiet:
            print(line(name, made[name]), flush=True)
    return made


def one(words: list[str], seconds: float) -> dict:
    """`msk bench` with these words in a process of its own; -> its figures, or {"error": one sentence}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, "-m", "msk", "bench", *words, "--json", str(file)]
        try:
            own = {name: value for name, value in os.environ.items() if name != "MSK_OFFLOAD"}      # a row says its own
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=own)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        if done.returncode or not file.is_file():
            return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300]}
        return json.loads(file.read_text())


def line(name: str, r: dict) -> str:
    """A row as people read it."""
    if "error" in r:
        return f"{name:<38} {r['error']}"
    more = f"{r['seconds']:.1f} s a clip" if r.get("kind") == "teacher" else (
        f"latency {r['latency_ms']['median']:.0f} ms, chunk {r['chunk_ms']:.0f} ms (95 %: {r['chunk_ms_p95']:.0f}), "
        f"{r['fps_without_clean_pass']:.1f} without the clean pass, {r['tflops']:.0f} TFLOP/s"
        + (f", {100 * r['relative_error']:.2f} % off" if r.get("relative_error") is not None else ""))
    if r.get("predicted_fps_h200"):
        more = f"predicted {r['predicted_fps_h200']:g} on an H200, {more}"
    if started := r.get("start_up_s", {}).get("warm"):
        more += f", warm after {r['start_up_s']['weights'] + started:.0f} s"
    return (f"{name:<38} {r['fps']:7.2f} frames a second, {more}, {r['peak_memory_mb'] / 1024:.1f} GiB; {r['dtype']}, "
            f"{r['attention']}")
