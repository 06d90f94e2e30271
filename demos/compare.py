"""Teacher, student and truth side by side on held-out clips of the procedural world, with some of the true tracks drawn.

    python demos/compare.py --model tiny --clips 3 --out compare.webp
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from msk import evaluate, load, video, viz
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points


def compare(model: str = "tiny", clips: int = 3, out: str = "compare.webp", *, frames: int = 45, level: str = "calm",
            seed: int = HELD_OUT, grid: int = 24, device: str | None = None, zoom: int = 2) -> Path:
    """Write a clip (truth | teacher | student, one held-out clip after the other), and its film strips as <out>.png."""
    student, teacher = (load(model, role, device) for role in ("student", "teacher"))
    world, shown, strips = World(student.geometry, level), [], []
    for number in range(seed, seed + clips):
        clip = world.sample(1, frames, seed=number)
        tracks = clip.track(grid_points(student.geometry, grid, grid))
        ids = draw_ids(1, grid * grid, student.preset.tracks.max_id, torch.Generator().manual_seed(number))
        asked = tracks.with_ids(ids).to(student.device), frames, number
        first = clip.frames[:, 0].to(student.device)
        rows = {"truth": clip.frames,
                "teacher": evaluate.by_teacher(teacher, clip.captions, first, *asked).cpu(),
                "student": evaluate.by_student(student, clip.captions, first, *asked).cpu()}
        few = clip.track(grid_points(student.geometry, 5, 5))
        shown.append(viz.side_by_side(*(viz.draw_tracks(made[0], few) for made in rows.values())))
        strips += [viz.strip(made, label=f"{name}: {clip.captions[0]}", zoom=zoom) for name, made in rows.items()]
        print(f"seed {number}: {clip.captions[0]}")
    viz.grid(strips).save(Path(out).with_suffix(".png"))
    large = torch.cat(shown).repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    return video.write(out, large, student.geometry.fps)


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
