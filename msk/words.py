"""Do words do what no track says? Each secondary motion of the procedural world, asked for and not, and looked for.

A held-out scene, its tracks and its picture go to the student twice, with the event's words in the prompt and without, from
the same noise. A detector of a few lines judges both videos; it need only rank two videos of one scene, and how well it does
shows on the true pair. The picture gives nothing away: it has no speck in the air yet; where the light changes, it is lit as
the event begins.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .evaluate import by_student, header, held_out, keep, save_strip
from .kit import Kit, load
from .motion import draw_ids
from .tracks import Tracks
from .viz import grid, strip
from .world import EVENTS, HELD_OUT, Clip, World, grid_points, plain

POINTS = 4          # tracks along each side of the frame


# --- detectors: frames [B, T, 3, H, W] in [0, 1] -> how much of it there is [B] --------------------------------------

def brightness(frames: Tensor) -> Tensor:
    """[B, T]"""
    return frames.mean(dim=(-3, -2, -1))


def falling(speed: float) -> Callable[[Tensor], Tensor]:
    """What is brighter than usual at its place is found `speed` frame heights lower a frame later, rather than higher."""
    def amount(frames):
        light = frames.mean(dim=2)
        specks = (light - light.median(dim=1, keepdim=True).values).clamp_min(0)                    # [B, T, H, W]
        d = max(1, round(abs(speed) * frames.shape[-2]))
        now, then = specks[:, :-1], specks[:, 1:]
        fallen, risen = now[:, :, :-d] * then[:, :, d:], now[:, :, d:] * then[:, :, :-d]
        return (fallen - risen).mean(dim=(1, 2, 3)) * (1 if speed > 0 else -1)
    return amount


def ripples(frames: Tensor) -> Tensor:
    """Pixels swing at the world's rate of ripples, once in eleven frames: the mean of their Fourier amplitudes there."""
    light = frames.mean(dim=2)
    wave = torch.exp(-.55j * torch.arange(light.shape[1], device=light.device))
    return torch.einsum("bthw,t->bhw", (light - light.mean(dim=1, keepdim=True)).cfloat(), wave).abs().mean(dim=(1, 2))


def flicker(frames: Tensor) -> Tensor:
    """The whole picture's brightness changes from frame to frame."""
    return brightness(frames).diff(dim=1).abs().mean(dim=1)


def night(frames: Tensor) -> Tensor:
    """The end is darker than the beginning."""
    return brightness(frames)[:, 0] - brightness(frames)[:, -4:].mean(dim=1)


def day(frames: Tensor) -> Tensor:
    """The end is brighter than the beginning."""
    return -night(frames)


def fireflies(frames: Tensor) -> Tensor:
    """Somewhere it is yellower than usual at that place, for so dark a picture."""
    yellow = torch.minimum(frames[:, :, 0], frames[:, :, 1]) - frames[:, :, 2]
    glow = (yellow - yellow.median(dim=1, keepdim=True).values).clamp_min(0)
    return glow.mean(dim=(1, 2, 3)) / brightness(frames).mean(dim=1).clamp_min(1e-6)


def grass(frames: Tensor) -> Tensor:
    """The lowest eighth of the picture is in motion."""
    return frames[..., -(frames.shape[-2] // 8):, :].diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


DETECTORS = {"snow": falling(.022), "rain": falling(.04), "bubbles": falling(-.02), "ripples": ripples, "flicker": flicker,
             "night": night, "day": day, "fireflies": fireflies, "grass": grass}
LIGHT = ("night", "day")            # events of which the picture must show how they begin


# --- the suite ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Pair:
    """B scenes with an event and without: true frames [B, T, 3, H, W], captions, and what both share."""
    true: dict[str, Tensor]
    captions: dict[str, list[str]]
    picture: Tensor             # [B, 3, H, W]
    tracks: Tracks


def pair(world: World, event: str, seeds: list[int], frames: int, max_id: int) -> Pair:
    """Scenes with a still camera, everything else as it came, under "with" and "without"."""
    scenes, captions = zip(*(world.scene(1, frames, seed) for seed in seeds))
    still = [scene.quiet() for scene in scenes]
    eventful = [replace(s, event=s.event + list(EVENTS).index(event)) for s in still]
    true = {"with": torch.cat([s.render() for s in eventful]), "without": torch.cat([s.render() for s in still])}
    without = [plain(caption[0]) for caption in captions]
    points = grid_points(world.geometry, POINTS, POINTS)
    tracks = [Clip(true["without"][b:b + 1], without[b:b + 1], s).track(points) for b, s in enumerate(still)]
    ids = torch.cat([draw_ids(1, POINTS ** 2, max_id, torch.Generator().manual_seed(seed)) for seed in seeds])
    tracks = Tracks(torch.cat([t.xy for t in tracks]), torch.cat([t.visible for t in tracks]), ids)
    return Pair(true, {"with": [f"{seen}, {EVENTS[event]}" for seen in without], "without": without},
                true["with" if event in LIGHT else "without"][:, 0], tracks)


def share(more: list[float], less: list[float]) -> float | None:
    """Of how many is the first greater than the second; equal ones count one half."""
    wins = [(a > b) + .5 * (a == b) for a, b in zip(more, less)]
    return sum(wins) / len(wins) if wins else None


def run(model: str | Kit = "tiny", clips: int = 8, json_path=None, *, events: tuple[str, ...] = tuple(DETECTORS),
        frames: int = 45, seed: int = HELD_OUT, level: str = "calm", batch: int = 4, strips=None, device=None,
        quiet: bool = False) -> dict:
    """Ask for each event on `clips` held-out scenes, look for it, and print the table; an interrupt keeps what was measured.

    frames: T, whole latent frames. strips: a folder for one film strip an event, with the word above, without below.
    -> {"rows": {event: {with, without, share, true_with, true_without, true_share, n}}, ...}: means of the event's detector
    on the student's videos and on the truth, and the share of scenes in which "with" is more (0.5: the word does nothing).
    """
    unknown = sorted(set(events) - set(DETECTORS))
    if unknown:
        raise ValueError(f"no event called {', '.join(unknown)}: use some of {', '.join(DETECTORS)}")
    held_out(seed)
    kit = model if isinstance(model, Kit) else load(model, device=device)
    kit.geometry.latent_frames(frames)
    world = World(kit.geometry, level)
    amounts = {event: {key: [] for key in ("with", "without", "true_with", "true_without")} for event in events}
    report = header("text", kit, level=level, frames=frames, clip_seeds=[], rows={})

    def rounds(bar):
        for start in range(0, clips, batch):
            seeds = list(range(seed + start, seed + min(clips, start + batch)))
            for event in events:
                asked, made = pair(world, event, seeds, frames, kit.preset.tracks.max_id), {}
                tracks, picture = asked.tracks.to(kit.device), asked.picture.to(kit.device)
                for key, captions in asked.captions.items():
                    made[key] = by_student(kit, captions, picture, tracks, frames, seeds[0]).cpu()
                    amounts[event][key] += DETECTORS[event](made[key]).tolist()
                    amounts[event][f"true_{key}"] += DETECTORS[event](asked.true[key]).tolist()
                if strips and start == 0:
                    rows = [strip(frames[0], 9, zoom=2) for frames in made.values()]
                    save_strip(grid(rows, [captions[0] for captions in asked.captions.values()]), strips, event)
                report["rows"][event] = summary(amounts[event])
                bar.update(len(seeds))
                yield
            report["clip_seeds"] += seeds

    return keep(report, rounds, clips * len(events), json_path, table, quiet)


def summary(amounts: dict[str, list[float]]) -> dict:
    means = {key: sum(values) / len(values) for key, values in amounts.items()}
    return dict(means, share=share(amounts["with"], amounts["without"]),
                true_share=share(amounts["true_with"], amounts["true_without"]), n=len(amounts["with"]))


def table(report: dict) -> str:
    """The rows as people read them."""
    lines = [f"{report['model']} and its prompt ({report['level']}), {report['frames']} frames at {report['width']}x"
             f"{report['height']}, {report['dtype']} on {report['device']}",
             "the detector's mean with the word and without, and how often 'with' is more (0.50: the word does nothing)",
             f"{'':<11}{'with':>11}{'without':>11}{'share':>7}{'true with':>13}{'without':>11}{'share':>7}{'scenes':>8}"]
    for event, row in report["rows"].items():
        lines.append(f"{event:<11}{row['with']:>11.5f}{row['without']:>11.5f}{row['share']:>7.2f}{row['true_with']:>13.5f}"
                     f"{row['true_without']:>11.5f}{row['true_share']:>7.2f}{row['n']:>8}")
    return "\n".join(lines)
