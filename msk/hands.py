"""What hands do: drags, flicks, pins and points let go, on held-out scenes whose true answer is drawn.

The procedural world can render any motion, so the truth of a hand's path is known: a scene in which nothing stirs but the
dragged thing, which goes, stiff, where the hand takes it. The student gets the first frame, the caption and the few points
that the hand draws, and streams chunk by chunk as the canvas plays it. Measured is where points are found (`trackers`): the
dragged ones, others on the same thing (does it come along whole?), and all the rest (does it stay?). Beside each case
stand the still image, whose error is how far the thing truly went, and the truth through the VAE, the ceiling: what goes
fast is hard to encode. A thing that arrives as another shape is not found, and
reads as one left behind.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import trackers
from .evaluate import Row, epe, header, held_out, keep, psnr, save_strip, through_vae
from .generate import by_stream
from .kit import Kit, load
from .motion import draw_ids
from .tracks import Tracks
from .viz import COLOURS, draw_tracks, grid, strip
from .world import HELD_OUT, Clip, Scene, World, grid_points, plain

LOOKED_AT = 128     # trackable points of a scene,
POINTS = 12         # of which at most so many on the thing, and so many of the rest, are measured
RED = "#FF5D5D"     # of pins, as on the canvas
ENCODED = 60_000_000    # numbers of a video that goes through the VAE whole: 45 frames of 480x832
TRIES = 20          # scenes looked at for each that can be played: some have no thing with a trackable point, or only one


# --- the cases ----------------------------------------------------------------------------------------------------

def ease(s: Tensor) -> Tensor:
    """From 0 at 0 to 1 at 1, at rest on both sides: how a hand moves."""
    s = s.clamp(0, 1)
    return s * s * (3 - 2 * s)


def line(ahead: Tensor, aside: float = 0.) -> Tensor:
    """A path [T, 2] along the scene's heading; `aside` of it."""
    return torch.stack([ahead, torch.full_like(ahead, aside)], dim=-1)


def across(s: Tensor) -> Tensor:
    """From three tenths before the middle of the picture to as far behind it, for s from 0 to 1."""
    return .6 * ease(s) - .3


def circle(turns: Tensor) -> Tensor:
    """A path [T, 2] about the middle. After whole turns the last chunk is as far from the start as the first was."""
    return .3 * torch.stack([-(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()], dim=-1)


@dataclass(frozen=True)
class Case:
    """One thing that hands do.

    paths: s [T] in [0, 1] over the clip, t [T] in seconds -> a path [T, 2] of each dragged thing's centre: ahead and aside
    from the middle of the picture, in half frames; each scene has a heading of its own. told: s -> for each of them, when
    [T] the hand holds it; None: always. pins: are points of the background told to stay? turns: s -> by what angle [T] the
    thing turns and by what factor [T] it grows; it is held by two of its points then.
    """
    says: str
    paths: Callable[[Tensor, Tensor], list[Tensor]]
    told: Callable[[Tensor], list[Tensor]] | None = None
    pins: bool = False
    turns: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


CASES = {
    "drag": Case("one point, dragged", lambda s, t: [line(across(s))]),
    "opposite": Case("two things, dragged past each other",
                     lambda s, t: [line(across(s), -.45), line(-across(s), .45)]),
    "pinned": Case("the same drag with pins on the background", lambda s, t: [line(across(s))], pins=True),
    "flick": Case("all the way in a tenth of the clip", lambda s, t: [line(across((s - .4) / .1))]),
    "reversal": Case("there and, at once, back", lambda s, t: [line(.3 - .6 * (2 * s - 1).abs())]),
    "turned": Case("by two of its points a thing is turned, and grows by a third", lambda s, t: [line(0 * s)],
                   turns=lambda s: (.8 * ease(s), 1 + ease(s) / 3)),
    "off": Case("off the frame and back",
                lambda s, t: [line(.2 + 1.3 * ((.5 - (s - .5).abs() - .15) / .3).clamp(0, 1))]),
    "release": Case("dragged, then let go: it stays", lambda s, t: [line(across(s / .5))], told=lambda s: [s < .55]),
    "added": Case("a second point in mid-stream",
                  lambda s, t: [line(across(s / .45), -.45), line(-across((s - .5) / .5), .45)],
                  told=lambda s: [s >= 0, s >= .5]),
    "long": Case("round and round, for long", lambda s, t: [circle(s * max(1, round(t[-1].item() / 2)))]),
}


@dataclass(frozen=True)
class Take:
    """One scene as one case plays it: what is asked, what the hand tells, and the truth at the points to be measured."""
    seed: int
    caption: str
    told: Tracks                # over all its frames
    seen: list[int]             # those of them, T, that are measured
    truth: Tensor               # [1, T, 3, H, W]
    dragged: Tracks
    thing: Tracks
    rest: Tracks


def staged(scene: Scene, things: list[int], paths: Tensor, turns: tuple[Tensor, Tensor] | None = None) -> Scene:
    """The scene with nothing stirring but some of its things, whose centres go along paths [T, len(things), 2]; turns: by
    what angle, and factor of size, [T] each."""
    hold = lambda x: x[:, :1].expand_as(x).clone()
    centre, turn, size = hold(scene.centre), hold(scene.turn), hold(scene.size)
    centre[:, :, things] = paths
    if turns:
        turn[:, :, things] += turns[0][:, None]
        size[:, :, things] *= turns[1][:, None]
    stiff = scene.bend * scene.bend.new_tensor([1, 1, 0, 1, 1, 0])                     # bent, but for good
    return replace(scene.quiet(), centre=centre, size=size, turn=turn, bend=stiff)


@torch.no_grad()
def take(world: World, case: Case, seed: int, frames: int, max_id: int = 64, seen: list[int] | None = None) -> Take | None:
    """The scene of that seed, played by the case; None where it has too few things, or a thing without a trackable point.

    seen: the frames that are to be measured, from the first on; None: all.
    """
    geometry, g = world.geometry, torch.Generator().manual_seed(seed)
    scene, captions = world.scene(1, frames, seed)
    time = torch.arange(frames)
    s = time / max(1, frames - 1)
    angle = 2 * math.pi * torch.rand((), generator=g)
    ahead = torch.stack([angle.cos(), angle.sin()])
    axes = torch.stack([ahead, ahead.flip(0) * ahead.new_tensor([-1, 1])])
    paths = torch.stack([path @ axes for path in case.paths(s, time / geometry.fps)], dim=1)                  # [T, D, 2]
    things = scene.there[0].nonzero()[-paths.shape[1]:, 0].tolist()                     # the nearest: nothing covers them
    if len(things) < paths.shape[1]:
        return None
    played, seen = staged(scene, things, paths, case.turns and case.turns(s)), list(range(frames)) if seen is None else seen
    scene = played.when(seen)
    clip = Clip(scene.render(), [plain(captions[0])], scene)
    moved = torch.tensor(things) + 1

    points = measurable(clip, LOOKED_AT, g)
    points = chosen(points, points.visible[0].any(dim=0).nonzero()[:, 0].tolist())
    size, layer = torch.tensor([geometry.width, geometry.height]), scene.track(points.xy[:, 0])[2][0]
    handles = []
    for k, start in zip(moved, paths[0]):                               # hands take a thing by its middle,
        away = (points.xy[0, 0] - (start + 1) / 2 * size).norm(dim=-1).masked_fill(layer != k, math.inf)
        if away.isfinite().sum() < (2 if case.turns else 1):
            return None
        if case.turns:                                                  # or by its two ends, to turn it
            between = torch.cdist(points.xy[0, 0], points.xy[0, 0]) * ((layer == k)[:, None] & (layer == k))
            handles += divmod(int(between.argmax()), len(away))
        else:
            handles.append(int(away.argmin()))
    on_thing = torch.isin(layer, moved)
    thing, rest = (chosen(points, on.nonzero()[:POINTS, 0].tolist()) for on in (on_thing, ~on_thing))
    dragged = chosen(points, handles)
    told = replace(dragged, xy=played.track(dragged.xy[:, 0])[0])
    on_picture = ((told.xy >= 0) & (told.xy < size)).all(dim=-1)
    told = replace(told, visible=on_picture & (torch.stack(case.told(s), dim=-1) if case.told else True))
    if case.pins:
        pins = replace(clip, scene=played).track(grid_points(geometry, 4, 4))
        ground = pins.visible.all(dim=1) & (scene.track(pins.xy[:, 0])[2] == 0)
        told = told.concat(chosen(pins, ground[0].nonzero()[:, 0].tolist()))
    told = replace(told, ids=draw_ids(1, told.xy.shape[2], max_id, g), origin=told.xy[:, 0])
    return Take(seed, clip.captions[0], told, seen, clip.frames, dragged, thing, rest)


def measurable(clip: Clip, count: int, generator: torch.Generator, most: int = 128) -> Tracks:
    """`trackers.trackable` of a staged clip; a longer one than `most` frames is looked at every so many frames only."""
    every = -(-clip.frames.shape[1] // most)
    if every == 1:
        return trackers.trackable(clip.frames, clip.track, count, generator)
    follow = replace(clip, scene=clip.scene.when(list(range(0, clip.frames.shape[1], every)))).track
    seen = trackers.trackable(clip.frames[:, ::every], follow, count, generator)
    points = clip.track(seen.xy[:, 0])
    return replace(points, visible=points.visible & seen.visible.repeat_interleave(every, dim=1)[:, :clip.frames.shape[1]])


def chosen(tracks: Tracks, index: list[int]) -> Tracks:
    return Tracks(tracks.xy[:, :, index], tracks.visible[:, :, index], tracks.ids[:, index])


def takes(world: World, name: str, seed: int, count: int, frames: int, max_id: int = 64, seen: list[int] | None = None
          ) -> Iterator[Take]:
    """The first `count` scenes from `seed` on that can be played."""
    found = 0
    for at in range(seed, seed + TRIES * count):
        played = take(world, CASES[name], at, frames, max_id, seen)
        if played is not None:
            found += 1
            yield played
        if found == count:
            return
    raise ValueError(f"{found} of {TRIES * count} scenes can play {name!r}, {count} are wanted: ask for fewer, or larger")


# --- measures -----------------------------------------------------------------------------------------------------

def sharpness(frames: Tensor) -> Tensor:
    """[..., 3, H, W] -> [...]: mean change from pixel to pixel."""
    return frames.diff(dim=-1).abs().mean(dim=(-3, -2, -1)) + frames.diff(dim=-2).abs().mean(dim=(-3, -2, -1))


def saturation(frames: Tensor) -> Tensor:
    """[..., 3, H, W] -> [...]: mean distance between a pixel's largest and smallest colour."""
    return (frames.amax(dim=-3) - frames.amin(dim=-3)).mean(dim=(-2, -1))


def psnr_rest(made: Tensor, truth: Tensor) -> float | None:
    """Decibels where the truth [1, T, 3, H, W] never changes, the given frame left out; None where it all does."""
    stays = (truth - truth[:, :1]).abs().amax(dim=(0, 1, 2)) < .01                                          # [H, W]
    error = (made - truth)[:, 1:, :, stays].square().mean()
    return -10 * error.clamp_min(1e-10).log10().item() if stays.any() else None


@dataclass
class Score:
    """What was measured of one case so far; spans: the measured frames [from, to) of each chunk that has some."""
    width: int
    spans: list[tuple[int, int]]
    frames: int = 0                                                         # made, of which these are; 0: they are all
    rows: dict[str, Row] = field(default_factory=dict)
    chunks: list[tuple[float, int]] = field(default_factory=list)           # distances of the dragged points, how many
    ground: list[float] = field(default_factory=list)                       # `psnr_rest`
    ceiling: list[float] = field(default_factory=list)                      # of the truth through the VAE
    looks: dict[str, list[float]] = field(default_factory=lambda: dict(sharpness=[], saturation=[]))
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.frames = self.frames or self.spans[-1][1]
        self.rows = {name: Row(self.width) for name in ("dragged", "thing", "rest", "still")}
        self.chunks = [(0., 0)] * len(self.spans)

    def add(self, made: Tensor, shot: Take) -> None:
        """made [1, T, 3, H, W]"""
        groups = dict(dragged=shot.dragged, thing=shot.thing, rest=shot.rest)
        xy, sizes = torch.cat([t.xy for t in groups.values()], dim=2), [t.xy.shape[2] for t in groups.values()]
        stays = None if self.frames == made.shape[1] else xy[:, :1].expand_as(xy)       # between them no chain holds
        found = trackers.register(made, shot.truth, xy, chained=stays).split(sizes, dim=2)
        for (name, tracks), where in zip(groups.items(), found):
            self.rows[name].add(made, shot.truth, where, tracks)
        still = shot.dragged.xy[:, :1].expand_as(shot.dragged.xy)
        self.rows["still"].add(shot.truth[:, :1].expand_as(shot.truth), shot.truth, still, shot.dragged)
        for i, (start, stop) in enumerate(self.spans):
            start = max(0, start - 1)                                       # `epe` leaves out the first that it is given
            far = epe(found[0][:, start:stop], shot.dragged.frames(start, stop))
            self.chunks[i] = self.chunks[i][0] + far.sum().item(), self.chunks[i][1] + far.numel()
        for name, look in (("sharpness", sharpness), ("saturation", saturation)):
            share = look(made[0]) / look(shot.truth[0]).clamp_min(1e-6)     # of the truth's, which changes too
            first, last = (share[slice(*self.spans[i])].mean().item() for i in (0, -1))
            self.looks[name].append(last / max(first, 1e-6))
        quiet = psnr_rest(made, shot.truth)
        self.ground += [quiet] if quiet is not None else []
        self.seeds.append(shot.seed)

    def reach(self, kit: Kit, shot: Take) -> None:
        """Measure what the kit's VAE leaves of the truth, if that was kept whole and can be encoded at once."""
        whole = 1 + (len(shot.seen) - 1) // kit.geometry.time_stride * kit.geometry.time_stride
        truth = shot.truth[:, :whole]
        if len(shot.seen) == self.frames and whole > 1 and truth.numel() <= ENCODED:
            self.ceiling.append(psnr(through_vae(kit, truth.to(kit.device)).cpu()[0, 1:], truth[0, 1:]).mean().item())

    def summary(self) -> dict:
        """`Row.summary` at the dragged points, and: epe_rel on their whole thing, of the rest, of a still image; psnr of a
        still image, of the truth through the VAE, and of the rest, which on quiet grounds has no point to track; the
        dragged points' epe_rel chunk by chunk, of those of which frames are measured (`looked_at`); drift, the last chunk
        over the first (looks as shares of the truth's)."""
        said = {name: row.summary() for name, row in self.rows.items()}
        chunks = [total / count / self.width if count else None for total, count in self.chunks]
        mean = lambda values: sum(values) / len(values) if values else None
        drift = {name: mean(values) for name, values in self.looks.items()}
        drift["epe"] = chunks[-1] / chunks[0] if chunks[0] and chunks[-1] is not None else None
        share = {f"epe_rel_{name}": said[name]["epe_rel"] if any(self.rows[name].seen) else None for name in said}
        return dict(said["dragged"], **{name: share[name] for name in ("epe_rel_thing", "epe_rel_rest", "epe_rel_still")},
                    psnr_still=said["still"]["psnr"], psnr_vae=mean(self.ceiling), psnr_rest=mean(self.ground),
                    epe_rel_chunks=chunks,
                    drift=drift, frames=self.frames, frames_measured=self.spans[-1][1], seeds=self.seeds)


def spans(kit: Kit, frames: int) -> list[tuple[int, int]]:
    """Pixel frames [from, to) of each chunk, until there are `frames`."""
    found, config = [], kit.preset.stream
    while not found or found[-1][1] < frames:
        start, stop = config.span(len(found))
        first, last = kit.geometry.span(start, stop - start)
        found.append((first, min(last, frames)))
    return found


def looked_at(chunks: list[tuple[int, int]], most: int = 480) -> tuple[list[int], list[tuple[int, int]]]:
    """Which frames of so many chunks are measured, and where each chunk's lie among them.

    All, up to `most`; of more, both the first and the last chunk, and even steps between.
    """
    frames = chunks[-1][1]
    every = -(-frames // most)
    seen = [k for k in range(frames) if k % every == 0 or k < chunks[0][1] or k >= chunks[-1][0]]
    counts = [sum(a <= k < b for k in seen) for a, b in chunks] if every > 1 else [b - a for a, b in chunks]
    ends = [sum(counts[:i + 1]) for i in range(len(counts))]
    return seen, [(end - n, end) for n, end in zip(counts, ends) if n]


# --- the suite ----------------------------------------------------------------------------------------------------

def run(model: str | Kit = "tiny", clips: int = 8, json_path=None, *, cases: tuple[str, ...] = tuple(CASES),
        long: int | None = None, frames: int = 45, seed: int = HELD_OUT, level: str = "calm", whole: bool = False,
        strips=None, device=None, quiet: bool = False) -> dict:
    """Play every case on `clips` held-out scenes and print the table; an interrupt keeps what was measured.

    long: pixel frames of the case of that name, by default ten chunks; frames: of all others. strips: a folder for one film
    strip a case, the truth above, what was made below, with the points as the hand drew them. whole: the hand takes hold of
    whole things, and the rest is held still (msk.grip), as on the canvas.
    -> {"rows": {case: `Score.summary`}, ...}; written to json_path after each scene.
    """
    unknown = sorted(set(cases) - set(CASES))
    if unknown:
        raise ValueError(f"hands have no case called {', '.join(unknown)}: use some of {', '.join(CASES)}")
    held_out(seed)
    kit = model if isinstance(model, Kit) else load(model, device=device)
    long = long or kit.geometry.pixel_frames(kit.preset.stream.span(9)[1])
    lengths = {name: long if name == "long" else frames for name in cases}
    world, max_id = World(kit.geometry, level), kit.preset.tracks.max_id
    seen = {name: looked_at(spans(kit, length)) for name, length in lengths.items()}
    scores = {name: Score(kit.geometry.width, seen[name][1], length) for name, length in lengths.items()}
    report = header("hands", kit, level=level, clips=clips, whole=whole,
                    rows={name: score.summary() for name, score in scores.items()})

    def rounds(bar):
        scenes = {name: takes(world, name, seed, clips, length, max_id, seen[name][0]) for name, length in lengths.items()}
        for _ in range(clips):                                              # scene by scene, so that all cases get on alike
            for name, score in scores.items():
                shot = next(scenes[name])
                made = play(kit, held(kit, shot) if whole else shot)
                score.add(made, shot)
                score.reach(kit, shot)
                if strips and len(score.seeds) == 1:
                    save_strip(film(made, shot, f"{name}: {CASES[name].says}"), strips, name)
                report["rows"][name] = score.summary()
                bar.update()
                yield

    return keep(report, rounds, clips * len(scores), json_path, table, quiet)


def held(kit: Kit, shot: Take) -> Take:
    """The take with what the hand takes hold of, and all that stays, told too."""
    return replace(shot, told=kit.whole(shot.told, shot.truth[:, 0], seed=shot.seed))


def play(kit: Kit, shot: Take) -> Tensor:
    """The take as the student streams it: of its frames those that are measured, [1, T, 3, H, W]."""
    made, kept, wanted = 0, [], set(shot.seen)
    for frames in by_stream(kit, shot.caption, shot.truth[:, 0], shot.told, shot.told.xy.shape[1], shot.seed):
        here = [k for k in range(len(frames)) if made + k in wanted]
        kept.append(frames[here])
        made += len(frames)
    return torch.cat(kept)[None]


# --- reporting ----------------------------------------------------------------------------------------------------

def film(made: Tensor, shot: Take, label: str, count: int = 9):
    """The truth above, what was made below, with the points as the hand drew them; pins are red."""
    dragged = shot.dragged.xy.shape[2]
    colours = [*COLOURS[:dragged], *[RED] * (shot.told.xy.shape[2] - dragged)]
    told = shot.told.when(shot.seen)
    drawn = lambda frames: draw_tracks(frames[0], told, zoom=2, colours=colours, count=count)
    rows = [strip(drawn(frames), count) for frames in (shot.truth, made)]
    return grid(rows, [f"{label}; {shot.caption}, seed {shot.seed}. Truth:", "made:"])


def table(report: dict) -> str:
    """The rows as people read them; all but PSNR are shares of the width."""
    lines = [f"{report['model']} under the hand ({report['level']}) at {report['width']}x{report['height']}, "
             f"{report['dtype']} on {report['device']}",
             *["the hand takes hold of whole things, and the rest is held still"] * bool(report.get("whole")),
             "EPE / width: at the dragged points, there in a still image, on their whole thing, of the rest",
             f"{'':<10}{'EPE':>9}{'EPE/W':>9}{'still':>9}{'thing':>9}{'rest':>9}{'PSNR':>8}{'VAE':>8}{'rest':>8}{'scenes':>8}"]
    number = lambda x, form="9.4f": f"{x:>{form}}" if x is not None else f"{'-':>{form.split('.')[0]}}"
    for name, row in report["rows"].items():
        if row["n"]:
            shares = "".join(number(row[f"epe_rel{what}"]) for what in ("", "_still", "_thing", "_rest"))
            ceiling, ground = (number(row.get(f"psnr_{what}"), "8.2f") for what in ("vae", "rest"))
            lines.append(f"{name:<10}{row['epe']:>7.2f}px{shares}{row['psnr']:>8.2f}{ceiling}{ground}{row['n']:>8}")
    row = report["rows"].get("long")
    if row and row["n"]:
        drift = ", ".join(f"{what} x {row['drift'][what]:.2f}" for what in ("epe", "sharpness", "saturation")
                          if row["drift"][what] is not None)
        lines.append(f"long, {row['frames']} frames, last chunk against first: {drift}")
    return "\n".join(lines)
