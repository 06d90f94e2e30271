"""Imports point down or sideways along the route, never up; and the core stands on its own."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "msk"
ROUTE = {"config", "cache", "flow", "guidance", "attention", "tracks", "tinyvae", "finish", "text", "motion", "fill",
         "similarity", "carry", "dit", "sample", "stream"}
SIDE = {"world", "clips", "trackers", "camera", "video"}
MAY = {
    "config": set(), "cache": set(), "flow": set(), "guidance": set(), "weights": set(), "host": set(),
    "fill": set(), "similarity": {"host"}, "finish": {"fill"},
    **{room: {"config", "host"} for room in ("attention", "tracks", "tinyvae", "text")},
    **{room: {"config", "host", "tracks"} for room in ("motion", "camera", "trackers")},
    "carry": {"config", "fill", "host", "similarity", "tracks"},
    "world": {"config", "host", "text", "tracks"},      # it speaks the words that the encoder knows
    "video": {"config", "picture", "tracks"},
    "unet": set(), "cutter": {"unet"}, "plate": {"carry", "fill", "unet"}, "grip": {"cutter", "motion", "tracks"},
    "clips": {"config", "tracks", "video"},             # a clip is a video with its tracks
    "dit": {"config", "attention", "host"},
    "sample": {"flow", "guidance"},
    "stream": {"config", "cache", "flow", "guidance", "host", "tracks"},
    "picture": {"config", "weights"},
    "kit": ROUTE | SIDE | {"cutter", "plate", "grip", "host", "picture", "weights", "wan"},
    "checkpoints": {"config", "dit", "motion", "tinyvae", "weights"},
    "encoders": {"tinyvae", "weights", "kit", "checkpoints"},
    "offload": {"config", "host", "kit"},
    "fast": {"attention", "encoders", "kit", "offload", "tinyvae"},
    "wan": ROUTE | SIDE | {"weights", "kit", "checkpoints", "encoders", "fast", "offload"},  # asked for lazily, gives kits
    "evaluate": ROUTE | SIDE | {"kit"},
    "hands": ROUTE | SIDE | {"kit", "evaluate", "generate", "grip", "viz"},
    "real": ROUTE | SIDE | {"kit", "evaluate", "generate", "grip", "hands", "picture", "viz"},
    "cuts": ROUTE | SIDE | {"cutter", "kit", "evaluate", "grip", "viz"},
    "words": ROUTE | SIDE | {"kit", "evaluate", "viz"},
    "ablations": ROUTE | SIDE | {"kit", "evaluate", "hands", "bench", "viz", "train"},
}
CORE = {"torch", "numpy", "einops", "safetensors", "huggingface_hub", "tqdm", "PIL"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, top_only: bool):
    """(inside, outside): rooms of msk and foreign packages that a file imports."""
    inside, outside = set(), set()
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    depth = len(path.relative_to(PACKAGE).parts)
    for node in nodes:
        if isinstance(node, ast.Import):
            for first, *rest in (a.name.split(".") for a in node.names):
                (inside if first == "msk" and rest else outside).add(rest[0] if first == "msk" and rest else first)
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level == depth:
                inside |= {parts[0]} if parts else {a.name for a in node.names}
            elif node.level == 0 and parts[0] == "msk":
                inside |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
            elif node.level == 0:
                outside.add(parts[0])
    return inside, outside


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", MAY)
def test_each_room_imports_only_what_lies_below_it(room):
    inside, _ = imports(PACKAGE / f"{room}.py", top_only=False)
    assert inside <= MAY[room], f"{room} imports {sorted(inside - MAY[room])}"


def test_nothing_imports_the_front():
    for path in FILES:
        inside, outside = imports(path, top_only=False)
        assert not {"demos", "notebooks"} & (inside | outside), path
        assert "cli" not in inside or room_of(path) in ("__main__", "cli"), path


def test_wan_is_asked_for_lazily():
    assert "wan" not in imports(PACKAGE / "kit.py", top_only=True)[0]


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in {*MAY, "train", "__init__"}],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_core_needs_the_core_packages_only(path):
    foreign = imports(path, top_only=True)[1] - CORE - {"msk", "__future__"} - set(sys.stdlib_module_names)
    assert not foreign, f"{path.name} imports {sorted(foreign)} at the top: move it into the function that needs it"


def test_importing_msk_brings_no_optional_package():
    code = ("import sys, msk; heavy = {'diffusers', 'transformers', 'gradio', 'matplotlib', 'cv2', 'av'} & set(sys.modules);"
            "sys.exit(f'{heavy} came along' if heavy else 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_threads_do_not_spin():
    code = "import os; os.environ.pop('OMP_WAIT_POLICY', 0); import msk; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "PASSIVE", done.stderr
