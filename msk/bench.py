"""How fast? The very `Stream.step` that the canvas plays, with a dragged handle and everything a viewer waits for.

A chunk's latency runs from handing in the tracks to holding uint8 pictures on the CPU: denoise, decode, conversion. The
clean pass that remembers the chunk comes after the pictures are out; it counts for frames per second, not for latency.
"""
from __future__ import annotations

import gc
import json
import math
import resource
import statistics
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from .attention import backend
from .kit import Kit, known, load, write_whole
from .motion import draw_ids
from .stream import Stream
from .tracks import Tracks
from .world import HELD_OUT, World


def run(model: str | Kit = "tiny", chunks: int = 200, warmup: int = 5, threads: int | None = None, json_path=None, *,
        random_weights: bool = False, device=None, seed: int = 0, quiet: bool = False) -> dict:
    """Stream `chunks` chunks after `warmup` more, print the figures and return them; an interrupt keeps what was measured.

    threads: CPU threads; unless given, a short trial of one against all that torch would take decides.
    random_weights: a preset's sizes without its weights; the speed is the same.
    """
    if chunks < 10:
        raise ValueError(f"{chunks} chunks have no first and last tenth: use 10 or more")
    if isinstance(model, Kit):
        kit = model
    else:
        kit = Kit.random(known(model)) if random_weights else load(model, "student", device)
    before = torch.get_num_threads()
    times = []
    try:
        trial = {}
        if kit.device.type == "cpu":
            trial = _threads(kit, threads, seed)
        used = torch.get_num_threads()
        step = stepper(kit, seed)
        for _ in range(warmup):
            step()
        if kit.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(kit.device)
        gc.collect()
        bar = tqdm(range(chunks), desc=f"bench {kit.name}", unit="chunk", disable=quiet)
        try:
            for _ in bar:
                times.append(step())
        except KeyboardInterrupt:
            bar.close()
            if len(times) < 10:
                raise
            print(f"stopped after {len(times)} of {chunks} chunks", file=sys.stderr)
        first = first_chunk(kit, seed)
    finally:
        torch.set_num_threads(before)
    report = summary(kit, times, first, used) | {"threads_trial": trial, "warmup": warmup,
                                                 "random_weights": random_weights, "torch": torch.__version__,
                                                 "command": " ".join(["msk", *sys.argv[1:]])}
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(json_path), (json.dumps(report, indent=2) + "\n").encode())
    if not quiet:
        print(table(report))
    return report


def stepper(kit: Kit, seed: int = 0):
    """A function that makes the next chunk of one stream and says what it took, in milliseconds and megabytes."""
    stream = Stream(kit, "a red fish in the sea", _picture(kit, seed), seed=seed)
    ids = draw_ids(1, 9, kit.preset.tracks.max_id, torch.Generator().manual_seed(seed))
    frame = 0

    def step() -> dict:
        nonlocal frame
        tracks = drag(kit, frame, stream.frames_wanted, ids)
        began = perf_counter()
        frames = pictures(stream.step(tracks))
        shown = perf_counter()
        stream.settle()
        _wait(kit)
        frame += frames.shape[1]
        return dict(latency=1000 * (shown - began), chunk=1000 * (perf_counter() - began), frames=frames.shape[1],
                    memory=memory_mb(kit), **{name: stream.stats[f"{name}_ms"] for name in ("denoise", "decode", "clean")})

    return step


def drag(kit: Kit, start: int, frames: int, ids: Tensor) -> Tracks:
    """A handle of 3 x 3 points led by a hand about the middle of the frame, over pixel frames [start, start + frames)."""
    g = kit.geometry
    t = torch.arange(start, start + frames) / g.fps
    way = torch.stack([torch.sin(1.9 * t), torch.sin(1.3 * t + 1)], dim=-1)
    path = torch.tensor([g.width, g.height]) * (0.5 + 0.25 * way)
    offset = torch.tensor([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]) * g.width / 24
    return Tracks.of(path[:, None] + offset).with_ids(ids)


def pictures(frames: Tensor) -> Tensor:
    """[B, T, 3, H, W] in [0, 1] -> uint8 on the CPU, as a viewer gets them."""
    return (frames * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def first_chunk(kit: Kit, seed: int) -> float:
    """Milliseconds from a new picture and prompt to the first pictures of a new stream."""
    picture = _picture(kit, seed)
    ids = draw_ids(1, 9, kit.preset.tracks.max_id, torch.Generator().manual_seed(seed))
    took = []
    for _ in range(3):
        _wait(kit)
        began = perf_counter()
        stream = Stream(kit, "a blue boat on the sea", picture, seed=seed)
        pictures(stream.step(drag(kit, 0, stream.frames_wanted, ids)))
        took.append(1000 * (perf_counter() - began))
    return statistics.median(took)


def summary(kit: Kit, times: list[dict], first: float, threads: int) -> dict:
    """The figures of `times` (one dict a chunk) by the names that `msk bench --json` writes."""
    g, c = kit.geometry, kit.preset.stream
    column = lambda name: [t[name] for t in times]
    tenth = max(1, len(times) // 10)
    latency = sorted(column("latency"))
    early, late = times[:tenth], times[-tenth:]
    middle = lambda some, name: statistics.median(t[name] for t in some)
    return {
        "model": kit.name, "device": device_name(kit), "dtype": str(kit.dtype).removeprefix("torch."),
        "attention": backend(kit.device, kit.dtype), "threads": threads, "height": g.height, "width": g.width,
        "chunk": c.chunk, "sink": c.sink, "window": c.window, "steps": c.steps,
        "fps": 1000 * sum(column("frames")) / sum(column("chunk")),
        "latency_ms": {"median": statistics.median(latency), "p95": latency[math.ceil(0.95 * len(latency)) - 1]},
        "dit_ms": statistics.median(column("denoise")), "decode_ms": statistics.median(column("decode")),
        "clean_ms": statistics.median(column("clean")), "first_chunk_ms": first,
        "chunk_ms": statistics.median(column("chunk")), "chunk_ms_first_decile": middle(early, "chunk"),
        "chunk_ms_last_decile": middle(late, "chunk"), "peak_memory_mb": peak_memory_mb(kit),
        "memory_mb_first_decile": middle(early, "memory"), "memory_mb_last_decile": middle(late, "memory"),
        "chunks": len(times), "frames_per_chunk": times[-1]["frames"],
        "parameters": sum(p.numel() for p in kit.dit.parameters()),
    }


def table(r: dict) -> str:
    """The figures as people read them."""
    return "\n".join([
        f"{r['model']} {r['width']}x{r['height']}, {r['parameters'] / 1e6:.1f} M parameters, {r['dtype']} on {r['device']}, "
        f"{r['threads']} threads, attention {r['attention']}",
        f"chunk {r['chunk']}, sink {r['sink']}, window {r['window']}, {r['steps']} steps, {r['chunks']} chunks measured",
        f"  {r['fps']:8.1f}    frames per second",
        f"  {r['latency_ms']['median']:8.1f} ms latency, median ({r['latency_ms']['p95']:.1f} ms for 95 %)",
        f"  {r['dit_ms']:8.1f} ms denoise, {r['decode_ms']:.1f} ms decode, {r['clean_ms']:.1f} ms remember",
        f"  {r['first_chunk_ms']:8.1f} ms to the first chunk of a new video",
        f"  {r['chunk_ms_first_decile']:8.1f} ms a chunk in the first tenth, {r['chunk_ms_last_decile']:.1f} ms in the last",
        f"  {r['peak_memory_mb']:8.0f} MB at most, {r['memory_mb_first_decile']:.0f} MB in the first tenth, "
        f"{r['memory_mb_last_decile']:.0f} MB in the last",
    ])


def memory_mb(kit: Kit) -> float:
    """What is held now: on the device if that is a GPU, else by the process."""
    if kit.device.type == "cuda":
        return torch.cuda.memory_allocated(kit.device) / 2**20
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_memory_mb(kit)


def peak_memory_mb(kit: Kit) -> float:
    if kit.device.type == "cuda":
        return torch.cuda.max_memory_allocated(kit.device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10                          # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _threads(kit: Kit, asked: int | None, seed: int) -> dict:
    """Set the thread count: as asked, else the better of one and all that torch would take. -> {threads: ms a chunk}"""
    if asked:
        torch.set_num_threads(asked)
        return {}
    trial = {}
    for count in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(count)
        step = stepper(kit, seed)
        trial[count] = statistics.median(step()["chunk"] for _ in range(6))
    torch.set_num_threads(min(trial, key=trial.get))
    return trial


def _picture(kit: Kit, seed: int) -> Tensor:
    return World(kit.geometry).sample(1, 1, seed=HELD_OUT + seed).frames[0, 0]


def _wait(kit: Kit) -> None:
    if kit.device.type == "cuda":
        torch.cuda.synchronize(kit.device)


def device_name(kit: Kit) -> str:
    if kit.device.type == "cuda":
        return torch.cuda.get_device_name(kit.device)
    cpuinfo = Path("/proc/cpuinfo")
    if kit.device.type == "cpu" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.split(':', 1)[1].strip()})"
    return str(kit.device)
