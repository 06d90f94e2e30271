"""Motion transfer: points are followed through a video, and the things of another picture move along their paths.

    python demos/motion_transfer.py --video clip.mp4 --image picture.png --out moved.mp4
    python demos/motion_transfer.py                 # the same as a page

Beside moved.mp4 it leaves moved-tracks.mp4 (the paths over the video and over what was made) and moved.npz: the paths in
the picture's pixels, which `msk generate --image picture.png --tracks moved.npz` takes.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from msk import generate, load, trackers, video, viz
from msk.hands import chosen
from msk.kit import ROLES, Kit
from msk.picture import middle, read_picture
from msk.real import best_tracker, followed, read_clip, still_row
from msk.tracks import Tracks
from msk.world import HELD_OUT, World

MOST_FRAMES = 241                   # ten seconds
MOST_GRID = 48                      # points along each side
MAX_VIDEO = 200 * 1024 ** 2         # bytes
MAX_PICTURE = 25 * 1024 ** 2
DRAWN = 12                          # of the points, so many along each side are drawn
JUDGED = 48                         # of the points, so many are looked for in what was made
REFUSED = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class Moved:
    """What was found and made; source and made [T, 3, H, W] in the kit's size, paths in the picture's pixels."""
    source: Tensor
    made: Tensor
    paths: Tracks
    told: Tracks                    # the same in the kit's pixels
    found: dict                     # how surely the paths were followed, see `real.followed`
    score: dict | None              # how well the picture follows them, see `real.still_row`; None: nothing can be judged


def transfer(kit: Kit, clip, image, prompt: str = "", *, frames: int = 97, grid: int = 24, seed: int = 0) -> Moved:
    """Move a picture as a video moves. clip: a video's path; image: anything `read_picture` reads.

    frames: at most so many of the video are used, whole latent frames. grid: points along each side of its first one.
    """
    path = Path(clip)
    if not 5 <= frames <= MOST_FRAMES:
        raise ValueError(f"{frames} frames were asked for: give 5 to {MOST_FRAMES}")
    if not 1 <= grid <= MOST_GRID:
        raise ValueError(f"{grid} points a side were asked for: give 1 to {MOST_GRID}")
    if path.is_file() and path.stat().st_size > MAX_VIDEO:
        raise ValueError(f"{path.name} has {path.stat().st_size / 1e6:.0f} MB: give a video of at most "
                         f"{MAX_VIDEO / 1e6:.0f} MB")
    picture = read_picture(image, MAX_PICTURE)
    source, wide = read_clip(path, kit.geometry, frames)
    seen, found = followed(wide, kit.geometry, grid, best_tracker())
    if not seen.visible[:, 1:].any():
        raise ValueError(f"no point of the first frame of {path.name} can be followed: give a video with more to hold on to")
    paths = onto_picture(seen, picture.size, kit)
    told = generate.onto_model(paths, picture.size, kit, seed)
    by = generate.by_teacher if kit.role == "teacher" else generate.by_stream
    made = torch.cat(list(by(kit, prompt, picture, told, source.shape[1], seed)))
    return Moved(source[0], made, paths, told, found, judged(kit, picture, made, told))


def onto_picture(tracks: Tracks, size: tuple[int, int], kit: Kit) -> Tracks:
    """Tracks in the kit's pixels as tracks over the middle of a picture of size (width, height): `onto_model`'s inverse."""
    left, top, wide, tall = middle(*size, kit.geometry)
    tracks = tracks.scaled((kit.geometry.height, kit.geometry.width), (tall, wide))
    return replace(tracks, xy=tracks.xy + torch.tensor([left, top]))


def judged(kit: Kit, picture, made: Tensor, told: Tracks) -> dict | None:
    """`real.still_row` of moving points that lie on something which can be found again; None: there are none."""
    first = kit.pixels(picture).cpu()
    height, width = first.shape[-2:]
    rich = trackers.texture(first, max(4, round(trackers.PATCH * width / trackers.REFERENCE)))[0]
    x, y = told.xy[0, 0].long().unbind(-1)
    moves = (((told.xy - told.xy[:, :1]).norm(dim=-1) > 1) & told.visible).any(dim=1)[0]
    fair = (moves & (rich[y.clamp(0, height - 1), x.clamp(0, width - 1)] >= trackers.TEXTURE)).nonzero()[:, 0]
    if not len(fair):
        return None
    any_of = torch.randperm(len(fair), generator=torch.Generator().manual_seed(0))[:JUDGED]
    return still_row(kit, first, made[None], chosen(told, fair[any_of].tolist()))


def both(moved: Moved) -> Tensor:
    """The paths over the video and over what was made, side by side, at least 256 pixels wide each."""
    side = round(moved.told.xy.shape[2] ** .5)
    lines = range(0, side, max(1, side // DRAWN))
    few = [row * side + column for row in lines for column in lines]
    told = chosen(moved.told, few)
    zoom = max(1, -(-256 // moved.made.shape[-1]))
    return viz.side_by_side(*(viz.draw_tracks(frames, told, zoom=zoom) for frames in (moved.source, moved.made)))


def write(moved: Moved, out, fps: float, about: dict) -> tuple[Path, Path, Path]:
    """The clip at `out`, the paths drawn beside it, and their file."""
    out = Path(out)
    drawn, tracks = out.with_name(f"{out.stem}-tracks{out.suffix}"), out.with_suffix(".npz")
    video.write(out, moved.made, fps, about)
    video.write(drawn, both(moved), fps, about)
    moved.paths.save(tracks)
    return out, drawn, tracks


def said(moved: Moved) -> str:
    """What happened, in one line."""
    count, row = moved.told.ids.shape[1], moved.score
    line = (f"{len(moved.made)} frames; {count} points followed with {moved.found['tracker']}, sure "
            f"{moved.found['sure']:.0%} of the time")
    if row is None:
        return f"{line}; nothing that can be found again moves"
    return (f"{line}; of those that move, {row['points']} can be judged: they are {row['epe']:.1f} pixels from where they "
            f"should be, and would be {row['epe_still']:.1f} if the picture had stayed still")


# -- the page ----------------------------------------------------------------------------------------------------------

def example(kit: Kit, folder: Path, frames: int = 45, seed: int = HELD_OUT + 13) -> tuple[str, str, str]:
    """A clip of the drawn world, and a picture of it in other colours with its words."""
    clip = World(kit.geometry).sample(1, frames, seed=seed)
    video.write(folder / "example.mp4", clip.frames[0], kit.geometry.fps)
    viz.image(clip.frames[0, 0].roll(1, 0)).save(folder / "example.png")
    return str(folder / "example.mp4"), str(folder / "example.png"), ""


def build(kits: dict[str, Kit], frames: int = 45, grid: int = 24):
    """The page as a gr.Blocks; kits by role; what its sliders begin with."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError:
        raise ImportError('the page needs gradio: pip install "msk[demo]" (the command line does not)') from None
    folder = Path(tempfile.mkdtemp(prefix="msk-transfer-"))
    geometry = next(iter(kits.values())).geometry
    clip, image, words = example(next(iter(kits.values())), folder)

    def run(clip, image, prompt, frames, grid, role, seed):
        if not clip or not image:
            raise gr.Error("A video and a picture are needed: give both.", print_exception=False)
        kit = kits[role]
        try:
            moved = transfer(kit, clip, image, prompt[:1000], frames=int(frames), grid=int(grid), seed=int(seed or 0))
            out = Path(tempfile.mkdtemp(dir=folder)) / "moved.mp4"
            made, drawn, tracks = write(moved, out, geometry.fps, dict(model=kit.name, role=role, prompt=prompt, seed=seed))
        except REFUSED as error:
            raise gr.Error(str(error), print_exception=False) from None
        return str(drawn), [str(made), str(tracks)], said(moved)

    def take(file):
        try:
            return read_picture(file, MAX_PICTURE)
        except REFUSED as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Blocks(title="msk: motion transfer", analytics_enabled=False) as page:
        gr.HTML("<h1>Motion transfer</h1><p>Points are followed through the video; the things of the picture move along "
                "their paths. What lies at the same place takes the motion.</p>")
        with gr.Row():
            with gr.Column():
                clip = gr.Video(clip, label="How it moves", sources=["upload"], include_audio=True, elem_id="msk-clip")
                image = gr.Image(image, label="What moves", type="filepath", format="png", interactive=False)
                upload = gr.UploadButton("Another picture", file_types=["image"], type="filepath", elem_id="msk-picture")
            with gr.Column():
                drawn = gr.Video(label="The paths: over the video, and over what was made", autoplay=True, loop=True,
                                 interactive=False, elem_id="msk-drawn")
                told = gr.Markdown(elem_id="msk-told")
                files = gr.File(label="The clip and its tracks", file_count="multiple", interactive=False)
                prompt = gr.Textbox(words, label="Prompt", info="What is seen in the picture", max_length=1000)
                with gr.Row():
                    frames = gr.Slider(5, MOST_FRAMES, frames, step=geometry.time_stride, label="Frames, at most")
                    grid = gr.Slider(1, MOST_GRID, grid, step=1, label="Points a side")
                with gr.Row():
                    role = gr.Radio(list(kits), value=next(iter(kits)), label="Made by")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2 ** 31 - 1)
                go = gr.Button("Move it", variant="primary", elem_id="msk-go")
        upload.upload(take, [upload], [image], api_visibility="private")
        go.click(run, [clip, image, prompt, frames, grid, role, seed], [drawn, files, told], concurrency_limit=1,
                 api_visibility="private")
    return page


def serve(kits: dict[str, Kit], host: str = "127.0.0.1", port: int = 7862, block: bool = True, **sliders):
    """The page at host:port; gives (page, url) at once unless `block`."""
    page = build(kits, **sliders)
    _, url, _ = page.queue(max_size=8).launch(server_name=host, server_port=port, quiet=True, ssr_mode=False,
                                              prevent_thread_lock=True, show_error=True, footer_links=[],
                                              max_file_size=MAX_VIDEO)
    print(f"Motion transfer ({next(iter(kits.values())).name}) is at {url}", flush=True)
    if block:
        page.block_thread()
    return page, url


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Without --video and --image: a page.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--video", help="whose motion: mp4, webm, webp, gif, or a folder of pictures")
    parser.add_argument("--image", help="what moves: any picture; its middle is used")
    parser.add_argument("--out", default="moved.mp4", help=".mp4, .webp or .gif")
    parser.add_argument("--prompt", default="", help="what is seen in the picture")
    parser.add_argument("--frames", type=int, default=97, help=f"at most so many, up to {MOST_FRAMES}")
    parser.add_argument("--grid", type=int, default=24, help="points along each side of the first frame")
    parser.add_argument("--model", default="tiny", help="a preset's name or a folder of weights")
    parser.add_argument("--teacher", action="store_true", help="the slow, guided teacher instead of the stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--host", default="127.0.0.1", help="of the page")
    parser.add_argument("--port", type=int, default=7862, help="of the page")
    args = parser.parse_args(argv)
    if bool(args.video) != bool(args.image):
        parser.error("--video and --image go together: give both, or neither for the page")
    try:
        if not args.video:
            return serve({role: load(args.model, role, args.device) for role in ROLES}, args.host, args.port)
        if Path(args.out).suffix.lower() not in (".mp4", ".webp", ".gif"):
            raise ValueError(f"--out was {args.out}: name an .mp4, .webp or .gif file")
        kit = load(args.model, "teacher" if args.teacher else "student", args.device)
        moved = transfer(kit, args.video, args.image, args.prompt, frames=args.frames, grid=args.grid, seed=args.seed)
        about = dict(model=kit.name, role=kit.role, prompt=args.prompt, seed=args.seed, tracks=generate.digest(moved.told))
        files = write(moved, args.out, kit.geometry.fps, about)
    except REFUSED as error:
        parser.exit(2, f"motion_transfer: {' '.join(str(error).split())}\n")
    print(f"{', '.join(map(str, files))}: {said(moved)}")


if __name__ == "__main__":
    main(sys.argv[1:])
