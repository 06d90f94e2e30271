"""Which of two follows better? A blind vote: pairs of clips side by side, left and right by chance, one key for each pair.

    python demos/vote.py votes              # teacher against student on held-out clips, made there if they are not yet
    python demos/vote.py votes --count      # how it stands, of all who voted

A study is a folder with two folders of clips, whose names are what is compared; clips of the same file name are a pair. A
third folder, `asked`, may show what both were asked to do. Votes are in tally.json, or tally-NAME.json with --voter NAME;
they are kept after each key, and the page goes on where it was left.
"""
from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from msk import evaluate, load, video, viz
from msk.kit import ROLES, write_whole
from msk.world import HELD_OUT, World

KINDS = (".webp", ".mp4", ".gif", ".webm", ".mov")
KEYS = {"1": "the left one", "0": "no difference", "2": "the right one"}
REFUSED = (ValueError, OSError, ImportError)
KEYS_JS = """() => document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, textarea")) return;
  document.querySelector(`#msk-vote-${event.key}`)?.click();
})"""
CSS = """
#msk-film img { width: 100%; max-height: 66vh; object-fit: contain; border-radius: 8px; }
#msk-film .who { display: flex; font-weight: 600; } #msk-film .who span { flex: 1; text-align: center; }
footer { display: none !important; }
"""


# -- the study ---------------------------------------------------------------------------------------------------------

@dataclass
class Study:
    """Pairs of clips in a folder, and one voter's choices. What stands on the left is decided by seed, voter and file."""
    folder: Path
    seed: int = 0
    voter: str = ""
    votes: list[dict] = field(default_factory=list)         # {"clip", "left", "choice": one of `sides`, or "same"}

    def __post_init__(self):
        self.folder = Path(self.folder)
        self.sides, self.clips = pairs_of(self.folder)
        if not all(c.isalnum() or c in "-_" for c in self.voter):
            raise ValueError(f"a voter was called {self.voter!r}: use letters, digits, - and _")
        self.tally = self.folder / (f"tally-{self.voter}.json" if self.voter else "tally.json")
        self.clips.sort(key=lambda clip: self._chance("order", clip).random())
        self._turn = threading.Lock()
        if self.tally.exists():
            kept = read_tally(self.tally)
            if (kept["sides"], kept["seed"]) != (self.sides, self.seed):
                raise ValueError(f"{self.tally} is of {' and '.join(kept['sides'])} with seed {kept['seed']}, and this is "
                                 f"{' and '.join(self.sides)} with seed {self.seed}: use another --voter, or move it away")
            self.votes = kept["votes"]

    def _chance(self, *about: str) -> random.Random:
        return random.Random("/".join((str(self.seed), self.voter, *about)))

    @property
    def next(self) -> str | None:
        """The clip to be judged now; None: all have been."""
        done = {vote["clip"] for vote in self.votes}
        return next((clip for clip in self.clips if clip not in done), None)

    def left_right(self, clip: str) -> tuple[str, str]:
        left = self._chance("left", clip).choice(self.sides)
        return left, next(side for side in self.sides if side != left)

    def vote(self, clip: str, key: str) -> None:
        """Keep a choice, on disk before anything else happens. A key pressed twice counts once."""
        if key not in KEYS:
            raise ValueError(f"the key {key!r} came: the keys are {', '.join(KEYS)}")
        with self._turn:
            if clip != self.next:
                return
            left, right = self.left_right(clip)
            votes = [*self.votes, {"clip": clip, "left": left, "choice": {"1": left, "2": right, "0": "same"}[key]}]
            kept = {"sides": self.sides, "seed": self.seed, "voter": self.voter, "votes": votes}
            write_whole(self.tally, json.dumps(kept, indent=1).encode())
            self.votes = votes

    def film(self, clip: str) -> bytes:
        """What was asked, if it is there, left and right, as one animated webp: they cannot run apart."""
        asked = [self.folder / "asked" / clip] if (self.folder / "asked" / clip).is_file() else []
        read = [video.read(path, 480) for path in [*asked, *(self.folder / side / clip for side in self.left_right(clip))]]
        with tempfile.TemporaryDirectory() as folder:
            film = video.write(Path(folder) / "pair.webp", viz.side_by_side(*(frames for frames, _ in read)), read[-1][1])
            return film.read_bytes()


def pairs_of(folder: Path) -> tuple[list[str], list[str]]:
    """(the two sides, the file names of clips that both have) of a study's folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    sides = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "asked" and not p.name.startswith("."))
    if len(sides) != 2:
        raise ValueError(f"{folder} holds {len(sides)} folders ({', '.join(sides) or 'none'}) beside `asked`: "
                         "put the clips of each side in one, two in all")
    first, second = ({p.name for p in (folder / side).iterdir() if p.suffix.lower() in KINDS} for side in sides)
    if not first & second:
        raise ValueError(f"{sides[0]} and {sides[1]} in {folder} have no clip of the same name: a pair is two files of one "
                         f"name ({', '.join(KINDS)})")
    return sides, sorted(first & second)


def read_tally(path: Path) -> dict:
    try:
        kept = json.loads(Path(path).read_text())
        choices = (*kept["sides"], "same")
        if not all(vote["choice"] in choices and isinstance(vote["clip"], str) for vote in kept["votes"]):
            raise ValueError("a choice is none of its sides")
        return {"sides": kept["sides"], "seed": kept["seed"], "votes": kept["votes"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no tally ({type(error).__name__}: {error}): move it away, and vote again") from None


def wilson(wins: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true share lies, with 95 %: Wilson's interval, sound for small numbers and at 0 and 1."""
    if not of:
        return 0.0, 1.0
    middle, half = wins + z * z / 2, z * math.sqrt(wins * (of - wins) / of + z * z / 4)
    return max(0.0, (middle - half) / (of + z * z)), min(1.0, (middle + half) / (of + z * z))


def result(sides: list[str], votes: list[dict]) -> str:
    """How it stands, in two sentences."""
    wins = {side: sum(vote["choice"] == side for vote in votes) for side in sides}
    decided = sum(wins.values())
    ahead = max(sides, key=wins.get)
    low, high = wilson(wins[ahead], decided)
    text = (f"{len(votes)} votes: {sides[0]} {wins[sides[0]]}, {sides[1]} {wins[sides[1]]}, no difference "
            f"{len(votes) - decided}.")
    if not decided:
        return f"{text} Nothing is decided."
    verdict = "more than chance gives" if low > 0.5 else "which chance may give as well"
    return (f"{text} Of those that saw one, {wins[ahead] / decided:.0%} preferred {ahead} "
            f"(95 % interval {low:.0%} to {high:.0%}), {verdict}.")


def make(folder: Path, model: str = "tiny", clips: int = 12, *, frames: int = 45, level: str = "calm", seed: int = HELD_OUT,
         grid: int = 24, device: str | None = None) -> None:
    """Teacher and student on the same held-out clips with the same tracks; those that are there already are kept."""
    numbers = [n for n in range(seed, seed + clips)
               if not all((folder / part / f"{n}.webp").exists() for part in (*ROLES, "asked"))]
    if not numbers:
        return
    kits = {role: load(model, role, device) for role in ROLES}
    student = kits["student"]
    world = World(student.geometry, level)
    for number in numbers:
        clip = evaluate.shown(world, [number], frames, grid, student.preset.tracks.max_id, student.device)
        films = {"asked": viz.draw_tracks(clip.first.expand(frames, -1, -1, -1), clip.asked)}
        for role, by in (("student", evaluate.by_student), ("teacher", evaluate.by_teacher)):
            films[role] = by(kits[role], clip.captions, clip.first, clip.dense, frames, number)[0]
        for part, film in films.items():
            video.write(folder / part / f"{number}.webp", film, student.geometry.fps)
        print(f"pair {number - seed + 1} of {clips}: {clip.captions[0]}", flush=True)


# -- the page ----------------------------------------------------------------------------------------------------------

def build(study: Study):
    """The page as a gr.Blocks: one pair at a time, no names, the result when all are judged."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError:
        raise ImportError('the page needs gradio: pip install "msk[demo]"') from None

    def show():
        clip = study.next
        if clip is None:
            return None, f"<h2>Thank you.</h2><p>{result(study.sides, study.votes)}</p>", "", gr.update(visible=False)
        asked = "<span>what was asked</span>" if (study.folder / "asked" / clip).is_file() else ""
        film = base64.b64encode(study.film(clip)).decode()
        return (clip, f'<div class="who">{asked}<span>1</span><span>2</span></div>'
                      f'<img alt="pair {len(study.votes) + 1}" src="data:image/webp;base64,{film}">',
                f"Pair {len(study.votes) + 1} of {len(study.clips)}", gr.update(visible=True))

    def chosen(key):
        def choose(clip):
            if clip is not None:
                study.vote(clip, key)
            return show()
        return choose

    with gr.Blocks(title="msk: which follows better?", analytics_enabled=False) as page:
        gr.HTML("<h1>Which follows better?</h1><p>Press 1 or 2 for the one that moves as it was asked and looks better "
                "doing so, 0 if you see no difference.</p>")
        clip, film, place = gr.State(None), gr.HTML(elem_id="msk-film"), gr.Markdown(elem_id="msk-place")
        with gr.Row() as row:
            buttons = {key: gr.Button(f"{key}: {words}", elem_id=f"msk-vote-{key}") for key, words in KEYS.items()}
        out = [clip, film, place, row]
        page.load(show, None, out, show_progress="hidden", api_visibility="private")
        for key, button in buttons.items():
            button.click(chosen(key), [clip], out, show_progress="hidden", concurrency_limit=1, concurrency_id="vote",
                         api_visibility="private")
    return page


def serve(study: Study, host: str = "127.0.0.1", port: int = 7863, block: bool = True):
    """The page at host:port; gives (page, url) at once unless `block`."""
    page = build(study)
    _, url, _ = page.launch(server_name=host, server_port=port, quiet=True, ssr_mode=False, prevent_thread_lock=True,
                            footer_links=[], css=CSS, js=KEYS_JS)
    print(f"{len(study.clips) - len(study.votes)} pairs wait at {url}; votes go to {study.tally}", flush=True)
    if block:
        page.block_thread()
    return page, url


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study; made if it is not there")
    parser.add_argument("--count", action="store_true", help="only say how it stands")
    parser.add_argument("--voter", default="", help="a name for the tally, so that several can vote")
    parser.add_argument("--seed", type=int, default=0, help="of the order, and of what stands on the left")
    parser.add_argument("--clips", type=int, default=12, help="pairs to make")
    parser.add_argument("--frames", type=int, default=45, help="of each, 1 + 4 n")
    parser.add_argument("--model", default="tiny", help="a preset's name or a folder of weights")
    parser.add_argument("--level", default="calm", choices=["calm", "full"])
    parser.add_argument("--device")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7863)
    args = parser.parse_args(argv)
    try:
        if args.count:
            sides, _ = pairs_of(args.folder)
            kept = [read_tally(path) for path in sorted(args.folder.glob("tally*.json"))]
            if not all(tally["sides"] == sides for tally in kept):
                raise ValueError(f"a tally in {args.folder} compares other things than {' and '.join(sides)}: move it away")
            print(result(sides, [vote for tally in kept for vote in tally["votes"]]))
            return
        if not args.folder.exists() or all((args.folder / part).is_dir() for part in (*ROLES, "asked")):
            make(args.folder, args.model, args.clips, frames=args.frames, level=args.level, device=args.device)
        serve(Study(args.folder, args.seed, args.voter), args.host, args.port)
    except REFUSED as error:
        parser.exit(2, f"vote: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
