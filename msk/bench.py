"""How fast? The very `Stream.step` that the canvas plays, with a dragged handle and everything a viewer waits for.

A chunk's latency runs from handing in the tracks to holding uint8 pictures on the CPU: denoise, decode, conversion. The
clean pass that remembers the chunk comes after the pictures are out; it counts for frames per second, not for latency.
"""
from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm

try:
    import resource
except ImportError:         # Windows
    resource = None

from .attention import backend
from .config import Preset
from .fast import prepare
from .host import fetch
from .kit import Kit, best_dtype, device_of, known, load, write_whole
from .models import flops, toy
from .motion import draw_ids
from .offload import Lent, lend, wanted
from .sample import options, sample
from .stream import Stream, rollout
from .tracks import Tracks
from .world import HELD_OUT, World


def run(model: str | Kit = "tiny", chunks: int = 200, warmup: int = 5, threads: int | None = None, json_path=None, *,
        random_weights: bool = False, fast: str | None = None, fp8: bool = False, clean: bool | None = None, device=None,
        seed: int = 0, quiet: bool = False) -> dict:
    """Stream `chunks` chunks after `warmup` more, print the figures and return them; an interrupt keeps what was measured.

    threads: CPU threads; unless given, a short trial of one against all that torch would take decides.
    random_weights: a preset's sizes without its weights (the speed is the same); a big one on a CPU at toy size.
    fast: torch.compile's backend ("inductor") for `fast.prepare`; fp8: see there. What that costs in exactness, and what
    the dtype does, is measured against the plain path in float32. clean: with the clean pass or without, whatever the
    preset says; only a model trained without it plays well without.
    """
    if chunks < 10:
        raise ValueError(f"{chunks} chunks have no first and last tenth: use 10 or more")
    began = perf_counter()
    kit, exact = opened(model, random_weights, device, seed, clean=clean)
    built, done = perf_counter() - began, {}
    if fast or fp8:
        done = prepare(kit, fast, fp8)
    before = torch.get_num_threads()
    times = []
    try:
        trial = {}
        if kit.device.type == "cpu":
            trial = _threads(kit, threads, seed)
        used = torch.get_num_threads()
        step = stepper(kit, seed)
        began = perf_counter()
        for i in range(warmup):
            step()
            if i == 0:
                first_frame = perf_counter() - began
        started = perf_counter() - began
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
        error = None if exact is None else relative(probe(kit, seed), exact)
    finally:
        torch.set_num_threads(before)
    report = summary(kit, times, first, used) | {
        "relative_error": error, "blocks_waiting": waiting(kit), "fast": fast or "", "fp8": fp8, **done,
        "random_weights": random_weights, "warmup": warmup,
        "start_up_s": {"weights": built, "first_frames": first_frame if warmup else None, "warm": started},
        "threads_trial": trial, "torch": torch.__version__, "command": " ".join(["msk", *sys.argv[1:]])}
    return _hand_out(report, table(report), json_path, quiet)


def run_teacher(model: str | Kit, frames: int = 81, measured: int = 4, json_path=None, *, random_weights: bool = False,
                fast: str | None = None, together: bool = False, steps: int | None = None, solver: str | None = None,
                device=None, seed: int = 0, quiet: bool = False) -> dict:
    """What a whole clip takes the teacher, joint guidance and decoding counted: `measured` of its steps, after one more.

    All steps cost the same, so the clip's time is that of a step, times their number, and of its decoding. together: the
    three passes of guidance as one batch. steps, solver: of `sample`, if not the preset's.
    """
    began = perf_counter()
    kit, _ = opened(model, random_weights, device, seed, "teacher", probed=False)
    built = perf_counter() - began
    done = prepare(kit, fast) if fast else {}
    preset, (h, w) = kit.preset.sampled(steps, solver), kit.geometry.latent_size
    length = kit.geometry.latent_frames(frames)
    ids = draw_ids(1, 9, preset.tracks.max_id, torch.Generator().manual_seed(seed))
    tracks, picture = drag(kit, 0, frames, ids), _picture(kit, seed) if takes_picture(kit) else None
    moved = kit.moved(tracks, picture)
    cond = kit.condition(["a red fish in the sea"], tracks, picture, moved)
    noise = torch.randn(1, length, kit.dit.config.latent_channels, h, w, generator=torch.Generator().manual_seed(seed))
    long = preset.sampled(max(measured + 1, preset.sample_steps))
    made = sample(kit.dit, noise.to(kit.device), cond, together=together, **options(long))
    took = []
    for _ in range(measured + 1):
        _wait(kit)
        began = perf_counter()
        x0 = next(made).x0
        _wait(kit)
        took.append(1000 * (perf_counter() - began))
    began = perf_counter()
    for part in kit.decode(x0, moved=moved):
        pictures(part)
    decode = 1000 * (perf_counter() - began)
    step = statistics.median(took[1:])
    seconds = (preset.sample_steps * step + decode) / 1000
    report = {"model": kit.name, "kind": "teacher", "device": device_name(kit),
              "dtype": str(kit.dtype).removeprefix("torch."), "attention": backend(kit.device, kit.dtype),
              "height": kit.geometry.height, "width": kit.geometry.width, "frames": frames, "steps": preset.sample_steps,
              "solver": preset.solver, "steps_measured": measured, "step_ms": step, "first_step_ms": took[0],
              "decode_ms": decode, "seconds": seconds, "fps": frames / seconds, "text_scale": preset.text_scale,
              "motion_scale": preset.motion_scale, "peak_memory_mb": peak_memory_mb(kit), "fast": fast or "",
              "blocks_waiting": waiting(kit), "together": together, **done, "random_weights": random_weights,
              "start_up_s": {"weights": built}, "torch": torch.__version__, "command": " ".join(["msk", *sys.argv[1:]])}
    said = (f"{report['model']} teacher, {frames} frames of {report['width']}x{report['height']}, {report['steps']} steps "
            f"by {report['solver']} ({measured} measured), {report['dtype']} on {report['device']}, attention "
            f"{report['attention']}\n"
            f"  {report['fps']:8.2f}    frames per second: {seconds:.1f} s a clip, {step:.0f} ms a step, "
            f"{decode:.0f} ms decode")
    return _hand_out(report, said, json_path, quiet)


def _hand_out(report: dict, said: str, json_path, quiet: bool) -> dict:
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(json_path), (json.dumps(report, indent=2) + "\n").encode())
    if not quiet:
        print(said)
    return report


# what is measured

def opened(model: str | Kit, random_weights: bool, device, seed: int, role: str = "student", probed: bool = True,
           clean: bool | None = None) -> tuple[Kit, Tensor | None]:
    """The kit to be timed, and what its weights answer in float32 on the plain path, where both could be had."""
    stream = lambda preset: preset if clean is None else replace(preset, stream=replace(preset.stream, clean=clean))
    if isinstance(model, Kit) or not random_weights:
        kit = model if isinstance(model, Kit) else load(model, role, device)
        if os.environ.get("MSK_OFFLOAD", "").strip("0") and not waiting(kit):
            raise ValueError(f"{kit.name} is small, and none of its blocks waits in the CPU's memory: leave out --offload, "
                             "and unset MSK_OFFLOAD")
        return replace(kit, preset=stream(kit.preset)), None
    preset, device = known(model), device_of(device)
    if device.type == "cpu" and preset.text is None:
        preset = toy(preset)
    kit = blank(stream(preset), seed)
    outside = wanted(kit, device, best_dtype(device))
    drawn(kit, torch.device("cpu") if outside else device, seed)
    exact = None
    if probed and kit.device.type == device.type:
        try:
            exact = probe(kit, seed)
        except torch.OutOfMemoryError:
            print(f"{kit.name} has no room here in float32: its error is not measured", file=sys.stderr)
    if outside:
        return lend(kit, outside, device, best_dtype(device)), exact
    return kit.to(device, best_dtype(device)), exact


def random_kit(preset: Preset, device: torch.device, seed: int = 0) -> Kit:
    """A kit at full size, made in place: no weight is zero, and numbers keep their size on the way. In float32."""
    return drawn(blank(preset, seed), device, seed)


def blank(preset: Preset, seed: int = 0) -> Kit:
    """A kit on the meta device, of sizes without weights, and with what stands for the large encoders."""
    with torch.device("meta"):
        kit = Kit.random(preset)
    if preset.text is None:
        kit.text = Features(512, preset.dit.text_dim, seed)
    if preset.dit.clip_dim and not preset.dit.text_split:
        kit.clip = Features(257, preset.dit.clip_dim, seed)
    return kit


def drawn(kit: Kit, device: torch.device, seed: int) -> Kit:
    """Every weight of a kit made on this device, in place."""
    generator = torch.Generator(device).manual_seed(seed)
    for module in kit.modules().values():
        module.to_empty(device=device)
        for name, p in (*module.named_parameters(), *module.named_buffers()):
            if name in ("mean", "std"):                                         # the autoencoder's normalisation: none
                p.fill_(float(name == "std"))
            elif p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5, generator=generator)
            else:
                p.normal_(mean=float(name.endswith("weight")), std=0.02, generator=generator)       # norms, and biases
    return kit.eval()


class Features(nn.Module):
    """Stands for umT5 or CLIP where weights are random: numbers of the right shape, the same for every prompt."""

    def __init__(self, rows: int, channels: int, seed: int):
        super().__init__()
        self.rows, self.channels, self.seed = rows, channels, seed
        self.where = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, told) -> Tensor:
        g = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, self.rows, self.channels, generator=g).to(self.where.device).expand(len(told), -1, -1)


@torch.no_grad()
def probe(kit: Kit, seed: int = 0) -> Tensor:
    """The velocity of a third chunk, behind two that are remembered: [1, chunk, C, h, w] float32 on the CPU."""
    c, s, (h, w) = kit.dit.config, replace(kit.preset.stream, steps=1, levels=()), kit.geometry.latent_size
    frames, g = s.span(2)[1], torch.Generator().manual_seed(seed)
    noise = torch.randn(1, frames, c.latent_channels, h, w, generator=g).to(kit.device)
    ids = draw_ids(1, 9, kit.preset.tracks.max_id, g)
    motion = kit.motion(drag(kit, 0, kit.geometry.pixel_frames(frames), ids)) if c.motion_channels else None
    image = torch.randn(1, 1, c.mask_channels + (c.image_channels or c.latent_channels), h, w, generator=g).to(kit.device)
    clip = kit.clip(torch.zeros(1, 3, 8, 8)) if kit.clip is not None else None
    text = kit.dit.read(kit.encode_text(["a red fish in the sea"]), clip)
    chunks = rollout(kit.dit, noise, text, motion, image if takes_picture(kit) else None, s)
    return (noise - torch.cat(list(chunks), dim=1))[:, slice(*s.span(2))].float().cpu()


def relative(made: Tensor, want: Tensor) -> float:
    """Size of the difference over size of the answer."""
    return float((made - want).norm() / want.norm())


def takes_picture(kit: Kit) -> bool:
    return bool(kit.dit.config.image_channels) or kit.dit.config.image_frames == "clean"


def stepper(kit: Kit, seed: int = 0):
    """A function that makes the next chunk of one stream and says what it took, in milliseconds and megabytes."""
    stream = Stream(kit, "a red fish in the sea", _picture(kit, seed) if takes_picture(kit) else None, seed=seed)
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
    return fetch((frames * 255).round().clamp(0, 255).to(torch.uint8))


def first_chunk(kit: Kit, seed: int) -> float:
    """Milliseconds from a new picture and prompt to the first pictures of a new stream."""
    picture = _picture(kit, seed) if takes_picture(kit) else None
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
    total = lambda *names: sum(t[name] for t in times for name in names)
    column = lambda name: [t[name] for t in times]
    tenth = max(1, len(times) // 10)
    latency = column("latency")
    early, late = times[:tenth], times[-tenth:]
    middle = lambda some, name: statistics.median(t[name] for t in some)
    return {
        "model": kit.name, "device": device_name(kit), "dtype": str(kit.dtype).removeprefix("torch."),
        "attention": backend(kit.device, kit.dtype), "threads": threads, "height": g.height, "width": g.width,
        "chunk": c.chunk, "sink": c.sink, "window": c.window, "steps": c.steps, "clean_pass": c.clean,
        "fps": 1000 * total("frames") / total("chunk"),
        "fps_without_clean_pass": 1000 * total("frames") / (total("chunk") - total("clean")),
        "fps_denoise_alone": 1000 * total("frames") / total("denoise"),
        "tflops": (c.steps + c.clean) * flops(kit.preset) / 1e9 / statistics.median(column("chunk")),
        "latency_ms": {"median": statistics.median(latency), "p95": p95(latency)},
        "dit_ms": statistics.median(column("denoise")), "decode_ms": statistics.median(column("decode")),
        "clean_ms": statistics.median(column("clean")), "first_chunk_ms": first,
        "chunk_ms": statistics.median(column("chunk")), "chunk_ms_p95": p95(column("chunk")),
        "chunk_ms_first_decile": middle(early, "chunk"),
        "chunk_ms_last_decile": middle(late, "chunk"), "peak_memory_mb": peak_memory_mb(kit),
        "memory_mb_first_decile": middle(early, "memory"), "memory_mb_last_decile": middle(late, "memory"),
        "chunks": len(times), "frames_per_chunk": times[-1]["frames"],
        "parameters": sum(p.numel() for p in kit.dit.parameters()),
    }


def p95(numbers: list[float]) -> float:
    """What 95 % of them do not exceed."""
    return sorted(numbers)[math.ceil(0.95 * len(numbers)) - 1]


def table(r: dict) -> str:
    """The figures as people read them."""
    error = r.get("relative_error")
    return "\n".join([
        f"{r['model']} {r['width']}x{r['height']}, {r['parameters'] / 1e6:.1f} M parameters, {r['dtype']} on {r['device']}, "
        f"{r['threads']} threads, attention {r['attention']}",
        f"chunk {r['chunk']}, sink {r['sink']}, window {r['window']}, {r['steps']} steps, {r['chunks']} chunks measured",
        f"  {r['fps']:8.1f}    frames per second ({r['fps_without_clean_pass']:.1f} without the clean pass)",
        f"  {r['latency_ms']['median']:8.1f} ms latency, median ({r['latency_ms']['p95']:.1f} ms for 95 %)",
        f"  {r['dit_ms']:8.1f} ms denoise, {r['decode_ms']:.1f} ms decode, {r['clean_ms']:.1f} ms remember",
        f"  {r['first_chunk_ms']:8.1f} ms to the first chunk of a new video",
        f"  {r['chunk_ms_first_decile']:8.1f} ms a chunk in the first tenth, {r['chunk_ms_last_decile']:.1f} ms in the last",
        f"  {r['peak_memory_mb']:8.0f} MB at most, {r['memory_mb_first_decile']:.0f} MB in the first tenth, "
        f"{r['memory_mb_last_decile']:.0f} MB in the last",
        *([f"  {100 * error:8.2f} %  off the plain path in float32"] if error is not None else []),
    ])


def memory_mb(kit: Kit) -> float:
    """What is held now: on the device if that is a GPU, else by the process."""
    if kit.device.type == "cuda":
        return torch.cuda.memory_allocated(kit.device) / 2**20
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_memory_mb(kit)


def waiting(kit: Kit) -> int:
    """Blocks in the CPU's memory, see `offload`."""
    return len(kit.dit.blocks.turns) if isinstance(kit.dit.blocks, Lent) else 0


def peak_memory_mb(kit: Kit) -> float:
    if kit.device.type == "cuda":
        return torch.cuda.max_memory_allocated(kit.device) / 2**20
    if resource is None:
        return math.nan
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
