"""Real photographs and clips: what a kit makes of the material that lies in a folder.

A clip's first frame is given, points of it are followed through the others (`trackers`), and what was found drives the
student: a dense grid, and 1 to 20 points as drawn by hand. PSNR, SSIM and EPE are those of `evaluate`, beside the same rows
that frame them; only that here the true points are themselves found. How well shows where they are followed back again:

    tracks         which tracker, the share of points and frames that it is sure of, and the round trip's error in pixels
    chance         the truth in a mirror: what a search about the right place finds in a video of something else

A still picture has no truth. It is dragged by its richest texture, or by the tracks in a file of the same stem, and two
things can be known: is what lay under the pointer found where it was dragged to, and did the rest stay?
"""
from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import trackers, video
from .config import Geometry
from .evaluate import POINTS, Row, by_hand, by_student, epe, header, keep, misread, save_strip, through_vae
from .generate import by_stream, onto_model, read_tracks, said_size
from .hands import ease
from .kit import Kit, load
from .motion import draw_ids
from .picture import fitted, picture, read_picture
from .tracks import Tracks
from .viz import draw_tracks, grid, strip
from .world import grid_points

STILLS = (".jpg", ".jpeg", ".png", ".webp")
TRACKS = (".npz", ".json", ".pth", ".pt")
FOLLOWED = 256      # pixels of width at which points are followed, or the kit's, if that is more
LONGEST = 240       # pixel frames of a track file; longer ones are played faster
FAR = 0.25          # of the width: what is farther from all that is dragged should stay
UNREADABLE = (ValueError, OSError, ImportError)
NAMES = ("first_frame", "tracker", "chance", "vae", "student", "student_sparse")
DRAWN = ("It has seen nothing but a drawn world: to it a photograph is a pattern, and these figures say how far that holds, "
         "not what the method can do.")


# --- what lies there ------------------------------------------------------------------------------------------------

def material(folder) -> list[Path]:
    """The videos and pictures of a folder, by name."""
    folder, wanted = Path(folder), (*video.VIDEOS, *STILLS)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name one with videos ({', '.join(video.VIDEOS)}) or pictures "
                                f"({', '.join(STILLS)})")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and p.is_file())
    if not found:
        raise ValueError(f"{folder} holds nothing to measure: wanted are videos ({', '.join(video.VIDEOS)}) or pictures "
                         f"({', '.join(STILLS)}), each with tracks of the same stem ({', '.join(TRACKS)}) if there are any")
    return found


def read_clip(path, geometry: Geometry, frames: int) -> tuple[Tensor, Tensor]:
    """The first pictures of a video, cropped and sized as `Kit.pixels` does it: [1, T, 3, H, W] in [0, 1] at the geometry's
    size, and again at least FOLLOWED wide.

    At most `frames`, and whole latent frames. Of a video with more pictures a second than the geometry, every second or
    third is taken; one with fewer plays faster than it was filmed. Nothing is read beyond the last.
    """
    times = max(1, FOLLOWED // geometry.width)
    sizes = geometry, replace(geometry, height=times * geometry.height, width=times * geometry.width)
    kept = []
    for k, (_, pixels, fps) in enumerate(video.pictures_of(path)):
        if k % max(1, round(fps / geometry.fps)) == 0:
            kept.append([np.array(fitted(Image.fromarray(pixels), size)) for size in sizes])
        if len(kept) == frames:
            break
    whole = geometry.pixel_frames(1 + (len(kept) - 1) // geometry.time_stride)
    if whole == 1:
        raise ValueError(f"{path} gives {len(kept)} frames: wanted {1 + geometry.time_stride} or more")
    return tuple(torch.from_numpy(np.stack(x[:whole])).permute(0, 3, 1, 2)[None].float() / 255 for x in zip(*kept))


def best_tracker() -> str:
    """CoTracker3 if it is on this machine, else opencv's DIS flow, else patches."""
    return "cotracker" if trackers.cotracker_cached() else "dis" if importlib.util.find_spec("cv2") else "flow"


def followed(wide: Tensor, geometry: Geometry, count: int, method: str) -> tuple[Tracks, dict]:
    """A grid of count x count points of the first frame through a clip [1, T, 3, ., .]; tracks in the geometry's pixels.

    -> tracks, and what is known of them: the share that is sure, and by how many pixels those that are sure to the end miss
    their start when they are followed back from there.
    """
    size, to = wide.shape[-2:], (geometry.height, geometry.width)
    points = grid_points(replace(geometry, height=size[0], width=size[1]), count, count, 1).to(wide.device)
    there = trackers.track(wide, points, method)
    sure = there.visible[0, -1]
    missed = None
    if sure.any():
        back = trackers.track(wide.flip(1), there.xy[:, -1, sure], method)
        missed = (back.xy[:, -1] - points[:, sure]).norm(dim=-1).mean().item() * to[1] / size[1]
    return there.scaled(size, to), dict(tracker=method, sure=there.visible.float().mean().item(), round_trip=missed)


def measurable(truth: Tensor, tracks: Tracks, count: int, g: torch.Generator) -> tuple[Tracks, Tracks]:
    """At most `count` of the tracks that a tracker can fairly be asked about: sure and with texture (`trackers.TEXTURE`) in
    half of the frames. -> them, visible where they are to be measured, and them as they were followed."""
    height, width = truth.shape[-2:]
    r = max(4, round(trackers.PATCH * width / trackers.REFERENCE))
    maps = torch.stack([trackers.texture(frame, r) for frame in truth.unbind(1)], dim=1).flatten(2)         # [1, T, H W]
    x, y = tracks.xy[..., 0].long().clamp(0, width - 1), tracks.xy[..., 1].long().clamp(0, height - 1)
    inner = ((tracks.xy >= r) & (tracks.xy < tracks.xy.new_tensor([width - r, height - r]))).all(dim=-1)
    clear = tracks.visible & inner & (maps.gather(2, y * width + x) >= trackers.TEXTURE)
    fair = (clear[0].float().mean(dim=0) >= .5).nonzero()[:, 0]
    if not len(fair):
        raise ValueError("no point of its first frame can be followed through half of it")
    index = fair[torch.randperm(len(fair), generator=g)[:count].to(fair.device)]
    own = Tracks(tracks.xy[:, :, index], tracks.visible[:, :, index], tracks.ids[:, index])
    return replace(own, visible=clear[:, :, index]), own


# --- clips ------------------------------------------------------------------------------------------------------------

def clip_rows(kit: Kit, path: Path, frames: int, count: int, method: str, seed: int, strips=None) -> Iterator[tuple]:
    """Measure one video: yields ("tracks", what is known of them), then (name, made, truth, found, tracks) for each NAME."""
    g = torch.Generator().manual_seed(seed)
    truth, wide = (x.to(kit.device) for x in read_clip(path, kit.geometry, frames))
    dense, known = followed(wide, kit.geometry, count, method)
    asked, own = measurable(truth, dense, POINTS, g)
    yield "tracks", dict(known, frames=truth.shape[1])
    hand = by_hand(asked, g)
    fresh = lambda tracks: tracks.with_ids(draw_ids(1, tracks.ids.shape[1], kit.preset.tracks.max_id, g).to(kit.device))
    told = {"student": fresh(dense),
            "student_sparse": fresh(replace(own, visible=own.visible & hand.visible.any(dim=1, keepdim=True)))}
    shown = [strip(draw_tracks(truth[0], asked, zoom=2, count=9), 9)]
    for name in NAMES:
        tracks, found = hand if name == "student_sparse" else asked, None
        if name == "first_frame":
            made = truth[:, :1].expand_as(truth)
        elif name == "tracker":
            made, found = misread(truth, asked.xy, seed)
        elif name == "chance":
            made = truth.flip(-1)
        elif name == "vae":
            made = through_vae(kit, truth)
        else:
            made = by_student(kit, [""], truth[:, 0], told[name], truth.shape[1], seed)
            shown.append(strip(draw_tracks(made[0], hand, zoom=2, count=9), 9) if tracks is hand else
                         strip(made[0], 9, zoom=2))
        if found is None:
            found = trackers.register(made.contiguous(), truth, tracks.xy)
        yield name, made, truth, found, tracks
    if strips:
        save_strip(grid(shown, [f"{path.name}, and the points that are measured:", "made, driven by the dense grid:",
                                "made, driven by these points:"]), strips, path.name)


# --- stills -----------------------------------------------------------------------------------------------------------

def drags(first: Tensor, frames: int) -> dict[str, Tracks]:
    """Three things that a hand does to any picture [1, 3, H, W], by what of its middle can best be told from the rest."""
    height, width = first.shape[-2:]
    rich = trackers.texture(first, max(4, round(trackers.PATCH * width / trackers.REFERENCE)))[0]
    middle = torch.zeros_like(rich)
    middle[height // 4:-height // 4, width // 4:-width // 4] = 1
    place = int((rich * middle).argmax())
    start = torch.tensor([place % width + .5, place // width + .5])
    s = ease(torch.linspace(0, 1, frames))[:, None]
    right, up = (Tracks.of((start + s * torch.tensor(way))[:, None]) for way in ((.2 * width, 0.), (0., -.2 * height)))
    pins = grid_points(Geometry(height, width), 4, 4, 1)[0]
    pins = pins[torch.cdist(pins, right.xy[0, :, 0]).amin(dim=1) > FAR * width]
    pinned = Tracks.of(torch.cat([right.xy[0], pins.expand(frames, -1, -1)], dim=1))
    return dict(right=right, up=up, pinned=pinned)


def asked_of(path: Path, kit: Kit, first: Tensor, frames: int, skipped: dict) -> dict[str, Tracks]:
    """The tracks of a file of the same stem, or else `drags`; on the kit's first frame [1, 3, H, W]."""
    beside = next((p for end in TRACKS if (p := path.with_suffix(end)).is_file()), None)
    try:
        if beside:
            tracks = read_tracks(beside)
            tracks = onto_model(tracks, said_size(beside) or read_picture(path).size, kit)
            return {beside.name: tracks.resample(LONGEST) if tracks.xy.shape[1] > LONGEST else tracks}
    except UNREADABLE as error:
        skipped[beside.name] = str(error)
    fresh = lambda tracks: tracks.with_ids(draw_ids(1, tracks.ids.shape[1], kit.preset.tracks.max_id,
                                                    torch.Generator().manual_seed(0)))
    return {name: fresh(tracks) for name, tracks in drags(first, frames).items()}


def still_row(kit: Kit, first: Tensor, made: Tensor, told: Tracks) -> dict:
    """Did a picture [1, 3, H, W] do in made [1, T, 3, H, W] as it was told?

    epe, epe_rel: from where each moving point should be to where the patch about its origin is found; epe_still: the same of
    a picture that stays, epe_chance: of one in a mirror. psnr_rest: decibels of what is FAR from all that moves, against the
    picture (None: nothing is); psnr_rest_vae: of the picture itself through the VAE, there.
    """
    (T, size), origin = (made.shape[1], made.new_tensor([made.shape[-1], made.shape[-2]])), told.origins()
    within = lambda xy: ((xy >= 0) & (xy < size)).all(dim=-1)                                   # of no number: False
    seen = told.visible & within(told.xy) & within(origin)[:, None]
    moves = (((told.xy - origin[:, None]).norm(dim=-1) > 1) & seen).any(dim=1)[0]               # [N]
    if not moves.any():
        raise ValueError("nothing in the picture is told to move")
    origin, seen = origin[:, None, moves].expand(-1, T, -1, -1), seen[:, :, moves]
    xy = torch.where(seen[..., None], told.xy[:, :, moves], origin)
    still = first[:, None].expand_as(made)
    asked = Tracks(xy, seen, told.ids[:, moves])
    found, chance = (trackers.register(x.contiguous(), still, xy, at=origin) for x in (made, still.flip(-1)))
    cell = kit.geometry.stride
    y, x = (torch.arange(0, side, cell, device=made.device) + cell / 2 for side in made.shape[-2:])
    far = torch.cdist(torch.cartesian_prod(y, x).flip(-1), xy[seen]).amin(dim=1) > FAR * made.shape[-1]
    stays = far.view(len(y), len(x)).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    rest = lambda clip: -10 * (clip[:, 1:] - first)[..., stays].square().mean().clamp_min(1e-10).log10().item()
    coded = through_vae(kit, still[:, :kit.geometry.pixel_frames(3)].to(kit.device)).to(made)
    wrong = epe(found, asked).mean().item()
    return dict(epe=wrong, epe_rel=wrong / made.shape[-1], epe_still=epe(origin, asked).mean().item(),
                epe_chance=epe(chance, asked).mean().item(), frames=T,
                psnr_rest=rest(made) if stays.any() else None, psnr_rest_vae=rest(coded) if stays.any() else None,
                points=int(moves.sum()))


# --- the suite --------------------------------------------------------------------------------------------------------

def run(folder, model: str | Kit = "tiny", items: int | None = None, json_path=None, *, frames: int = 45, points: int = 24,
        seed: int = 0, method: str | None = None, whole: bool = False, strips=None, device=None,
        quiet: bool = False) -> dict:
    """Measure a student on the videos and pictures of a folder and print the table; an interrupt keeps what was measured.

    items: at most so many files. frames: pixel frames of a clip and of a drag, whole latent frames. points: tracks along
    each side of the frame. method: of `trackers.track`, by default `best_tracker`. whole: pictures are dragged by the whole
    thing under each point, and the rest is held still (msk.grip), as on the canvas. strips: a folder for a film strip each.
    -> {"clips": {file: {name: `Row.summary`, "tracks": ...}}, "means": {name: ...}, "stills": {"file, drag": `still_row`},
    "skipped": {file: why}, ...}; written to json_path after each row.
    """
    paths = material(folder)[:items]
    kit = model if isinstance(model, Kit) else load(model, device=device)
    kit.geometry.latent_frames(frames)
    method = method or best_tracker()
    report = header("real", kit, frames=frames, points=points, tracker=method, whole=whole, clips={}, means={}, stills={},
                    skipped={}, note=DRAWN if kit.preset.text else "")
    means = {name: Row(kit.geometry.width) for name in NAMES}

    def of_clip(path):
        rows, parts = report["clips"].setdefault(path.name, {}), []
        for name, *measured in clip_rows(kit, path, frames, points, method, seed, strips):
            if name == "tracks":
                rows[name], = measured
                continue
            tracks, row = measured[-1], Row(kit.geometry.width)
            row.extra["epe_still"] = epe(tracks.xy[:, :1].expand_as(tracks.xy), tracks).mean().item()
            row.add(*measured)
            rows[name] = row.summary()
            parts.append((name, measured))
            yield
        for name, measured in parts:                    # no mean of a clip that could not be read to its end
            means[name].add(*measured)
            report["means"][name] = means[name].summary()

    def of_still(path):
        first = picture(path, kit.geometry)
        for name, told in asked_of(path, kit, first, frames, report["skipped"]).items():
            tracks = kit.whole(told, first, seed) if whole else told
            made = torch.cat(list(by_stream(kit, "", first, tracks, told.xy.shape[1], seed)))[None]
            report["stills"][f"{path.name}, {name}"] = still_row(kit, first, made, told)
            if strips:
                shown = strip(draw_tracks(made[0], told, zoom=2, count=9), 9)
                save_strip(grid([shown], [f"{path.name}, {name}:"]), strips, f"{path.name}, {name}")
            yield

    def rounds(bar):
        for path in paths:
            try:
                yield from (of_clip if path.suffix.lower() in video.VIDEOS else of_still)(path)
            except UNREADABLE as error:
                report["clips"].pop(path.name, None)
                report["skipped"][path.name] = str(error)
                bar.write(f"{path.name} is left out: {error}")
            bar.update()

    return keep(report, rounds, len(paths), json_path, table, quiet)


def table(report: dict) -> str:
    """The rows as people read them."""
    number = lambda x, form: f"{x:>{form}}" if x is not None else f"{'-':>{form.split('.')[0]}}"
    lines = [f"{report['model']} on real material at {report['width']}x{report['height']}, {report['dtype']} on "
             f"{report['device']}. {report['note']}".rstrip()]
    if report["clips"]:
        lines.append(f"{'clips':<32}{'PSNR':>8}{'SSIM':>8}{'EPE':>9}{'EPE/W':>9}{'still':>9}")
    for file, rows in [*report["clips"].items(), *([("all", report["means"])] if len(report["clips"]) > 1 else [])]:
        known = rows.get("tracks")
        lines.append(file if not known else
                     f"{file}: {known['frames']} frames; true points by {known['tracker']}, sure {known['sure']:.0%} of the "
                     f"time, {number(known['round_trip'], '.2f')} px off when followed back")
        for name in NAMES:
            if name in rows:
                row = rows[name]
                lines.append(f"  {name:<30}{row['psnr']:>8.2f}{row['ssim']:>8.3f}{row['epe']:>7.2f}px{row['epe_rel']:>9.4f}"
                             + (f"{row['epe_still'] / report['width']:>9.4f}" if "epe_still" in row else ""))
    if report["stills"]:
        lines += ["pictures are dragged by whole things, and the rest is held still"] * bool(report.get("whole"))
        lines.append(f"{'pictures':<32}{'EPE':>9}{'EPE/W':>9}{'still':>9}{'chance':>9}{'rest':>8}{'VAE':>8}{'points':>8}")
    for file, row in report["stills"].items():
        lines.append(f"  {file:<30}{row['epe']:>7.2f}px{row['epe_rel']:>9.4f}{row['epe_still'] / report['width']:>9.4f}"
                     f"{row['epe_chance'] / report['width']:>9.4f}"
                     f"{number(row['psnr_rest'], '8.2f')}{number(row['psnr_rest_vae'], '8.2f')}{row['points']:>8}")
    lines += [f"left out: {file}: {why}" for file, why in report["skipped"].items()]
    return "\n".join(lines)
