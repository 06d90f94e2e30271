"""The command line. Each command is one function that imports its room when it is called, so that `msk --help` is quick."""
from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
import sys
from pathlib import Path

FLOOR_PLAN = """\
msk: drag points on a picture and watch the video follow.

  play     msk demo                     the live canvas in your browser
           msk generate                 a clip from a picture, a prompt and tracks
           msk replay SESSION           the video of a kept session again, frame for frame
  look     msk tracks FILE              what is in a track file; draw it, convert it
           msk doctor                   what is here, what is missing, what to do about it
           msk models                   every preset: size, memory, disk, licence
  measure  msk bench                    how fast: frames per second, latency, memory
           msk eval                     how good: does it follow, is it sharp
  make     msk train all                all stages: vae, cutter, plate, teacher, causal, distill, finish
           msk widen BASE               columns for tracks in a Wan transformer, to train from
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 where something was asked that cannot be done."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        if getattr(args, "threads", None):
            import torch
            torch.set_num_threads(args.threads)
        args.run(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print(f"\nmsk {args.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("MSK_DEBUG"):
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError, FloatingPointError, KeyError))
        print(f"msk {args.command}: {_sentence(error) if expected else f'{type(error).__name__}: {_sentence(error)}'}"
              f"{'' if expected else ' (MSK_DEBUG=1 shows where)'}", file=sys.stderr)
        for note in getattr(error, "__notes__", []):                    # every key that did not fit, say
            print(f"  {note}", file=sys.stderr)
        return 2 if expected else 1


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UnicodeError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


# ---- what can be asked --------------------------------------------------------------------------------------------------

def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("msk", description=FLOOR_PLAN, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="msk COMMAND --help says more. MSK_DEBUG=1 shows tracebacks.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run, words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words,
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        made.set_defaults(run=run)
        return made

    def model(made: argparse.ArgumentParser) -> None:
        made.add_argument("--model", default="tiny", help="a preset's name or a folder of weights")
        made.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best there is")
        made.add_argument("--threads", type=whole, help="CPU threads")

    def sampler(made: argparse.ArgumentParser) -> None:
        made.add_argument("--steps", type=whole, help="of the teacher; the preset's")
        made.add_argument("--solver", choices=["euler", "unipc"], help="of the teacher; unipc needs fewer steps")

    demo = command("demo", run_demo, "open the live canvas")
    model(demo)
    demo.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    demo.add_argument("--port", type=port, default=os.environ.get("PORT") or "7860", help="of the page")
    demo.add_argument("--share", action="store_true", help="a public link through Gradio")
    demo.add_argument("--auth", metavar="NAME:PASSWORD", type=login, help="ask visitors for it")
    demo.add_argument("--choose", metavar="NAME", nargs="*", help="let who plays change the model, to any or to these: a "
                      "preset's name or a folder; to any where the page is not shared")
    demo.add_argument("--no-browser", action="store_true", default=os.environ.get("NO_BROWSER", "0") not in ("", "0"),
                      help="only serve the page")

    generate = command("generate", run_generate, "make a clip from a picture, a prompt and tracks")
    model(generate)
    generate.add_argument("--image", required=True, help="the first frame: any picture; its middle is used")
    generate.add_argument("--prompt", default="", help="what is seen, and what no track can say")
    generate.add_argument("--tracks", help="npz, json or pth; pixels of the picture, unless the file says its own size")
    generate.add_argument("--whole", action="store_true",
                          help="tracks take hold of the whole thing under them, and the rest is held still")
    generate.add_argument("--frames", type=whole, help="how many; those of the tracks, else 45")
    generate.add_argument("--out", default="clip.mp4", help=".mp4, .webp, .gif, or a folder for png")
    generate.add_argument("--teacher", action="store_true", help="the slow, guided teacher instead of the stream")
    generate.add_argument("--like", metavar="PRESET", help="whose stream and null prompt to take, if the weights cannot say")
    sampler(generate)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--text-scale", type=float, help="guidance of the teacher; the preset's")
    generate.add_argument("--motion-scale", type=float, help="guidance of the teacher; the preset's")
    generate.add_argument("--zoom", type=whole, default=1, help="write each pixel this many times as wide and high")

    again = command("replay", run_replay, "make the video of a kept session again, frame for frame")
    again.add_argument("session", help="the .json (or .jsonl, of one that was cut off) that the canvas has saved")
    again.add_argument("--model", help="a preset's name or a folder of weights; the session's")
    again.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best there is")
    again.add_argument("--threads", type=whole, help="CPU threads")
    again.add_argument("--out", default="clip.mp4", help=".mp4, .webp, .gif, or a folder for png")

    tracks = command("tracks", run_tracks, "look into a track file, draw it, convert it")
    tracks.add_argument("file")
    tracks.add_argument("--out", help="write it as .npz or .json")
    tracks.add_argument("--draw", metavar="PNG", help="a picture of the paths")
    tracks.add_argument("--image", help="draw on this picture")

    bench = command("bench", run_bench, "measure speed, latency and memory")
    model(bench)
    bench.add_argument("--chunks", type=whole, default=200, help="how many to stream")
    bench.add_argument("--warmup", type=whole, default=5, help="chunks before the clock starts")
    bench.add_argument("--json", metavar="F", help="write the figures there too")
    bench.add_argument("--random-weights", action="store_true", help="a preset without its weights; on a CPU at toy size")
    bench.add_argument("--fast", action="store_true", help="attention by the clock, blocks and decoder compiled; for GPUs")
    bench.add_argument("--fp8", action="store_true", help="products in fp8, rows scaled one by one; its error is said")
    bench.add_argument("--offload", metavar="N", type=whole,
                       help="blocks that wait in the CPU's memory; elsewhere MSK_OFFLOAD=N")
    bench.add_argument("--no-clean", action="store_true", help="no clean pass: a chunk is remembered by its last step")
    bench.add_argument("--teacher", action="store_true", help="a whole clip by the guided teacher, in place of the stream")
    sampler(bench)
    bench.add_argument("--together", action="store_true", help="the teacher's three passes as one batch")
    bench.add_argument("--rows", metavar="F", help="every row of the GPU table, in a process each; kept in F, so it goes on")
    bench.add_argument("--budget", type=seconds, default="10m", help="time for --rows: 90s, 10m")

    evaluate = command("eval", run_eval, "measure quality on held-out clips")
    model(evaluate)
    evaluate.add_argument("--suite", default="world", choices=["world", "hands", "text", "cut", "real", "ablations"],
                          help="dense tracks of whole clips; what hands do; is the prompt heard; what a touch takes hold "
                               "of; your material; what each choice buys")
    evaluate.add_argument("--material", metavar="DIR", help="your videos and pictures (and track files), for real")
    evaluate.add_argument("--clips", type=whole,
                          help="how many; of hands, text and ablations, of each case (64; 8; 8; 256; all files; 4)")
    evaluate.add_argument("--cases", nargs="+", metavar="CASE",
                          help="of world, only these rows; of hands and ablations, only these cases")
    evaluate.add_argument("--frames", type=whole,
                          help="of hands' long play (ten chunks), of real's clips (45), of drift in ablations (900)")
    evaluate.add_argument("--strips", metavar="DIR", help="film strips: of each case, or file, of hands, text, cut and real")
    evaluate.add_argument("--whole", action="store_true",
                          help="hands, and drags of pictures (real), take hold of whole things; the rest is held still")
    evaluate.add_argument("--charts", metavar="DIR", help="a chart for each case of the suite ablations")
    sampler(evaluate)
    evaluate.add_argument("--level", choices=["calm", "full"], help="how wild the drawn world is (calm)")
    evaluate.add_argument("--seed", type=int, help="of the first held-out clip; of real, of what is drawn by chance")
    evaluate.add_argument("--json", metavar="F", help="write the figures there too; world and ablations go on with it")

    train = command("train", run_train, "train a model from nothing, or go on")
    train.add_argument("stage", choices=["vae", "teacher", "causal", "distill", "cutter", "plate", "finish", "all"])
    train.add_argument("--preset", default="tiny", help="which sizes")
    train.add_argument("--budget", type=seconds, default="60m", help="time for it: 90s, 60m, 1h30m")
    train.add_argument("--out", metavar="DIR", help="checkpoints and previews; runs/PRESET")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    train.add_argument("--level", default="calm", choices=["calm", "full"], help="how wild the drawn world is")
    train.add_argument("--device", help="cpu, cuda, cuda:1; the best there is")
    train.add_argument("--init", metavar="KIT",
                       help="a kit folder to start from; teacher, cutter, plate, finish or VAE's decoder goes on")
    train.add_argument("--threads", type=whole, help="CPU threads")
    train.add_argument("--size", type=whole, help="rows and columns of pixels, in place of the preset's")

    command("models", run_models, "every preset: size, memory, disk, licence")

    widen = command("widen", run_widen, "columns of zeros for tracks in a Wan transformer: until trained, they do nothing")
    widen.add_argument("base", help="a preset's name, or a file or folder of weights")
    widen.add_argument("--out", required=True, metavar="DIR", help="the new folder, in diffusers' layout")
    widen.add_argument("--like", metavar="PRESET", help="whose geometry and stream to take, if the weights cannot say it")

    doctor = command("doctor", run_doctor, "what is here, what is missing, what to do about it")
    doctor.add_argument("--json", metavar="F", help="write the facts there too; - for standard output")
    return parser


def whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a whole number, 1 or more")
    return int(text)


def port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a port between 1 and 65535")
    return int(text)


def login(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError("wanted NAME:PASSWORD")
    return name, password


def seconds(text: str) -> float:
    """90s, 60m, 1h30m, or plain seconds -> seconds."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    total = sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1))) if found else 0
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: use 90s, 60m or 1h30m")
    return total


# ---- what is done ---------------------------------------------------------------------------------------------------------

def run_demo(args) -> None:
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            raise ValueError(f"{args.host} port {args.port} cannot be had ({error.strerror or error}): "
                             "ask for another with --port") from error
    demo("canvas").main(["--threads", str(args.threads)] if args.threads else None, model=args.model, device=args.device,
                        host=args.host, port=args.port, share=args.share, auth=args.auth, open_browser=not args.no_browser,
                        choose=args.choose)


def demo(name: str):
    """A module of demos/, which lies beside the package in a clone and inside it in a wheel."""
    here = Path(__file__).parent
    inside, beside = here / "demos" / f"{name}.py", here.parent / "demos" / f"{name}.py"
    if inside.exists():
        return importlib.import_module(f"msk.demos.{name}")
    if not beside.exists():
        raise FileNotFoundError(f"the demo {name} is not here: install msk from its folder or its wheel again")
    if str(here.parent) not in sys.path:
        sys.path.insert(0, str(here.parent))
    return importlib.import_module(f"demos.{name}")


def run_generate(args) -> None:
    from . import __version__, generate, video
    from .kit import load
    from .picture import read_picture
    teachers = args.text_scale, args.motion_scale, args.steps, args.solver
    if not args.teacher and teachers != (None,) * 4:
        raise ValueError("--text-scale, --motion-scale, --steps and --solver are for --teacher: add that, or leave them out")
    if args.whole and not args.tracks:
        raise ValueError("--whole says what tracks take hold of: add --tracks, or leave it out")
    picture = read_picture(args.image)
    tracks = generate.read_tracks(args.tracks) if args.tracks else None
    kit = load(args.model, role="teacher" if args.teacher else "student", device=args.device, like=args.like)
    kit.preset = kit.preset.sampled(args.steps, args.solver)
    if strange := kit.unknown(args.prompt):
        print(f"{kit.name} does not know these words: {', '.join(strange)}", file=sys.stderr)
    frames = args.frames or (tracks.xy.shape[1] if tracks is not None else 45)
    about = dict(msk=__version__, model=kit.name, role=kit.role, prompt=args.prompt, seed=args.seed,
                 tracks=generate.digest(tracks))
    preset, stream = kit.preset, kit.preset.stream
    about |= (dict(steps=preset.sample_steps, solver=preset.solver) if args.teacher
              else dict(steps=len(stream.levels) or stream.steps))                      # of each chunk
    if tracks is not None:
        tracks = generate.onto_model(tracks, generate.said_size(args.tracks) or picture.size, kit, args.seed)
        if args.whole:
            tracks = kit.whole(tracks, picture)
    if args.teacher:
        chunks = generate.by_teacher(kit, args.prompt, picture, tracks, frames, args.seed,
                                     args.text_scale, args.motion_scale)
    else:
        chunks = generate.by_stream(kit, args.prompt, picture, tracks, frames, args.seed)
    shown = 0
    with video.Writer(args.out, kit.geometry.fps, about) as writer:
        for made in chunks:                                             # [T, 3, H, W]
            writer.add(made.repeat_interleave(args.zoom, -1).repeat_interleave(args.zoom, -2))
            shown += len(made)
            print(f"\r{shown} of {frames} frames", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{writer.path}: {shown} frames of {writer.size[0]}x{writer.size[1]}, {kit.name} {kit.role}, seed {args.seed}")


def run_replay(args) -> None:
    from . import __version__, video
    from .kit import load
    from .live.record import read_session
    from .live.replay import fingerprint, replay
    session = read_session(args.session)
    kit = load(args.model or session["model"], device=args.device)
    revision, shown = fingerprint(kit), 0
    if session.get("revision") not in ("", None, revision):
        print(f"these weights of {kit.name} are {revision}, the session was played with {session['revision']}: "
              "its video will differ", file=sys.stderr)
    about = dict(msk=__version__, model=kit.name, revision=revision, prompt=session["prompt"], seed=session["seed"])
    with video.Writer(args.out, session["frames_per_second"], about) as writer:
        for made in replay(kit, session):                               # [T, 3, H, W]
            writer.add(made)
            shown += len(made)
    print(f"{writer.path}: {shown} frames of {writer.size[0]}x{writer.size[1]}, {kit.name}, seed {session['seed']}")


def run_tracks(args) -> None:
    from .generate import read_tracks
    tracks = read_tracks(args.file)
    xy, visible = tracks.xy[0], tracks.visible[0]
    print(f"{args.file}: {xy.shape[1]} tracks over {xy.shape[0]} frames, visible {visible.float().mean():.0%} of the time")
    if visible.any():
        seen = xy[visible]
        travel = ((xy[1:] - xy[:-1]).norm(dim=-1) * (visible[1:] & visible[:-1])).sum(0)        # [N]
        (left, top), (right, bottom) = seen.min(0).values.tolist(), seen.max(0).values.tolist()
        print(f"x {left:.1f} to {right:.1f}, y {top:.1f} to {bottom:.1f} pixels; "
              f"a track travels {travel.mean():.1f} pixels on average, {travel.max():.1f} at most")
    if args.out:
        tracks.save(args.out)
        print(f"wrote {args.out}")
    if args.draw:
        draw_tracks(tracks, args.image).save(args.draw)
        print(f"wrote {args.draw}")


def draw_tracks(tracks, image=None):
    """The visible parts of all paths over a picture, from dark (first frame) to bright (last)."""
    from PIL import Image, ImageDraw

    from .picture import read_picture
    xy, visible = tracks.xy[0], tracks.visible[0]
    if image:
        canvas = read_picture(image)
    else:
        far = xy[visible].max(0).values.ceil().int().tolist() if visible.any() else (63, 63)
        canvas = Image.new("RGB", tuple(min(max(side + 1, 64), 8192) for side in far), (24, 24, 28))
    pen = ImageDraw.Draw(canvas)
    width = max(1, max(canvas.size) // 400)
    for n in range(xy.shape[1]):
        for t in range(1, xy.shape[0]):
            if visible[t - 1, n] and visible[t, n]:
                glow = t / (xy.shape[0] - 1)
                pen.line([tuple(xy[t - 1, n].tolist()), tuple(xy[t, n].tolist())], width=width,
                         fill=(int(40 + 215 * glow), int(120 + 100 * glow), int(255 - 175 * glow)))
    for x, y in xy[0][visible[0]].tolist():
        pen.ellipse([x - width, y - width, x + width, y + width], fill=(255, 255, 255))
    return canvas


def run_bench(args) -> None:
    from . import bench, rows
    alone = {"teacher": ("fp8", "no_clean"), "offload": ("fp8",),
             "rows": ("teacher", "fp8", "no_clean", "fast", "offload", "random_weights", "json")}
    for one, others in alone.items():
        idle = [other for other in others if getattr(args, one) and getattr(args, other)]
        if idle:
            said = " and no ".join("--" + name.replace("_", "-") for name in idle)
            raise ValueError(f"--{one} takes no {said}: leave it out")
    idle = [f"--{name}" for name in ("together", "steps", "solver") if getattr(args, name)]
    if idle and not args.teacher:
        raise ValueError(f"{' and '.join(idle)} is for --teacher: give both, or none")
    if args.rows:
        rows.run(args.rows, args.budget, args.device)
        return
    if args.offload:
        os.environ["MSK_OFFLOAD"] = str(args.offload)
    common = dict(json_path=args.json, device=args.device, random_weights=args.random_weights,
                  fast="inductor" if args.fast else None)
    if args.teacher:
        bench.run_teacher(args.model, together=args.together, steps=args.steps, solver=args.solver, **common)
    else:
        bench.run(args.model, args.chunks, args.warmup, args.threads, fp8=args.fp8,
                  clean=False if args.no_clean else None, **common)


def run_eval(args) -> None:
    from . import ablations, cuts, evaluate, hands, real, words
    seeded = {} if args.seed is None else dict(seed=args.seed)
    both = dict(json_path=args.json, level=args.level or "calm", device=args.device, **seeded)
    played = ("hands", "ablations")
    for option, suites in (("frames", (*played, "real")), ("cases", ("world", *played)),
                           ("strips", ("hands", "text", "cut", "real")), ("charts", played[1:]),
                           ("whole", ("hands", "real")), ("level", ("world", "hands", "text", "cut", "ablations")),
                           ("steps", ("world",)), ("solver", ("world",))):
        if getattr(args, option) and args.suite not in suites:
            raise ValueError(f"--{option} is for --suite {' and '.join(suites)}, and {args.suite} has none: leave it out")
    if bool(args.material) != (args.suite == "real"):
        raise ValueError("--suite real and --material DIR, a folder of videos and pictures, go together: give both, or none")
    some = dict(cases=tuple(args.cases)) if args.cases else {}
    if args.suite == "real":
        real.run(args.material, args.model, args.clips, args.json, frames=args.frames or 45, whole=args.whole,
                 strips=args.strips, device=args.device, **seeded)
    elif args.suite == "hands":
        hands.run(args.model, args.clips or 8, long=args.frames, strips=args.strips, whole=args.whole, **some, **both)
    elif args.suite == "ablations":
        ablations.run(args.model, args.clips or 4, long=args.frames, charts=args.charts, **some, **both)
    elif args.suite == "text":
        words.run(args.model, args.clips or 8, strips=args.strips, **both)
    elif args.suite == "cut":
        cuts.run(args.model, args.clips or 256, strips=args.strips, **both)
    else:
        some = dict(roles=some["cases"]) if some else {}
        evaluate.run(args.suite, args.model, args.clips or 64, steps=args.steps, solver=args.solver, **some, **both)


def run_train(args) -> None:
    from . import train
    out = train.main(args.stage, args.preset, args.budget, args.out or f"runs/{args.preset}", resume=args.resume,
                     device=args.device, threads=args.threads, level=args.level, init=args.init, size=args.size)
    print(f"what came out is in {out}")


def run_models(args) -> None:
    from .models import table
    print(table())


def run_widen(args) -> None:
    import torch

    from .kit import load
    from .wan import export
    kit = load(args.base, role="teacher", device="cpu", dtype=torch.float32, like=args.like)
    export(kit, args.out)
    print(f"{args.out}: {kit.name} with {kit.dit.patch_embedding.in_channels} input channels "
          f"({', '.join(f'{name} {kit.dit.channels[name]}' for name in kit.dit.config.inputs)})")


def run_doctor(args) -> None:
    from .doctor import doctor
    from .weights import write_whole
    report = doctor()
    if args.json == "-":
        print(json.dumps(report.to_dict(), indent=2))
        return
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(report.to_dict(), indent=2).encode() + b"\n")
    print(report)
