"""The stage in a real JupyterLab: a notebook is opened, its cell run, the thing dragged, the kernel shut down."""
import json
import os
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.pages.browser import Stage, open_browser
from tests.pages.serve import free_port
from tests.test_canvas_browser import BALL, ball

TOKEN = "for-this-test"
CELL = """\
import os
from pathlib import Path
from msk.live import Stage
from tests.pages import exact

def stream(prompt, image, seed):
    return exact.ExactStream(kit, prompt, image, seed=seed)

Path("pid").write_text(str(os.getpid()))
kit = exact.exact_kit()
Stage(kit, exact.picture(), "a red ball", open_stream=stream, folder="takes")"""
NOTEBOOK = {"cells": [{"cell_type": "code", "id": "a", "source": CELL, "metadata": {}, "outputs": [],
                       "execution_count": None}],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4, "nbformat_minor": 5}
QUIET = {"@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"}}


class Lab:
    """A JupyterLab of its own on a free port, with nothing of the user's."""

    def __init__(self, folder: Path):
        self.port, self.log = free_port(), folder / "log"
        (folder / "home").mkdir()
        (folder / "home/play.ipynb").write_text(json.dumps(NOTEBOOK))
        (folder / "config/labconfig").mkdir(parents=True)
        (folder / "config/labconfig/default_setting_overrides.json").write_text(json.dumps(QUIET))
        homes = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        root = str(Path(__file__).parent.parent)
        env = os.environ | homes | {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1",
                                    "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
        asked = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": self.port, "ServerApp.port_retries": 0,
                 "IdentityProvider.token": TOKEN, "ServerApp.root_dir": str(folder / "home"),
                 "ServerApp.open_browser": False, "ServerApp.allow_root": True}
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in asked.items())]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", method=method,
                                         headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, true, seconds=60):
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            return bool(self.ask("api/status"))
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def lab(tmp_path):
    absent = [name for name in ("jupyterlab", "anywidget") if find_spec(name) is None]
    if absent:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f'the stage in a notebook needs {" and ".join(absent)} to be tested in: pip install "msk[notebook]"')
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def still(file: Path, seconds: float) -> bool:
    """Is nothing written to it for so long?"""
    size = file.stat().st_size
    time.sleep(seconds)
    return file.stat().st_size == size


def test_a_cell_plays_in_jupyterlab_and_ends_with_its_kernel(lab, tmp_path):
    with open_browser() as browser:
        lab.wait(lab.answers)
        stage = Stage(browser, f"http://127.0.0.1:{lab.port}/lab/tree/play.ipynb?token={TOKEN}", height=1100)
        page = stage.page
        page.locator(".jp-CodeCell .cm-content").first.click(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)                 # what is run before the kernel is there is lost
        page.keyboard.press("Shift+Enter")
        page.locator(".msk-stage-host").wait_for(timeout=60_000)
        page.evaluate("document.querySelector('.msk-stage-host').classList.add('msk-host')")
        stage.state("ready").wait("stage.current")
        stage.drag(BALL, (0.6, 0.6))
        stage.rests_at(0.6, 0.6)
        np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.6, 0.6), atol=0.02)
        page.keyboard.press(" ")                                            # the stage's key, not the notebook's
        stage.state("paused")
        assert page.locator(".jp-CodeCell").count() <= 2

        page.keyboard.press(" ")
        stage.state("playing")
        takes, began = next((tmp_path / "home/takes").glob("*.jsonl")), time.monotonic()
        size = takes.stat().st_size
        lab.wait(lambda: takes.stat().st_size > size)
        pace = time.monotonic() - began                                     # of a chunk, on this machine
        page.keyboard.press("Control+s")
        tab = "#jp-main-dock-panel .lm-TabBar-tab"                          # of what is not saved, it would ask
        page.locator(f"{tab}.jp-mod-dirty").wait_for(state="detached", timeout=60_000)
        page.locator(tab, has_text="play.ipynb").locator(".lm-TabBar-tabCloseIcon").click()
        page.locator(".msk-stage-host").wait_for(state="detached", timeout=60_000)
        lab.wait(lambda: still(takes, max(3, 3 * pace)), seconds=120)        # its kernel lives, and makes nothing for nobody
        pid = int((tmp_path / "home/pid").read_text())
        assert lives(pid)
        for session in lab.ask("api/sessions"):
            lab.ask(f"api/sessions/{session['id']}", "DELETE")              # while its engine waits in its thread
        lab.wait(lambda: not lives(pid))
        assert [c for c in stage.complaints if "msk" in c] == []
        page.close()
