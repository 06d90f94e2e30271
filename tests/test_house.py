"""The house: what the packaging promises is there, and notebooks and demos keep their place."""
import ast
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MSK = ROOT / "msk"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

def test_demos_import_msk_and_never_each_other():
    for path in (ROOT / "demos").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            names = [module] if module else [n.name for n in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("demos", "notebooks", "tests")) for name in names), f"{path.name}: {names}"


def test_the_thin_core_is_what_is_installed():
    names = {re.split(r"[<>=!~; \[]", line)[0] for line in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "einops", "safetensors", "huggingface_hub", "tqdm", "pillow"}


def test_all_is_every_extra_but_flash():
    extras = PROJECT["optional-dependencies"]
    inside = re.fullmatch(r"msk\[(.*)\]", extras["all"][0])[1].split(",")
    assert set(inside) == set(extras) - {"all", "flash"}


def test_the_doctor_knows_every_extra():
    from msk.doctor import EXTRAS
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"all"}


def test_the_version_is_said_once_and_the_command_exists():
    import msk
    from msk import cli
    assert msk.__version__ == PROJECT["version"]
    assert PROJECT["scripts"]["msk"] == "msk.cli:main" and callable(cli.main)


def test_the_constraints_pin_every_package_and_name_no_machine():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [line for name in extras if name not in ("all", "flash") for line in extras[name]]
    assert {re.split(r"[<>=!~; \[]", w)[0].lower().replace("_", "-") for w in wanted} <= pinned


def test_make_respects_the_port_and_the_browser():
    def planned(*words):
        return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "msk demo --host 127.0.0.1 --port 8123 --no-browser" in planned("demo", "PORT=8123", "NO_BROWSER=1")
    assert "--port 7860" in planned("demo", "NO_BROWSER=") and "--no-browser" not in planned("demo", "NO_BROWSER=")
    assert "pytest" in planned("test") and "ruff" in planned("test")


def test_the_page_travels_with_the_package():
    scripts = list((MSK / "live").glob("*.js"))
    assert scripts, "stage.js is the canvas"
    assert all("http://" not in s.read_text() and "https://" not in s.read_text() for s in scripts), "nothing from outside"


def test_every_notebook_opens_with_its_question_and_its_twin_says_the_same():
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        first, load, examine = ("".join(cell["source"]) for cell in cells[:3])
        assert first.startswith("# ") and "?" in first.splitlines()[0] and "Run time" in first, path.name
        assert "import msk" in load and examine.strip() == "msk.doctor(short=True)", path.name
        twin = path.with_suffix(".py").read_text()
        for cell in cells:
            if cell["cell_type"] == "code":
                assert "".join(cell["source"]).strip() in twin, f"{path.name} and its .py differ: make notebooks"
                assert not re.search(r"^class ", "".join(cell["source"]), re.M), f"{path.name}: classes live in msk/"
        assert path.stat().st_size < 400_000, path.name


def test_what_the_demos_claim_is_tested():
    claimed = re.findall(r"`(test_\w+)`", (ROOT / "demos" / "README.md").read_text())
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(claimed) > 20 and set(claimed) <= there


def test_what_the_readme_shows_runs_as_it_stands(tmp_path, monkeypatch):
    from msk import cli, video
    text, said = (ROOT / "README.md").read_text(), {}
    monkeypatch.chdir(ROOT)
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], said)
    assert said["frames"].shape == (1, 9, 3, 128, 128) and 0 <= said["frames"].min() < said["frames"].max() <= 1
    words = shlex.split(next(line for line in text.splitlines() if line.startswith("msk generate --image")))
    words[words.index("--out") + 1] = str(tmp_path / "fish.mp4")
    assert cli.main(words[1:]) in (None, 0)
    frames, _ = video.read(tmp_path / "fish.mp4")
    orange = (frames[..., 0, :, :] - frames[..., 2, :, :]).reshape(-1, *frames.shape[-2:])
    assert len(orange) == 45 and orange[-1, 84:96, 96:110].mean() > orange[0, 84:96, 96:110].mean() + 0.2     # it went there
