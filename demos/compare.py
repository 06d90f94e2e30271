"""Truth, teacher and student side by side on held-out clips of the procedural world, with their tracking errors drawn.

    python demos/compare.py --model tiny --clips 3 --out compare.webp

On the truth, points and the way they came; on what was made, a ring where each point should be and a line to where it is
found, and the frame's mean error in pixels.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from msk import evaluate, load, trackers, video, viz
from msk.kit import ROLES
from msk.world import HELD_OUT, World


def compare(model: str = "tiny", clips: int = 3, out: str = "compare.webp", *, frames: int = 45, level: str = "calm",
            seed: int = HELD_OUT, grid: int = 24, device: str | None = None, zoom: int = 2) -> Path:
    """Write a clip (truth | teacher | student, one held-out clip after the other), and its film strips as <out>.png."""
    kits = {role: load(model, role, device) for role in reversed(ROLES)}
    student = kits["student"]
    world, films, strips = World(student.geometry, level), [], []
    for number in range(seed, seed + clips):
        clip = evaluate.shown(world, [number], frames, grid, student.preset.tracks.max_id, student.device)
        rows, said = {"truth": viz.draw_tracks(clip.truth[0], clip.asked, zoom=zoom)}, []
        for role, kit in kits.items():
            make = evaluate.by_teacher if role == "teacher" else evaluate.by_student
            made = make(kit, clip.captions, clip.first, clip.dense, frames, number).contiguous()
            found = trackers.register(made, clip.truth, clip.asked.xy)
            name = f"{role}, {evaluate.epe(found, clip.asked).mean().item():.2f} px"
            rows[name] = viz.draw_errors(made[0], clip.asked, found, zoom)
            said.append(name)
        films.append(viz.side_by_side(*rows.values()))
        strips += [viz.strip(film, label=f"{name}: {clip.captions[0]}") for name, film in rows.items()]
        print(f"seed {number}: {'; '.join(said)}: {clip.captions[0]}")
    viz.grid(strips).save(Path(out).with_suffix(".png"))
    return video.write(out, torch.cat(films), student.geometry.fps)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a preset's name or a folder of weights")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--frames", type=int, default=45, help="1 + 4 n")
    parser.add_argument("--level", default="calm", choices=["calm", "full"])
    parser.add_argument("--device")
    parser.add_argument("--out", default="compare.webp", help=".webp, .gif or .mp4")
    args = parser.parse_args(argv)
    print(compare(args.model, args.clips, args.out, frames=args.frames, level=args.level, device=args.device))


if __name__ == "__main__":
    main()
