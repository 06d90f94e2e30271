"""Play with a browser on the same cores: `python -m tests.pages.load [KIT] [FPS] [SECONDS] [JSON]`.

The canvas is asked to play at FPS (more than it can, to see what it can), a hand drags a point in circles all the while, and
the page's own counts are written down: frames drawn a second, frames dropped, milliseconds from hand to picture.
"""
import json
import math
import os
import sys
import time

import torch

from .browser import Stage, open_browser
from .serve import serve


def play(kit="tiny", fps=48.0, seconds=30.0, out=None):
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))       # as the demo does: the browser needs a core, too
    page, lobby, url = serve(kit, 7868, folder=None, fps=fps)
    try:
        with open_browser() as browser:
            stage = Stage(browser, url).state("ready").wait("stage.current")
            stage.drag((0.5, 0.5), (0.52, 0.5), steps=10, let_go=False)     # a drag begins the stream
            stage.wait("stage.current.index > 60")                      # the first chunks are slower
            before, began, angle = stage.ask("({ ...stage.stats })"), time.monotonic(), 0.0
            while time.monotonic() - began < seconds:
                angle += 0.05
                stage.page.mouse.move(*stage.at(0.5 + 0.15 * math.sin(angle), 0.5 + 0.15 * (1 - math.cos(angle))))
                stage.page.wait_for_timeout(25)
            after, took = stage.ask("({ ...stage.stats })"), time.monotonic() - began
            stage.page.mouse.up()
            report = dict(model=kit, asked_fps=fps, drawn_fps=(after["drawn"] - before["drawn"]) / took,
                          skipped=after["skipped"] - before["skipped"], latency_ms=after["latency"], seconds=took,
                          threads=torch.get_num_threads(), cores=os.cpu_count(), complaints=stage.complaints)
    finally:
        lobby.close()
        page.close(verbose=False)
    print(json.dumps(report, indent=2))
    if out:
        with open(out, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    args = sys.argv[1:]
    play(*args[:1], *map(float, args[1:3]), *args[3:4])
