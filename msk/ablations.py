"""What does each choice buy? The paper's ablations at the size of one core: one thing is changed, all else stays.

Some cases change how the shipped student plays (`chunk`, `steps`, `memory`, `drift`) or how the teacher is guided
(`guidance`); others train small models from nothing, as the notebooks do (`splat`, `tracks`, `rollout`: `train.lesson`).
Every setting of a case meets the same clips with the same seeds, so settings are compared clip by clip. What the paper
found stands beside what is found here, and whether the two agree is computed (`Claim`), never written down.
"""
from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from math import nan
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from . import bench, hands, trackers, viz
from .config import Preset, StreamConfig
from .evaluate import Shown, by_student, by_teacher, earlier, epe, header, held_out, keep, psnr, save_strip, shown
from .kit import Kit, load
from .motion import TrackHead, cells, draw_ids, drawn
from .tracks import Tracks
from .train import dmd, lesson, ode
from .train.loop import Learner
from .train.pipeline import condition
from .train.teacher import Teacher, teacher_loss
from .world import HELD_OUT, World

RULE = ("agrees: clip by clip, the measure is more at one setting than at the other, as the paper found; true if the mean "
        "difference is more than two standard errors above zero, false if as far below, null if neither, or of under four")
FEWEST = 4              # pairs that a claim is judged on
TIMED = 8               # chunks whose speed is measured, or maps that are made
LENGTH = 20             # clips of training put together: how long `drift` is by default
TRAINED = 45            # pixel frames of a training clip
PIXELS = 32             # side of the small models' pictures


# --- what is claimed ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Claim:
    """A finding of the paper: `measure` is more at the setting `more` than at `less`. Without a measure: no comparison."""
    paper: str
    measure: str = ""
    more: str = ""
    less: str = ""

    def judged(self, rows: dict) -> dict:
        """-> {paper, ours, agrees}, by RULE."""
        each = [rows.get(name, {}).get("each", {}).get(self.measure, []) for name in (self.more, self.less)]
        pairs = [(a, b) for a, b in zip(*each) if a is not None and b is not None]
        if len(pairs) < FEWEST:
            ours = "too few clips to say" if self.measure else "there is nothing to compare with"
            return dict(paper=self.paper, ours=ours, agrees=None)
        mean, error = spread([a - b for a, b in pairs])
        more, less = (sum(values) / len(pairs) for values in zip(*pairs))
        ours = (f"{self.measure} {more:.4g} at {self.more}, {less:.4g} at {self.less}: difference {mean:.4g}, "
                f"standard error {error:.2g}, n {len(pairs)}")
        return dict(paper=self.paper, ours=ours, agrees=True if mean > 2 * error else False if mean < -2 * error else None)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error; of a single value the error is not known and given as 0."""
    n, mean = len(values), sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / max(1, n - 1) / n) ** .5


def note(rows: dict, name: str, **values: list) -> None:
    """Add measured values, one a clip (None: nothing to measure in it), to a setting's row; each clip counts alike."""
    row = rows.setdefault(name, {"each": {}})
    for measure, more in values.items():
        each = row["each"].setdefault(measure, [])
        each += more
        known = [value for value in each if value is not None]
        row[measure] = sum(known) / len(known) if known else None


# --- what is measured ---------------------------------------------------------------------------------------------

class Job:
    """What the cases share: the models, the clips, and the small models that more than one of them trains."""

    def __init__(self, student: Kit, teacher: Callable[[], Kit], clips: int, frames: int, long: int, updates: int, seed: int,
                 level: str):
        self.student, self._teacher = student, teacher
        self.clips, self.frames, self.long, self.updates, self.seed, self.level = clips, frames, long, updates, seed, level
        self.taught: dict[str, Kit] = {}

    @cached_property
    def teacher(self) -> Kit:
        return self._teacher()

    @cached_property
    def vae(self) -> nn.Module:
        return deepcopy(self.student.vae).to(dtype=torch.float32)

    @property
    def small(self) -> Preset:
        return lesson.small(self.student.preset, PIXELS)

    @cached_property
    def batches(self) -> list:
        """What the small models train on: four chunks a clip, so that one is forgotten at last."""
        count = max(2, min(128, self.updates // 2))
        return lesson.drawn_batches(self.small, self.vae, count, 4, 4 * self.small.stream.chunk, clips=4 * count)

    @cached_property
    def unseen(self) -> list:
        """The same, of clips that they never see."""
        return lesson.drawn_batches(self.small, self.vae, 4, 8, 4 * self.small.stream.chunk, clips=32, seed=500_009)

    def seeds(self, times: int = 1) -> list[list[int]]:
        """Of held-out clips, four together."""
        stop = self.seed + times * self.clips
        return [list(range(at, min(stop, at + 4))) for at in range(self.seed, stop, 4)]


def followed(made: Tensor, clips: Shown) -> dict[str, list]:
    """psnr (dB), epe_rel (EPE / width; None where no point is visible), sharpness (share of the truth's), one a clip."""
    found, width = trackers.register(made.contiguous(), clips.truth, clips.asked.xy), made.shape[-1]
    far = [epe(found[b:b + 1], one(clips.asked, b)) for b in range(len(made))]
    return dict(psnr=psnr(made, clips.truth)[:, 1:].mean(dim=1).tolist(),
                epe_rel=[d.mean().item() / width if d.numel() else None for d in far],
                sharpness=(hands.sharpness(made) / hands.sharpness(clips.truth).clamp_min(1e-6))[:, 1:].mean(dim=1).tolist())


def one(tracks: Tracks, b: int) -> Tracks:
    return Tracks(tracks.xy[b:b + 1], tracks.visible[b:b + 1], tracks.ids[b:b + 1])


def compared(job: Job, rows: dict, kit: Kit, makers: dict[str, Callable[[Shown, int], Tensor]], frames: int, grid: int = 24,
             times: int = 1) -> list[Callable]:
    """Each setting makes the same clips; clips and seeds are those of the suite `world`."""
    world, now = World(kit.geometry, job.level), {}

    def measure(seeds, name):
        if now.get("seeds") != seeds:
            now.update(seeds=seeds, clips=shown(world, seeds, frames, grid, kit.preset.tracks.max_id, kit.device, points=16))
        note(rows, name, **followed(makers[name](now["clips"], seeds[0]), now["clips"]))

    return [partial(measure, seeds, name) for seeds in job.seeds(times) for name in makers]


def changed(kit: Kit, **stream) -> Kit:
    """The same models, streaming another way."""
    return replace(kit, preset=replace(kit.preset, stream=replace(kit.preset.stream, **stream)))


def played(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """The student streams the clips as each setting says, and then, by itself, shows how fast it is."""
    kits = {name: changed(job.student, **stream) for name, stream in settings.items()}
    makers = {name: partial(streamed, kit, frames=job.frames) for name, kit in kits.items()}
    return [*compared(job, rows, job.student, makers, job.frames), partial(timed, rows, kits, job.seed - HELD_OUT)]


def streamed(kit: Kit, clips: Shown, seed: int, frames: int) -> Tensor:
    return by_student(kit, clips.captions, clips.first, clips.dense, frames, seed)


def timed(rows: dict, kits: dict[str, Kit], seed: int) -> None:
    """latency_ms, from tracks to pictures, and frame_ms, all work over the frames made; one value a chunk (see `bench`).

    The settings take turns, so that whatever else the machine does meets all of them alike.
    """
    steps = {name: bench.stepper(kit, seed) for name, kit in kits.items()}
    remembered = max(1 + kit.preset.stream.sink + kit.preset.stream.window for kit in kits.values())
    for turn in range(remembered + TIMED):
        for name, step in steps.items():
            took = step()
            if turn >= remembered:
                note(rows, name, latency_ms=[took["latency"]], frame_ms=[took["chunk"] / took["frames"]])


def lasting(job: Job, settings: dict, rows: dict, strip: Callable, frames: int = 0, kit: Kit | None = None,
            player: Callable[[str], Kit] | None = None) -> list[Callable]:
    """A thing is led round and round (`hands`, "long") by all its points, while others say that the rest stays; how do the
    last three chunks compare with the first three?

    frames: by default the length asked for; cut down to whole chunks. kit: of what sizes, by default the student. player:
    who plays a setting, by default that kit as the setting says. Under "lines", chunk by chunk: psnr; sharpness and
    saturation as shares of the truth's. EPE begins anew in each of the two stretches: what is further away there than
    `trackers.register` reaches, a sixth of the width, may read as less, and what has melted away may be found by chance.
    """
    frames = frames or job.long
    kit = kit or job.student
    player = player or (lambda name: changed(kit, **settings[name]))
    world, now = World(kit.geometry, job.level), {}
    whole = kit.preset.stream.chunk * kit.geometry.time_stride
    spans = [(a, b) for i, (a, b) in enumerate(hands.spans(kit, frames)) if i == 0 or b - a == whole]
    frames = spans[-1][1]
    scenes = hands.takes(world, "long", job.seed, job.clips, frames, kit.preset.tracks.max_id)

    def measure(name):
        if name == next(iter(settings)):
            now.update(shot=by_all(next(scenes), kit.preset.tracks.max_id), made={})
        shot = now["shot"]
        made = hands.play(player(name), shot)
        lines = looks(made[0], shot.truth[0], spans)
        ends = [(spans[0][0], spans[min(2, len(spans) - 1)][1]), (spans[max(0, len(spans) - 3)][0], frames)]
        first, last = (led(made, shot, start, stop) for start, stop in ends)
        mean = lambda values: sum(values) / len(values)
        share = {f"{what}_kept": [mean(lines[what][-3:]) / max(1e-6, mean(lines[what][:3]))] for what in
                 ("sharpness", "saturation")}
        note(rows, name, psnr_first=[mean(lines["psnr"][:3])], psnr_last=[mean(lines["psnr"][-3:])], epe_rel_first=[first],
             epe_rel_last=[last], **share)
        for what, line in lines.items():
            rows[name].setdefault("lines", {}).setdefault(what, []).append([round(value, 4) for value in line])
        rows[name]["chunk_ends"] = [stop for _, stop in spans]
        if len(rows[name]["each"]["psnr_last"]) == 1:
            now["made"][name] = made
            if len(now["made"]) == len(settings):
                strip(film(now["made"], shot))

    return [partial(measure, name) for _ in range(job.clips) for name in settings]


def by_all(shot: hands.Take, max_id: int) -> hands.Take:
    """The same take, told by every point that is measured: what one handle cannot say is another question (`hands`)."""
    thing = shot.dragged.concat(shot.thing)
    told = replace(thing, visible=torch.ones_like(thing.visible)).concat(shot.rest)
    ids = draw_ids(1, told.xy.shape[2], max_id, torch.Generator().manual_seed(shot.seed))
    return replace(shot, told=replace(told, ids=ids, origin=told.xy[:, 0]))


def looks(made: Tensor, truth: Tensor, spans: list[tuple[int, int]]) -> dict[str, list[float]]:
    """made, truth [T, 3, H, W] -> chunk by chunk: psnr; sharpness and saturation as shares of the truth's."""
    lines = dict(psnr=psnr(made, truth), sharpness=hands.sharpness(made) / hands.sharpness(truth).clamp_min(1e-6),
                 saturation=hands.saturation(made) / hands.saturation(truth).clamp_min(1e-6))
    return {what: [line[start:stop].mean().item() for start, stop in spans] for what, line in lines.items()}


def led(made: Tensor, shot: hands.Take, start: int, stop: int) -> float | None:
    """EPE over the width of the dragged thing's points, in frames [start, stop) of a take."""
    points = shot.dragged.concat(shot.thing).frames(start, stop)
    far = epe(trackers.register(made[:, start:stop], shot.truth[:, start:stop], points.xy), points)
    return far.mean().item() / made.shape[-1] if far.numel() else None


def film(made: dict[str, Tensor], shot: hands.Take, count: int = 9) -> Image.Image:
    """The truth above, below it each setting's video, evenly over all of it; the dot is where the hand is."""
    frames = shot.truth.shape[1]
    pick = torch.linspace(0, frames - 1, min(count, frames)).round().long()
    hand = Tracks(shot.dragged.xy[:, pick], shot.dragged.visible[:, pick], shot.dragged.ids)
    rows = {f"{shot.caption}, seed {shot.seed}; {frames} frames. Truth:": shot.truth, **made}
    strips = [viz.strip(viz.draw_tracks(video[0, pick], hand, trail=0), count) for video in rows.values()]
    return viz.grid(strips, list(rows))


def remembered(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """`lasting`, over three clips of training."""
    return lasting(job, settings, rows, strip, 3 * job.frames)


def guided(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """The teacher makes clips of half the length in a quarter of its steps: enough to see which way a weight pulls."""
    time_stride = job.student.geometry.time_stride
    frames = 1 + time_stride * ((job.frames - 1) // (2 * time_stride))

    def make(clips, seed, text_scale, motion_scale):
        steps = max(1, job.teacher.preset.sample_steps // 4)
        preset = replace(job.teacher.preset, sample_steps=steps, text_scale=text_scale, motion_scale=motion_scale)
        return by_teacher(replace(job.teacher, preset=preset), clips.captions, clips.first, clips.dense, frames, seed)

    return compared(job, rows, job.student, {name: partial(make, **scales) for name, scales in settings.items()}, frames)


# --- small models from nothing ------------------------------------------------------------------------------------

class Drawn(nn.Module):
    """Tracks drawn in colour and sent through the autoencoder: what the track head replaces (`motion.drawn`)."""

    def __init__(self, vae: nn.Module, geometry):
        super().__init__()
        self.vae, self.geometry = vae, geometry

    def forward(self, tracks: Tracks, start: bool = True, carried: Tensor | None = None) -> Tensor:
        frames = drawn(tracks, self.geometry)
        repeat = (self.geometry.time_stride - 1) * start
        return self.vae.encode_alone(torch.cat([frames[:, :1].expand(-1, repeat, -1, -1, -1), frames], dim=1))


class Carried(nn.Module):
    """What the tracks carry (`carry.carry`), and no ids."""

    def forward(self, tracks: Tracks, start: bool = True, carried: Tensor | None = None) -> Tensor:
        return carried


def told(preset: Preset, vae: nn.Module, way: str, splat: str = "") -> tuple[Preset, nn.Module | None]:
    """The preset for one way of telling the transformer about tracks (see the case `tracks`), and its head, if not a
    `TrackHead`."""
    tracks = replace(preset.tracks, carry=preset.tracks.carry * (way not in ("ids", "drawn")),
                     splat=splat or preset.tracks.splat)
    wide = tracks.width(preset.geometry.time_stride)
    channels = {"drawn": preset.vae.latent_channels, "carried": wide - tracks.channels}.get(way, wide)
    pull = tracks.channels if way.endswith("pull") else -1
    head = {"drawn": Drawn(vae, preset.geometry), "carried": Carried()}.get(way)
    return replace(preset, tracks=tracks, dit=replace(preset.dit, motion_channels=channels, pull=pull)), head


def pupil(job: Job, way: str, splat: str = "") -> Kit:
    """A small teacher, trained from nothing; the same way twice is trained once."""
    splat = splat or job.small.tracks.splat
    key = f"{way}, {splat}"
    if key not in job.taught:
        preset, head = told(job.small, job.vae, way, splat)
        models = lesson.teach(preset, job.batches, job.updates, lr=3e-3, seed=job.seed, track_head=head)
        job.taught[key] = lesson.as_kit(models, preset, job.vae)
    return job.taught[key]


def trained(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """A small teacher for each setting, and its loss on clips it never saw; four times as many are made as elsewhere."""
    def make(name, clips, seed):
        return by_teacher(pupil(job, **settings[name]), clips.captions, clips.first, clips.dense, job.frames, seed)

    def measure(name):
        kit = pupil(job, **settings[name])
        models = Teacher(kit.dit, kit.track_head, kit.text)
        torch.manual_seed(job.seed)
        with torch.no_grad():
            losses = [teacher_loss(models, batch, kit.preset.stream.time_shift)[0].item() for batch in job.unseen]
        note(rows, name, loss=losses)

    small = lesson.as_kit(lesson.untrained(job.small).to(job.student.device), job.small, job.vae)
    makers = {name: partial(make, name) for name in settings}
    return [*(partial(measure, name) for name in settings), *compared(job, rows, small, makers, job.frames, 8, times=4)]


def placed(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """`trained`, and how far from a lone point the middle of its stamp lies, in cells: what the map itself still knows."""
    def measure(name, splat):
        geometry = job.small.geometry
        size = torch.tensor([geometry.width, geometry.height]) - 2 * geometry.stride
        spots = torch.rand(1, 1, 4096, 2, generator=torch.Generator().manual_seed(0))
        points = Tracks.of(geometry.stride + size * spots)                                          # none near the border
        index, weight = cells(points, geometry, splat)                                              # [1, 1, N, K]
        columns = geometry.latent_size[1]
        middles = torch.stack([index % columns, index // columns], dim=-1) + .5
        middle = (middles * weight[..., None]).sum(dim=-2) / weight.sum(dim=-1, keepdim=True)
        note(rows, name, place=[round((middle - points.xy / geometry.stride).norm(dim=-1).mean().item(), 4)])

    return [*(partial(measure, name, how["splat"]) for name, how in settings.items()), *trained(job, settings, rows, strip)]


def encoded(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """`trained`, and encode_ms: milliseconds for the map of one later chunk of 64 tracks, at the shipped model's size."""
    kit = job.student
    geometry, chunk = kit.geometry, kit.preset.stream.chunk
    tracks = Tracks.grid(geometry, 8, geometry.time_stride * chunk)
    picture = torch.rand(1, 3, geometry.height, geometry.width, generator=torch.Generator().manual_seed(0))

    def measure(name, way):
        preset, head = told(kit.preset, kit.vae, way)
        head = head or TrackHead(preset.tracks, preset.geometry).to(kit.device)
        mapped, times = replace(kit, preset=preset, track_head=head), []
        for _ in range(2 + TIMED):
            began = perf_counter()
            mapped.motion(tracks, mapped.moved(tracks, picture), start=False).float().cpu()
            times.append(1000 * (perf_counter() - began))
        note(rows, name, encode_ms=times[2:])

    return [*(partial(measure, name, how["way"]) for name, how in settings.items()), *trained(job, settings, rows, strip)]


def practised(job: Job, models: Teacher, config: StreamConfig, student: nn.Module, own: bool) -> nn.Module:
    """A causal student goes on learning, on its own past or on the true one."""
    learns = lesson.copy(student)
    learner = Learner(learns, 5e-4, ema=.95)

    def loss_of(batch):
        cond, noise = condition(models, batch), torch.randn_like(batch.latents)
        if not own:
            return ode.ode_loss(learns, ode.straight(batch.latents, cond, config, noise), config)
        exit_at = int(torch.randint(config.steps, ()))
        return F.mse_loss(dmd.roll_out(learns, cond, noise, config, exit_at).float(), batch.latents), {}

    torch.manual_seed(job.seed)
    for _ in lesson.taught(learner, loss_of, job.batches, job.updates // 4):
        pass
    return learns.eval().requires_grad_(False)


def rolled(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """One causal student goes on learning the same clips in two ways: what is it given as past, the truth or its own?"""
    preset, students = job.small, {}
    config = preset.stream

    def student(way):
        teacher = pupil(job, "carried + ids")
        models = Teacher(teacher.dit, teacher.track_head, teacher.text)
        if "start" not in students:
            students["start"] = lesson.adapt(models, preset, job.batches[:16], job.updates // 4, seed=job.seed)
        if way not in students:
            students[way] = practised(job, models, config, students["start"], own=way == "own")
        return lesson.as_kit(models, preset, job.vae, students[way])

    frames = preset.geometry.pixel_frames(8 * config.chunk)                     # twice the length of training

    def make(way, clips, seed):
        return streamed(student(way), clips, seed, frames)

    small = lesson.as_kit(lesson.untrained(preset).to(job.student.device), preset, job.vae)
    makers = {name: partial(make, how["way"]) for name, how in settings.items()}
    return [*(partial(student, how["way"]) for how in settings.values()),
            *compared(job, rows, small, makers, frames, 8, times=4)]


def forgetful(job: Job, settings: dict, rows: dict, strip: Callable) -> list[Callable]:
    """`lasting`, over four clips of training, by small students that see the picture in the first frame only and are told
    of tracks by ids alone, as the paper's are: what they do not remember is lost. Each learned with the memory it has."""
    preset, known = lesson.paper_layout(job.small), {}

    def student(name):
        if "models" not in known:
            known["models"] = lesson.teach(preset, job.batches, job.updates, lr=3e-3, seed=job.seed)
        if name not in known:
            models, own = known["models"], replace(preset, stream=replace(preset.stream, **settings[name]))
            start = lesson.adapt(models, own, job.batches[:16], job.updates // 4, seed=job.seed)
            known[name] = lesson.as_kit(models, own, job.vae, practised(job, models, own.stream, start, own=True))
        return known[name]

    small = lesson.as_kit(lesson.untrained(preset).to(job.student.device), preset, job.vae)
    return [*(partial(student, name) for name in settings),
            *lasting(job, settings, rows, strip, 4 * job.frames, small, student)]


# --- the cases ----------------------------------------------------------------------------------------------------

MEASURES = {
    "epe_rel": "EPE / width", "psnr": "PSNR, dB", "sharpness": "sharpness / truth's", "latency_ms": "latency, ms",
    "frame_ms": "ms a frame", "loss": "loss, unseen clips", "place": "off by, cells", "encode_ms": "ms to encode a chunk",
    "psnr_first": "PSNR at first, dB", "psnr_last": "PSNR at last, dB", "epe_rel_first": "EPE / width at first",
    "epe_rel_last": "EPE / width at last", "sharpness_kept": "sharpness, last / first",
    "saturation_kept": "saturation, last / first",
}


@dataclass(frozen=True)
class Case:
    """One choice. settings: by name, what is changed; plan: the measurements to make, in order, each adding to the rows."""
    says: str
    settings: dict[str, dict]
    plan: Callable[[Job, dict, dict, Callable], list[Callable]]
    claims: tuple[Claim, ...]
    draw: Callable[[dict, str], Image.Image]


def dots(rows: dict, title: str) -> Image.Image:
    """Every measure, setting by setting."""
    panels = {}
    for measure, label in MEASURES.items():
        for name, row in rows.items():
            known = [value for value in row["each"].get(measure, []) if value is not None]
            if known:
                panels.setdefault(label, {})[name] = spread(known)
    return viz.whiskers(panels, title)


def over_time(rows: dict, title: str) -> Image.Image:
    """psnr, sharpness and saturation chunk by chunk, means over scenes."""
    panels = {}
    for what, label in (("psnr", "PSNR, dB"), ("sharpness", "sharpness / truth's"), ("saturation", "saturation / truth's")):
        panels[label] = {name: (row["chunk_ends"], torch.tensor(row["lines"][what]).mean(dim=0))
                         for name, row in rows.items()}
    return viz.curves_beside(panels, "pixel frame", title, {"length of training": TRAINED})


def squares(rows: dict, title: str, settings: dict, axes: dict[str, str], measures: tuple[str, ...]) -> Image.Image:
    """Heat maps, one for each measure, over two things that the settings change: axes, down and across, by their labels."""
    (first, second), labels = axes, list(axes.values())
    down, across = (sorted({how[axis] for how in settings.values()}) for axis in axes)
    tables = {}
    for measure in measures:
        table = tables[MEASURES[measure]] = torch.full((len(down), len(across)), nan)
        for name, how in settings.items():
            value = rows.get(name, {}).get(measure)
            table[down.index(how[first]), across.index(how[second])] = nan if value is None else value
    numbers = [".1f" if measure.startswith("psnr") else ".4f" if "epe" in measure else ".2f" for measure in measures]
    return viz.matrices(tables, labels[1], labels[0], title, ticks=(down, across), numbers=numbers, apart=True)


def by_memory(rows: dict, title: str) -> Image.Image:
    maps = squares(rows, title, MEMORY, {"sink": "sink, chunks", "window": "window, chunks"},
                   ("psnr_last", "epe_rel_last", "sharpness_kept", "saturation_kept"))
    narrow = {name: row for name, row in rows.items() if name.endswith("window 1")}
    return viz.grid([maps, over_time(narrow, "chunk by chunk, with a window of one chunk")])


def by_guidance(rows: dict, title: str) -> Image.Image:
    return squares(rows, title, GUIDANCE, {"text_scale": "text scale", "motion_scale": "motion scale"},
                   ("epe_rel", "psnr", "sharpness"))


MEMORY = {f"sink {s}, window {w}": dict(sink=s, window=w) for s in (0, 1, 2) for w in (1, 2, 4)}
GUIDANCE = {f"text {t:g}, motion {m:g}": dict(text_scale=t, motion_scale=m) for t in (0, 1., 3.) for m in (0, .75, 1.5, 3.)}
SPLAT = {mode: dict(way="ids", splat=mode) for mode in ("floor", "round", "bilinear")}
WAYS = ("drawn", "ids", "carried", "carried + ids", "carried + ids + pull")
PAST = {"the true past": dict(way="true"), "its own past": dict(way="own"), "before": dict(way="start")}

CASES = {
    "chunk": Case("latent frames made at once", {str(n): dict(chunk=n) for n in (1, 3, 5, 7)}, played, (
        Claim("one latent frame at a time follows much worse than three (Table 4: EPE 76 against 25)", "epe_rel", "1", "3"),
        Claim("and costs more a frame (Table 4: 13.3 against 16.9 frames a second)", "frame_ms", "1", "3"),
        Claim("larger chunks answer later", "latency_ms", "7", "3"),
        Claim("seven cost more a frame than three, as they look back on more", "frame_ms", "7", "3")), dots),
    "steps": Case("denoising steps a chunk", {str(n): dict(steps=n, levels=()) for n in (1, 2, 3, 4)}, played, (
        Claim("two steps are visibly worse than three (Fig. A2b)", "epe_rel", "2", "3"),
        Claim("(the same, in sharpness)", "sharpness", "3", "2")), dots),
    "memory": Case("chunks remembered: the first for good, the latest for a while", MEMORY, remembered, (
        Claim("without a sink the picture is lost (Table 4: LPIPS .501 against .464)", "psnr_last", "sink 1, window 1",
              "sink 0, window 1"),
        Claim("without a sink points are followed worse (Table 4: EPE 26.6 against 25.3)", "epe_rel_last",
              "sink 0, window 1", "sink 1, window 1"),
        Claim("a larger window is worse, not better: errors gather in it (Fig. 6)", "psnr_last", "sink 1, window 1",
              "sink 1, window 4")), by_memory),
    "drift": Case("far beyond the length of training", {"sink 1": dict(sink=1), "no sink": dict(sink=0)}, lasting, (
        Claim("without a sink the video blurs after some hundred frames", "sharpness_kept", "sink 1", "no sink"),
        Claim("without a sink points are followed worse (Table 4)", "epe_rel_last", "no sink", "sink 1")), over_time),
    "once": Case("memory of small students that are shown the picture once, not beside every chunk", {
        "sink 1": dict(sink=1), "no sink": dict(sink=0), "no sink, window 2": dict(sink=0, window=2)}, forgetful, (
        Claim("without a sink the picture is lost (Table 4: LPIPS .501 against .464)", "psnr_last", "sink 1", "no sink"),
        Claim("(and not because less is remembered)", "psnr_last", "sink 1", "no sink, window 2"),
        Claim("without a sink the video blurs", "sharpness_kept", "sink 1", "no sink")), over_time),
    "guidance": Case("weights of text and motion, in the teacher", GUIDANCE, guided, (
        Claim("weight on motion follows better (Fig. 4)", "epe_rel", "text 0, motion 0", "text 0, motion 1.5"),
        Claim("weight on text follows worse (Fig. 4)", "epe_rel", "text 3, motion 1.5", "text 0, motion 1.5")), by_guidance),
    "splat": Case("where on the grid a track leaves its id", SPLAT, placed, (
        Claim("in the cell that the point lies in (Eq. 1); other ways are not compared"),), dots),
    "tracks": Case("how the transformer is told of tracks", {way: dict(way=way) for way in WAYS}, encoded, (
        Claim("ids through a light head are followed better than a drawn map through the autoencoder (Table 3: EPE 6.54 "
              "against 8.57)", "epe_rel", "drawn", "ids"),
        Claim("(the same, in the loss)", "loss", "drawn", "ids"),
        Claim("and ids are encoded some forty times faster", "encode_ms", "drawn", "ids")), dots),
    "rollout": Case("what a student is given as its past while it learns", PAST, rolled, (
        Claim("who learns on its own rollouts, rolling cache and all, follows better (Sec. 3.3)", "epe_rel", "the true past",
              "its own past"),
        Claim("(the same, in PSNR)", "psnr", "its own past", "the true past")), dots),
}


# --- the suite ----------------------------------------------------------------------------------------------------

def run(model: str | Kit = "tiny", clips: int = 4, json_path=None, *, cases: tuple[str, ...] = tuple(CASES),
        long: int | None = None, frames: int = 45, updates: int = 300, charts=None, seed: int = HELD_OUT,
        level: str = "calm", device=None, teacher: Kit | None = None, quiet: bool = False) -> dict:
    """Go through the cases and print what was found; an interrupt keeps what was measured.

    model: a name for `load`, or a student's Kit (then `teacher` is its teacher's, for the case "guidance"). clips: of each
    setting, or scenes. long: pixel frames of the case "drift", by default 20 clips of training; "memory" has three.
    updates: of each small model. charts: a folder for a picture of each case, and film strips of the long ones.
    -> {"cases": {case: {says, settings: {setting: {measure: mean, ..., each: {measure: values}}}, claims, complete}}, ...};
    written to json_path after each measurement. A finished case that stands there already is kept and not measured again;
    a file of other weights, or asked for in another way, is refused.
    """
    unknown = sorted(set(cases) - set(CASES))
    if unknown:
        raise ValueError(f"ablations have no case called {', '.join(unknown)}: use some of {', '.join(CASES)}")
    held_out(seed)
    if charts:                                              # before an hour is spent
        Path(charts).mkdir(parents=True, exist_ok=True)
    student = model if isinstance(model, Kit) else load(model, device=device)
    if "guidance" in cases and teacher is None and isinstance(model, Kit):
        raise ValueError("the teacher's guidance is to be measured but only a student's kit came: hand in teacher= too")
    student.geometry.latent_frames(frames)
    if student.preset.text is None or not student.preset.tracks.carry:
        small = [name for name in cases if CASES[name].plan in (placed, encoded, rolled, forgetful)]
        if small:
            raise ValueError(f"{student.name} lends no sizes for small models, which {', '.join(small)} would train: leave "
                             "them out")
    job = Job(student, lambda: teacher or load(model, "teacher", device), clips, frames, long or LENGTH * frames, updates,
              seed, level)
    asked = dict(clips=clips, frames=frames, long=job.long, updates=updates, seed=seed, level=level,
                 stream=asdict(student.preset.stream))
    report = header("ablations", student, machine=bench.device_name(student), threads=torch.get_num_threads(), rule=RULE,
                    asked=asked, cases={})
    old = earlier(json_path, report, "machine", "asked") or {"cases": {}}
    report["cases"] = {name: case for name, case in old["cases"].items() if case["complete"]}
    todo = {name: CASES[name] for name in CASES if name in cases and not report["cases"].get(name, {}).get("complete")}
    if len(todo) < len(cases) and not quiet:
        print(f"{json_path} holds {', '.join(name for name in cases if name not in todo)} already: these are kept")
    plans = {}
    for name, case in todo.items():
        report["cases"][name] = dict(says=case.says, settings={}, claims=[], complete=False)
        plans[name] = case.plan(job, case.settings, report["cases"][name]["settings"],
                                lambda strip, name=name: save_strip(strip, charts, f"{name}_strip") if charts else None)

    def rounds(bar):
        for name, plan in plans.items():
            found = report["cases"][name]
            bar.set_description(f"ablations: {name}")
            for count, measure in enumerate(plan, 1):
                measure()
                found["claims"] = [claim.judged(found["settings"]) for claim in CASES[name].claims]
                found["complete"] = count == len(plan)
                if charts and found["complete"]:
                    save_strip(chart(report, name), charts, name)
                bar.update()
                yield

    return keep(report, rounds, sum(map(len, plans.values())), json_path, table, quiet, "measurement")


# --- reporting ----------------------------------------------------------------------------------------------------

def chart(report: dict, name: str) -> Image.Image:
    """The picture of one case of a report, which may come from its file."""
    case = report["cases"][name]
    rows = case["settings"]
    n = max(len(row["each"].get("psnr", row["each"].get("psnr_last", []))) for row in rows.values())
    return CASES[name].draw(rows, f"{name}: {case['says']}\n{report['model']}, {report['machine']}, up to {n} clips")


def table(report: dict) -> str:
    """The rows as people read them, and the claims."""
    lines = [f"{report['model']}, {report['dtype']} on {report['machine']}, {report['threads']} threads; means over clips"]
    for name, case in report["cases"].items():
        rows = case["settings"]
        measured = [m for m in MEASURES if any(row.get(m) is not None for row in rows.values())]
        lines += ["", f"{name}: {case['says']}{'' if case['complete'] else ' (not finished)'}",
                  f"{'':<22}" + "".join(f"{m:>17}" for m in measured)]
        for setting, row in rows.items():
            lines.append(f"{setting:<22}" + "".join(f"{row[m]:>17.4f}" if row.get(m) is not None else f"{'-':>17}"
                                                    for m in measured))
        for claim in case["claims"]:
            said = {True: "agrees", False: "does not agree", None: "not told apart"}[claim["agrees"]]
            lines.append(f"  paper: {claim['paper']}\n  here:  {said}; {claim['ours']}")
    return "\n".join(lines)
