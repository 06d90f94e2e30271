"""How good? Held-out clips of the procedural world, made again by teacher and student, and measured against the truth.

After MotionStream, Sec. 4.2: the given first frame, the caption and a dense grid of exact tracks go in; PSNR, SSIM and EPE
against the true clip come out. Frame 0 is given and never counted. EPE is the mean distance between where a point truly is
and where it is found in the made video, over visible points; how it is found, and which points can be asked about, stands
in `trackers`. Beside the models stand what frames them:

    first_frame    the still image, repeated: doing nothing
    vae            the truth through encoder and decoder: the ceiling
    tracker        the truth displaced by a known field, blurred and noisy: its epe is by how much the tracker misreads the
                   field, below which no other epe means anything: the floor
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from . import trackers
from .kit import Kit, load, write_whole
from .motion import draw_ids
from .sample import options, sample
from .stream import Roll, draw, given
from .tracks import Tracks
from .world import HELD_OUT, World, grid_points

ROLES = ("teacher", "student", "first_frame", "vae", "tracker")
POINTS = 32         # measured points in a clip
HELD = ("hands", "real", "cut")     # suites in which hands take hold of things: of the others the cutter is no part


# --- measures -----------------------------------------------------------------------------------------------------

def psnr(made: Tensor, truth: Tensor) -> Tensor:
    """[..., 3, H, W] in [0, 1] -> decibels [...], one per frame; at most 100."""
    return -10 * (made - truth).square().mean(dim=(-3, -2, -1)).clamp_min(1e-10).log10()


def ssim(made: Tensor, truth: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B]: Wang et al. 2004, Gaussian 11 x 11 of sigma 1.5, edges mirrored."""
    axis = torch.arange(-5, 6, device=made.device, dtype=made.dtype)
    line = torch.exp(-axis.square() / (2 * 1.5 ** 2))
    line = (line / line.sum()).expand(3, 1, 1, -1)

    def mean(x):
        return F.conv2d(F.conv2d(F.pad(x, (5, 5, 5, 5), mode="reflect"), line, groups=3), line.mT, groups=3)

    a, b = mean(made), mean(truth)
    aa, bb, ab = mean(made * made) - a * a, mean(truth * truth) - b * b, mean(made * truth) - a * b
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    return ((2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))).mean(dim=(-3, -2, -1))


def epe(found: Tensor, tracks: Tracks) -> Tensor:
    """Distances in pixels of found [B, T, N, 2] from the truth, for visible points of all frames but the first: [M]"""
    return (found - tracks.xy).norm(dim=-1)[:, 1:][tracks.visible[:, 1:]]


def followed(made: Tensor, asked: Tracks) -> tuple[Tensor, Tracks]:
    """Where the asked points of one clip are found in a video that has no truth: `trackers.track` from frame 0 on.

    made [1, T, 3, H, W]. Only points with texture in frame 0 can be found again -> positions [1, T, n, 2], and the asked
    tracks of these n points, for `epe`. Part of what it measures is the tracker's own drift.
    """
    height, width = made.shape[-2:]
    rich = trackers.texture(made[:, 0], max(4, round(trackers.PATCH * width / trackers.REFERENCE)))[0]         # [H, W]
    x, y = asked.xy[0, 0].long().unbind(-1)
    keep = asked.visible[0, 0] & (rich[y.clamp(0, height - 1), x.clamp(0, width - 1)] >= trackers.TEXTURE)
    asked = Tracks(asked.xy[:, :, keep], asked.visible[:, :, keep], asked.ids[:, keep])
    return trackers.track(made, asked.xy[:, 0], "flow").xy if keep.any() else asked.xy, asked


@dataclass
class Row:
    """What was measured so far, clip by clip; means are over frames (psnr, ssim) and over visible points (epe)."""
    width: int
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)       # summed over a clip's points
    seen: list[int] = field(default_factory=list)             # how many that were
    extra: dict = field(default_factory=dict)

    @classmethod
    def of(cls, summary: dict, width: int, clips: int) -> Row:
        """The row that a summary is of, its first `clips` clips."""
        return cls(width, **{name: values[:clips] for name, values in summary["each"].items()})

    def only(self, kept: list[bool]) -> Row:
        """The row of some of its clips."""
        some = lambda values: [value for value, keep in zip(values, kept, strict=True) if keep]
        return Row(self.width, some(self.psnr), some(self.ssim), some(self.distance), some(self.seen))

    def add(self, made: Tensor, truth: Tensor, found: Tensor, tracks: Tracks) -> None:
        for b in range(len(made)):
            self.psnr.append(psnr(made[b, 1:], truth[b, 1:]).mean().item())
            self.ssim.append(ssim(made[b, 1:], truth[b, 1:]).mean().item())
            distances = epe(found[b:b + 1], Tracks(tracks.xy[b:b + 1], tracks.visible[b:b + 1], tracks.ids[b:b + 1]))
            self.distance.append(distances.sum().item())
            self.seen.append(distances.numel())

    def summary(self) -> dict:
        """psnr (dB), ssim, epe (pixels), epe_rel (epe / width), n (clips), and the standard error of epe over clips; each:
        what was measured, one value a clip."""
        n = len(self.psnr)
        each = dict(psnr=self.psnr, ssim=self.ssim, distance=self.distance, seen=self.seen)
        if not n:
            return dict(psnr=None, ssim=None, epe=None, epe_rel=None, n=0, each=each)
        mean = sum(self.distance) / max(1, sum(self.seen))
        spread = sum((d - mean * s) ** 2 for d, s in zip(self.distance, self.seen)) ** 0.5 / max(1, sum(self.seen))
        return dict(psnr=sum(self.psnr) / n, ssim=sum(self.ssim) / n, epe=mean, epe_rel=mean / self.width, n=n,
                    epe_error=spread, points=sum(self.seen), **self.extra, each=each)


# --- what makes the videos ------------------------------------------------------------------------------------------

@torch.no_grad()
def by_student(kit: Kit, captions: list[str], first: Tensor, tracks: Tracks | None, frames: int, seed: int) -> Tensor:
    """A batch of clips streamed chunk by chunk, as `Stream` plays them. first [B, 3, H, W] -> frames [B, T, 3, H, W]."""
    config, generator = kit.preset.stream, torch.Generator().manual_seed(seed)
    tracks, moved = by_chunks(kit, tracks, first, frames)
    cond = kit.condition(captions, tracks, first, moved)
    roll, made, past = Roll(kit.dit, kit.dit.read(cond.text, cond.clip), config), [], None
    for now in (slice(*span) for span in _chunks(kit, frames)):
        motion = cond.motion[:, now] if cond.motion is not None else None
        x0 = roll.next(_noise(kit, len(captions), now.stop - now.start, generator), motion,
                       given(kit.dit, cond.image, now), generator=generator)
        pixels, past = kit.vae.decode(x0, past)
        done = sum(part.shape[1] for part in made)
        made.append(kit.finished(pixels, moved[:, done:done + pixels.shape[1]] if moved is not None else None, captions))
    return torch.cat(made, dim=1)[:, :frames].float()


def _chunks(kit: Kit, frames: int) -> list[tuple[int, int]]:
    """Latent frames [from, to) of each chunk, until there are so many pixel frames."""
    found = []
    while not found or found[-1][1] < kit.geometry.latent_frames(frames):
        found.append(kit.preset.stream.span(len(found)))
    return found


def by_chunks(kit: Kit, tracks: Tracks | None, first: Tensor, frames: int) -> tuple[Tracks | None, Tensor | None]:
    """Tracks over whole chunks, and `Kit.moved` of them, chunk by chunk: what moves in a later one is not lifted yet."""
    if tracks is None:
        return None, None
    chunks = _chunks(kit, frames)
    tracks = _until(tracks, kit.geometry.pixel_frames(chunks[-1][1]))
    if not tracks.visible.any():
        return tracks, None
    told = replace(tracks, origin=tracks.origins())
    parts = [kit.moved(told.frames(*kit.geometry.span(start, stop - start)), first, shown=True) for start, stop in chunks]
    return tracks, torch.cat(parts, dim=1) if parts[0] is not None else None


@torch.no_grad()
def by_teacher(kit: Kit, captions: list[str], first: Tensor, tracks: Tracks | None, frames: int, seed: int) -> Tensor:
    """A batch of whole clips by the jointly guided teacher. -> frames [B, T, 3, H, W]"""
    generator = torch.Generator().manual_seed(seed)
    moved = kit.moved(tracks, first)
    cond = kit.condition(captions, tracks, first, moved)
    noise = _noise(kit, len(captions), kit.geometry.latent_frames(frames), generator)
    for step in sample(kit.dit, noise, cond, **options(kit.preset)):
        latents = step.x0
    return torch.cat([made.float() for made in kit.decode(latents, moved=moved, prompts=captions)], dim=1)


@torch.no_grad()
def through_vae(kit: Kit, truth: Tensor) -> Tensor:
    return torch.cat([frames.float() for frames in kit.decode(kit.vae.encode(truth))], dim=1)


def displaced(truth: Tensor, seed: int, most: float = 3.0) -> tuple[Tensor, Tensor]:
    """The truth moved by a smooth known field of up to `most` pixels (at 96 px of width), blurred, with noise.

    A made video's error is of that kind. -> frames, and the field [B, T, 2, H, W] by which each pixel went (x, y).
    """
    (B, T, _, H, W), device = truth.shape, truth.device
    g = torch.Generator().manual_seed(seed)
    field = (torch.rand(B * T, 2, 3, 3, generator=g) * 2 - 1) * most * W / trackers.REFERENCE
    field = F.interpolate(field, (H, W), mode="bicubic", align_corners=True).to(device)
    y, x = torch.meshgrid(torch.arange(H, device=device) + 0.5, torch.arange(W, device=device) + 0.5, indexing="ij")
    grid, back = torch.stack([x, y], dim=-1), field                              # what is shown at x came from x - field
    for _ in range(5):                                                           # field is given where points start
        back = F.grid_sample(field, _unit(grid - back.permute(0, 2, 3, 1), H, W), padding_mode="border", align_corners=False)
    frames = F.grid_sample(truth.flatten(0, 1), _unit(grid - back.permute(0, 2, 3, 1), H, W), mode="bicubic",
                           padding_mode="reflection", align_corners=False)
    frames = trackers.smooth(frames, 0.8) + 0.02 * torch.randn(frames.shape, generator=g).to(device)
    return frames.clamp(0, 1).view_as(truth), field.unflatten(0, (B, T))


def misread(truth: Tensor, xy: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The `displaced` truth, and where points at xy [B, T, N, 2] are found in it, the known field taken off again."""
    made, field = displaced(truth, seed)
    known = F.grid_sample(field.flatten(0, 1), _unit(xy.flatten(0, 1), *truth.shape[-2:])[:, :, None], align_corners=False,
                          padding_mode="border")[..., 0].mT.unflatten(0, truth.shape[:2])             # [B, T, N, 2]
    return made, trackers.register(made, truth, xy) - known


def _unit(xy: Tensor, height: int, width: int) -> Tensor:
    return xy * 2 / xy.new_tensor([width, height]) - 1


def _noise(kit: Kit, batch: int, length: int, generator: torch.Generator) -> Tensor:
    (h, w), channels = kit.geometry.latent_size, kit.dit.config.latent_channels
    return draw(torch.empty(batch, length, channels, h, w, device=kit.device), generator)


def _until(tracks: Tracks, frames: int) -> Tracks:
    """Tracks over more frames than they were given for: they end there and say nothing afterwards."""
    more = max(0, frames - tracks.xy.shape[1])
    return replace(tracks, xy=torch.cat([tracks.xy, tracks.xy[:, -1:].expand(-1, more, -1, -1)], dim=1),
                   visible=F.pad(tracks.visible, (0, 0, 0, more)))


# --- the suite ------------------------------------------------------------------------------------------------------

def run(suite: str = "world", model: str | Kit = "tiny", clips: int = 64, json_path=None, *, seed: int = HELD_OUT,
        level: str = "calm", roles: tuple[str, ...] = ROLES, frames: int = 45, grid: int = 0, batch: int = 4,
        device=None, teacher: Kit | None = None, steps: int | None = None, solver: str | None = None,
        quiet: bool = False) -> dict:
    """Measure `clips` held-out clips and print the table; an interrupt keeps what was measured.

    model: a name for `load`, or a student's Kit (then `teacher` is its teacher's, if that is to be measured).
    frames: T, whole latent frames (45 pixel frames are four chunks of three). grid: tracks along each side of the frame; 0:
    one every four pixels. steps, solver: the teacher's (see `sample`), if not its preset's.
    -> {"rows": {role: {psnr, ssim, epe, epe_rel, n, ..., each: {measure: one value a clip}, clear: {psnr, ssim, epe,
    epe_rel, n} of the clips without specks in the air, where there are others}}, ...}: specks that are drawn, but elsewhere,
    are read as points gone astray. It is written to json_path after each batch. What stands there already of these weights,
    asked for in the same way, is gone on with. The student has a second row, `student_sparse`: 1 to 20 points as drawn by
    hand, measured at these points alone.
    """
    if suite != "world":
        raise ValueError(f"no suite called {suite!r} here: use 'world', or run of hands, words, cuts, ablations")
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise ValueError(f"nothing plays the role of {', '.join(unknown)}: use some of {', '.join(ROLES)}")
    held_out(seed)
    student = model if isinstance(model, Kit) else load(model, "student" if set(roles) != {"teacher"} else "teacher", device)
    kits = {"student": student, "teacher": teacher}
    if "teacher" in roles and teacher is None:
        if isinstance(model, Kit):
            raise ValueError("the teacher is to be measured but only a student's kit came: hand in teacher= too")
        kits["teacher"] = load(model, "teacher", device) if student.role != "teacher" else student
    if steps or solver:
        if kits["teacher"] is None:
            raise ValueError("steps and solver are the teacher's, and it is not measured: leave them out, or ask for it too")
        kits["teacher"] = replace(kits["teacher"], preset=kits["teacher"].preset.sampled(steps, solver))
    geometry = student.geometry
    geometry.latent_frames(frames)
    grid = grid or geometry.width // 4
    world = World(geometry, level)
    names = [name for role in ROLES if role in roles for name in (role, *(["student_sparse"] * (role == "student")))]
    used = [student, *([kits["teacher"]] if "teacher" in roles else [])]
    report = header(suite, *used, level=level, frames=frames, grid=grid, clip_seeds=[],
                    asked=dict(seed=seed, rows=names, batch=batch, steps=steps, solver=solver))
    old = earlier(json_path, report, "level", "frames", "grid", "asked")
    done = len(old["clip_seeds"]) if old else 0
    done = done if done >= clips else done // batch * batch         # a batch that was cut short is made whole
    rows = {name: Row.of(old["rows"][name], geometry.width, done) if done else Row(geometry.width) for name in names}

    def tell(seeds: list[int]) -> None:
        clear.extend([bool(world.scene(1, frames, s)[0].clear) for s in seeds])
        report.update(clip_seeds=report["clip_seeds"] + seeds, rows=summaries(rows, clear))     # at once: Ctrl-C may come

    clear: list[bool] = []
    tell(list(range(seed, seed + done)))
    if done and not quiet:
        print(f"{json_path} holds {done} clips already: these are kept")

    def rounds(bar):
        for start in range(done, clips, batch):
            seeds = list(range(seed + start, seed + min(clips, start + batch)))
            measured = _batch(world, seeds, frames, grid, kits, names, bar)
            for name, parts in measured.items():
                rows[name].add(*parts)
            tell(seeds)
            yield

    return keep(report, rounds, max(0, clips - done) * len(names), json_path, table, quiet)


def summaries(rows: dict[str, Row], clear: list[bool]) -> dict[str, dict]:
    """Of each row; and, where there are others too, of its clips that are `clear` (see `Scene.clear`)."""
    def of_clear(row: Row) -> dict:
        part = row.only(clear).summary()
        return {name: part[name] for name in ("psnr", "ssim", "epe", "epe_rel", "n")}
    return {name: row.summary() | ({"clear": of_clear(row)} if any(clear) and not all(clear) else {})
            for name, row in rows.items()}


@dataclass(frozen=True)
class Shown:
    """B held-out clips, and what a model is told of them: the truth [B, T, 3, H, W], a dense grid of its tracks, the points
    that are measured (visible where they are), and how to follow others."""
    truth: Tensor
    captions: list[str]
    dense: Tracks
    asked: Tracks
    follow: Callable[[Tensor], Tracks]
    generator: torch.Generator

    @property
    def first(self) -> Tensor:
        return self.truth[:, 0]


def shown(world: World, seeds: list[int], frames: int, grid: int, max_id: int, device, points: int = POINTS) -> Shown:
    """The clips of these seeds, one each, whatever the batch. grid: tracks along each side of the frame."""
    g = torch.Generator().manual_seed(seeds[0])
    clips = [world.sample(1, frames, seed=s) for s in seeds]
    truth = torch.cat([clip.frames for clip in clips])
    captions = [caption for clip in clips for caption in clip.captions]

    def follow(points):
        parts = [clip.track(points[b:b + 1].cpu()) for b, clip in enumerate(clips)]
        return Tracks(*(torch.cat([getattr(p, name) for p in parts]) for name in ("xy", "visible", "ids"))).to(points.device)

    dense = follow(grid_points(world.geometry, grid, grid, len(seeds)))
    dense = dense.with_ids(draw_ids(len(seeds), grid * grid, max_id, g)).to(device)
    asked = trackers.trackable(truth, follow, points, g).to(device)
    return Shown(truth.to(device), captions, dense, asked, follow, g)


def _batch(world: World, seeds: list[int], frames: int, grid: int, kits: dict, names: list[str], bar) -> dict:
    """One batch of clips: {row: (made, truth, found, tracks)}."""
    kit = kits["student"]
    clips = shown(world, seeds, frames, grid, kit.preset.tracks.max_id, kit.device)
    truth, captions, dense, asked, g = clips.truth, clips.captions, clips.dense, clips.asked, clips.generator
    first, follow, device = clips.first, clips.follow, kit.device
    measured = {}
    for name in names:
        tracks, found = asked, None
        if name == "first_frame":
            made = first[:, None].expand_as(truth)
        elif name == "vae":
            made = through_vae(kit, truth)
        elif name == "tracker":
            made, found = misread(truth, asked.xy, seeds[0])
        elif name == "student_sparse":
            tracks = by_hand(asked, g)
            hand = Tracks(tracks.xy, follow(tracks.xy[:, 0]).visible.to(device) & tracks.visible.any(dim=1, keepdim=True),
                          draw_ids(len(seeds), tracks.xy.shape[2], kit.preset.tracks.max_id, g).to(device))
            made = by_student(kit, captions, first, hand, frames, seeds[0])
        else:
            make = by_student if name == "student" else by_teacher
            made = make(kits[name], captions, first, dense, frames, seeds[0])
        if found is None:
            found = trackers.register(made.contiguous(), truth, tracks.xy)
        measured[name] = made, truth, found, tracks
        bar.update(len(seeds))
    return measured


def by_hand(asked: Tracks, g: torch.Generator) -> Tracks:
    """1 to 20 of the measured points, half of the time a cluster about one of them: what a hand would draw."""
    chosen = torch.zeros_like(asked.visible[:, 0])                                # [B, N]
    for b in range(len(chosen)):
        can = asked.visible[b].any(dim=0).nonzero()[:, 0]
        if not len(can):
            continue
        count = min(len(can), int(torch.randint(1, 21, (), generator=g)))
        order = torch.randperm(len(can), generator=g)
        if torch.rand((), generator=g) < 0.5:
            order = (asked.xy[b, 0, can] - asked.xy[b, 0, can[order[0]]]).norm(dim=-1).argsort()
        chosen[b, can[order[:count].to(can.device)]] = True
    return Tracks(asked.xy, asked.visible & chosen[:, None], asked.ids)


# --- reporting ------------------------------------------------------------------------------------------------------

def held_out(seed: int) -> None:
    if seed < HELD_OUT:
        raise ValueError(f"seed {seed} is one that training may have seen: held-out clips begin at {HELD_OUT}")


def header(suite: str, kit: Kit, *others: Kit, **more) -> dict:
    """What every report opens with: which suite, which weights, asked by which command, computed on what."""
    return dict(suite=suite, model=kit.name, command=" ".join(["msk", *sys.argv[1:]]), device=str(kit.device),
                dtype=str(kit.dtype).removeprefix("torch."), torch=torch.__version__,
                revision=_revision(kit, *others, without=() if suite in HELD else ("cutter",)),
                height=kit.geometry.height, width=kit.geometry.width, **more, complete=False)


def earlier(path, report: dict, *asked: str) -> dict | None:
    """The report that stands in a file, of the very same weights and asked for in the same way; None where there is none.
    Raises ValueError for another, in what it says under the keys `asked` or in suite, weights or number type."""
    if path is None or not Path(path).is_file():
        return None
    old, report = json.loads(Path(path).read_text()), json.loads(json.dumps(report))
    other = [key for key in ("suite", "revision", "dtype", *asked) if old.get(key) != report[key]]
    if other:
        raise ValueError(f"{path} holds a report with another {', '.join(other)}: name another file, or take it away")
    return old


def keep(report: dict, rounds: Callable[[tqdm], Iterator], clips: int, json_path, table: Callable[[dict], str],
         quiet: bool, unit: str = "clip") -> dict:
    """Go through the rounds of a suite, each of which adds to the report, and print the table.

    rounds: takes the progress bar, which counts to `clips` (or other units). Written after each round; an interrupt keeps
    what was measured.
    """
    bar = tqdm(total=clips, desc=f"eval {report['model']}", unit=unit, disable=quiet)
    try:
        for _ in rounds(bar):
            _write(json_path, report)
        report["complete"] = True
    except KeyboardInterrupt:
        bar.write(f"stopped after {bar.n} of {clips} {unit}s; what was measured is kept")
    finally:
        bar.close()
    _write(json_path, report)
    if not quiet:
        print(table(report))
    return report


def table(report: dict) -> str:
    """The rows as people read them."""
    lines = [f"{report['model']} on {report['suite']} ({report['level']}), {len(report['clip_seeds'])} held-out clips of "
             f"{report['frames']} frames at {report['width']}x{report['height']}, {report['dtype']} on {report['device']}",
             f"{'':<16}{'PSNR':>8}{'SSIM':>8}{'EPE':>9}{'EPE/W':>9}{'clips':>7}"]
    for name, row in report["rows"].items():
        for label, part in ((name, row), ("  without specks", row.get("clear"))):
            if part and part["n"]:
                lines.append(f"{label:<16}{part['psnr']:>8.2f}{part['ssim']:>8.3f}{part['epe']:>7.2f}px{part['epe_rel']:>9.4f}"
                             f"{part['n']:>7}")
    return "\n".join(lines)


def save_strip(picture, folder, name: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    picture.save(Path(folder) / f"{name}.png")


def _write(path, report: dict) -> None:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), (json.dumps(report, indent=2) + "\n").encode())


def _revision(*kits: Kit, without: tuple[str, ...] = ()) -> str:
    """A short name for these very weights, some parts left out."""
    import hashlib
    digest = hashlib.sha256()
    for kit in kits:
        for part, module in kit.modules().items():
            for name, x in (module.state_dict() if part not in without else {}).items():
                digest.update(name.encode())
                digest.update(x.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
