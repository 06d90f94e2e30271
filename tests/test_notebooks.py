"""The notebooks keep their promises: short cells, a picture each, light, in step with their twins, at home anywhere."""
import ast
import json
import re
import statistics
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ABSOLUTE = re.compile(r"""(?<![\w.:/<])(/(?:home|Users|root|work|content|tmp|mnt|opt|var)/|[A-Z]:\\)""")

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
    assert {path.stem for path in (FOLDER / "solutions").glob("*.py")} == names - {"00_tour"}


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
    if path.stem != "00_tour":
        solutions = FOLDER / "solutions" / f"{path.stem}.py"
        assert f"solutions/{solutions.name}" in last
        text = solutions.read_text()
        ast.parse(text)
        assert re.findall(r"^# (\d)\. ", text, re.M) == tasks


def test_the_table_of_contents_is_complete():
    table = (FOLDER / "README.md").read_text()
    for path in NOTEBOOKS:
        counts = [lines(cell) for cell in cells(path, "code")]
        row = next(line for line in table.splitlines() if f"[{path.stem}]" in line)
        assert f"| {len(counts)}, {statistics.median(counts):g}, {max(counts)} |" in row, f"{path.stem}: {counts}"
