"""What running the notebooks (`pytest --nbmake notebooks`) asks beyond no error: each picture that was committed is shown
again. And it says how long each took."""
import json

try:
    from nbmake import nb_result, pytest_items
except ImportError:                     # then nothing here is run
    pytest_items = None

MOST = 60           # seconds of two quiet cores


def shows(cell: dict) -> bool:
    return any(kind.startswith("image/") for output in cell["outputs"] for kind in output.get("data", {}))


if pytest_items is not None:
    class Run(pytest_items.NotebookRun):
        def execute(self):
            result, asked = super().execute(), json.loads(self.filename.read_text(encoding="utf-8"))
            for i, (was, now) in enumerate(zip(asked["cells"], result.nb["cells"])):
                if result.error is None and was["cell_type"] == "code" and shows(was) and not shows(now):
                    told = f"the picture of cell {i} is missing"
                    result.error = nb_result.NotebookError(told, f"{told}:\n{''.join(was['source'])}", i)
            return result

    pytest_items.NotebookRun = Run


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    took = {report.nodeid.split("::")[0]: report.duration for report in reports
            if ".ipynb" in report.nodeid and report.when == "call"}
    if took:
        terminalreporter.section("notebooks, seconds")
        for name, seconds in sorted(took.items()):
            long = f"   more than {MOST}: shorten it, unless the machine had other work" if seconds > MOST else ""
            terminalreporter.write_line(f"{seconds:6.1f}  {name}{long}")
        terminalreporter.write_line(f"{sum(took.values()):6.1f}  together")
