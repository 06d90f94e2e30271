"""The notebooks keep their promises: short cells, a picture each, light, in step with their twins, at home anywhere."""
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ABSOLUTE = re.compile(r"""(?<![\w.:/<])(/(?:home|Users|root|work|content|tmp|mnt|opt|var)/|[A-Z]:\\)""")

SHOWN = {"text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg"}      # by nbconvert and by GitHub
HERE = ("file:", "data:")
PAGE = 1100             # pixels across: beyond the text of a cell, a scroll bar
TOO_WIDE = """() => [...document.querySelectorAll("pre, table, img")].filter((e) => {
    const text = document.createRange();
    text.selectNodeContents(e);
    const right = Math.max(text.getBoundingClientRect().right, e.getBoundingClientRect().right);
    return right > e.closest(".jp-Cell").getBoundingClientRect().right || (e.tagName === "IMG" && !e.naturalWidth);
}).map((e) => e.tagName + " " + e.innerText.split("\\n").sort((a, b) => b.length - a.length)[0])"""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def lines(cell: dict) -> int:
    """What is read: no blank lines."""
    return sum(bool(line.strip()) for line in "".join(cell["source"]).splitlines())


def parts(source: str) -> list[tuple[str, str]]:
    """A percent script as (kind, text) of each cell."""
    found = []
    for part in re.split(r"^# %%", source, flags=re.M)[1:]:
        kind, text = ("markdown", part.split("\n", 1)[1]) if part.startswith(" [markdown]") else ("code", part)
        text = re.sub(r"^# ?", "", text, flags=re.M) if kind == "markdown" else text
        found.append((kind, text.strip()))
    return found


def test_every_script_has_its_notebook_and_its_solutions():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {path.stem for path in FOLDER.glob("[0-9]*.py")}
    assert {path.stem for path in (FOLDER / "solutions").glob("*.py")} == names


@each
def test_cells_are_short(path):
    counts = [lines(cell) for cell in cells(path, "code")]
    assert statistics.median(counts) <= 7 and max(counts) < 20, counts


@each
def test_the_twins_say_the_same(path):
    notebook = [(c["cell_type"], "".join(c["source"]).strip()) for c in json.loads(path.read_text())["cells"]]
    assert parts(path.with_suffix(".py").read_text()) == notebook, "they differ: make notebooks"


@each
def test_it_was_run_from_top_to_bottom_and_shows_a_picture(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))


@each
def test_it_is_light(path):
    assert path.stat().st_size <= 300_000
    assert "widgets" not in json.loads(path.read_text())["metadata"]


def test_what_cannot_be_made_light_is_said(tmp_path):
    def lightened(text):
        cell = {"cell_type": "code", "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}
        (tmp_path / "it.ipynb").write_text(json.dumps({"metadata": {}, "cells": [cell]}))
        return subprocess.run([sys.executable, FOLDER / "lighten.py", tmp_path / "it.ipynb"], capture_output=True, text=True)
    fine, heavy = lightened("short"), lightened("long" * 100_000)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert heavy.returncode == 1 and "it.ipynb has 400" in heavy.stderr and "at most 290000" in heavy.stderr


@each
def test_it_runs_anywhere(path):
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        said = [text, *("".join(output.get("text", "")) for output in cell.get("outputs", []))]
        assert not any(ABSOLUTE.search(part) for part in said), text
        assert not re.search(r"^\s*[!%]|pip install (?!-e)", text, re.M) or "raise ImportError" in text, text


@each
def test_it_ends_with_things_to_try_and_they_are_solved(path):
    last = "".join(cells(path, "markdown")[-1]["source"])
    tasks = re.findall(r"^(\d)\. ", last, re.M)
    assert last.startswith("## Things to try") and 3 <= len(tasks) <= 5
    solutions = FOLDER / "solutions" / f"{path.stem}.py"
    assert f"solutions/{solutions.name}" in last
    text = solutions.read_text()
    ast.parse(text)
    assert re.findall(r"^# (\d)\. ", text, re.M) == tasks


@each
def test_what_it_shows_is_seen_on_every_page(path):
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            kinds = output.get("data", {"text/html": ""}).keys()
            assert kinds & SHOWN or not "".join(output["data"]["text/plain"]).startswith("<"), cell["source"]


@pytest.mark.parametrize("shown, said", [("display(Image.new('RGB', (2, 2)))", "1 passed"), ("2", "cell 0 is missing")])
def test_a_run_that_leaves_out_a_picture_fails(shown, said, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbmake")
    code = nbformat.v4.new_code_cell(f"from PIL import Image\n{shown}")
    code.outputs = [nbformat.v4.new_output("display_data", {"image/png": ""})]
    nbformat.write(nbformat.v4.new_notebook(cells=[code]), tmp_path / "one.ipynb")
    shutil.copy(FOLDER / "conftest.py", tmp_path)
    pytest_run = [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    ran = subprocess.run(pytest_run, cwd=tmp_path, capture_output=True, text=True)
    assert said in ran.stdout and "one.ipynb" in ran.stdout.split("notebooks, seconds")[1], ran.stdout


@each
def test_nothing_is_wider_than_its_page(path, browser, tmp_path):
    """The notebook as nbconvert shows it, as it was committed: nothing runs."""
    nbconvert = pytest.importorskip("nbconvert")
    page, file = browser.new_page(viewport={"width": PAGE, "height": 900}), tmp_path / "page.html"
    file.write_text(nbconvert.HTMLExporter(template_name="lab").from_filename(str(path))[0])
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(HERE) else route.abort())
    page.goto(file.as_uri())
    assert page.evaluate(TOO_WIDE) == []
    page.close()


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-5b"])
def test_12_plays_the_checkpoint_that_it_is_told(name, tmp_path, monkeypatch, capsys):
    """Its last cells, on a checkpoint of the public format at toy size, whose one prompt umT5 has read already."""
    import torch

    import msk
    from msk import viz, wan
    from msk.models import toy
    from msk.weights import save_weights
    kit = msk.Kit.random(toy(msk.PRESETS[name]))
    folder = wan.export(kit, tmp_path / "checkpoint")
    tiny = {part: x for part, x in kit.vae.state_dict().items() if part not in ("mean", "std")}
    save_weights(tiny, folder / ("taew2_2.safetensors" if "2.2" in name else "taew2_1.safetensors"))
    monkeypatch.setenv("MSK_WAN", str(folder))
    monkeypatch.setenv("MSK_CACHE", str(tmp_path))
    monkeypatch.delenv("MSK_TAEHV", raising=False)
    sources = ["".join(cell["source"]) for cell in cells(FOLDER / "12_wan.ipynb", "code")]
    at = next(i for i, source in enumerate(sources) if "MSK_WAN" in source)
    place = msk.load(folder, device="cpu").text.kept("a red fish in the sea")
    place.parent.mkdir()
    save_weights({"features": torch.randn(5, kit.dit.config.text_dim)}, place)
    known = dict(msk=msk, torch=torch, viz=viz, picture=viz.image(torch.rand(3, 40, 40)), out=None)
    for source in sources[at:]:
        exec(source, known)
    assert known["real"].dit.config == kit.dit.config and "the last chunk: denoise" in capsys.readouterr().out
    assert all(chunk.isfinite().all() for chunk in known["chunks"]) and known["film"].width <= 1248


def test_the_table_of_contents_is_complete():
    table = (FOLDER / "README.md").read_text()
    for path in NOTEBOOKS:
        counts = [lines(cell) for cell in cells(path, "code")]
        row = next(line for line in table.splitlines() if f"[{path.stem}]" in line)
        assert f"| {len(counts)}, {statistics.median(counts):g}, {max(counts)} |" in row, f"{path.stem}: {counts}"
