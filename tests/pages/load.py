"""Play with a browser on the same cores: `python -m tests.pages.load [KIT] [FPS] [SECONDS] [JSON] [--watchers N] [--way W]`.

The canvas is asked to play at FPS (more than it can, to see what it can), a hand drags a point in circles all the while, and
the page's own counts are written down: frames drawn a second, frames dropped, milliseconds from hand to picture. N more wait
in line meanwhile; they are lines of the protocol and not browsers, whose drawing would be measured in place of the server.
The memory is the server's, with the model in it. With --way http no WebSocket gets through from the page, with --way events
nothing but Gradio's own routes.
"""
import argparse
import asyncio
import json
import math
import os
import threading
import time
from pathlib import Path

import torch

from .browser import Stage, open_browser
from .serve import serve


class Watchers:
    """So many clients in line, in a thread of their own; `places` is what each was told last."""

    def __init__(self, lobby, url: str, count: int):
        self.places: list[int | None] = [None] * count
        self.lost: list[str] = []
        self._lobby, self._url, self._leave = lobby, url.rstrip("/"), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def __enter__(self):
        self._thread.start()
        end = time.monotonic() + 30
        while None in self.places:
            if self.lost or time.monotonic() > end:
                raise RuntimeError(f"the watchers are not in line: places {self.places}, {self.lost or 'nothing was said'}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(20)

    async def _all(self):
        self._loop = asyncio.get_running_loop()
        for number in range(len(self.places)):                  # one after the other: their places are in their order
            task = asyncio.create_task(self._wait(number))
            while self.places[number] is None and not task.done():
                await asyncio.sleep(0.02)
        await self._leave.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _wait(self, number: int):
        from websockets.asyncio.client import connect
        try:
            async with connect(self._url.replace("http", "ws", 1) + "/msk/ws", origin=self._url, proxy=None,
                               subprotocols=["msk.v2", f"token.{self._lobby.tokens.issue()}"]) as socket:
                async for data in socket:
                    word = json.loads(data)                     # who waits is sent words, no frames
                    if word["type"] == "queue":
                        self.places[number] = word["place"]
            self.lost.append(f"{number}: the server ended it")
        except Exception as error:
            self.lost.append(f"{number}: {error!r}")


def resident() -> float | None:
    """This process's memory now, in MB; None where the system does not say it in /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def play(kit="tiny", fps=48.0, seconds=30.0, out=None, watchers=0, way="ws", port=7868):
    def bar(page):
        if way != "ws":
            page.route_web_socket("**/msk/ws*", lambda socket: socket.close())
        if way == "events":
            page.route("**/msk/**", lambda route: route.abort())

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))       # as the demo does: the browser needs a core, too
    page, lobby, url = serve(kit, port, folder=None, fps=fps)
    try:
        with open_browser() as browser:
            stage = Stage(browser, url, before=bar).state("ready").wait("stage.current")
            with Watchers(lobby, url, watchers) as line:
                stage.drag((0.5, 0.5), (0.52, 0.5), steps=10, let_go=False)     # a drag begins the stream
                stage.wait("stage.current.index > 60")                      # the first chunks are slower
                stage.ask("stage.latencies.length = 0")
                before, began, angle = stage.ask("({ ...stage.stats })"), time.monotonic(), 0.0
                memory = [resident()]
                while time.monotonic() - began < seconds:
                    angle += 0.05
                    stage.page.mouse.move(*stage.at(0.5 + 0.15 * math.sin(angle), 0.5 + 0.15 * (1 - math.cos(angle))))
                    stage.page.wait_for_timeout(25)
                after, took = stage.ask("({ ...stage.stats })"), time.monotonic() - began
                stage.page.mouse.up()
                report = dict(model=kit, way=stage.ask("stage.host.way"), asked_fps=fps,
                              drawn_fps=(after["drawn"] - before["drawn"]) / took,
                              skipped=after["skipped"] - before["skipped"], latency_ms=after["latency"], seconds=took,
                              threads=torch.get_num_threads(), cores=os.cpu_count(), complaints=stage.complaints,
                              memory_mb=[*memory, resident()], places=list(line.places), watchers_lost=list(line.lost))
    finally:
        lobby.close()
        page.close(verbose=False)
    print(json.dumps(report, indent=2))
    if out:
        Path(out).write_text(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kit", nargs="?", default="tiny")
    parser.add_argument("fps", nargs="?", type=float, default=48.0)
    parser.add_argument("seconds", nargs="?", type=float, default=30.0)
    parser.add_argument("out", nargs="?", help="a JSON file for the figures")
    parser.add_argument("--watchers", type=int, default=0, help="so many more wait in line")
    parser.add_argument("--way", choices=["ws", "http", "events"], default="ws",
                        help="as behind a proxy that lets no more through")
    parser.add_argument("--port", type=int, default=7868)
    args = parser.parse_args()
    play(args.kit, args.fps, args.seconds, args.out, args.watchers, args.way, args.port)
