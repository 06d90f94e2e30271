"""A real browser for the tests: Chromium where it is, a clear word where it is not."""
import base64
import io
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]
MISSING = "the canvas needs a browser to be tested in: apt-get install chromium"


@contextmanager
def open_browser():
    """Chromium, driven by Playwright."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


class Stage:
    """One page with the canvas on it, its complaints, and what a hand can do there."""

    def __init__(self, browser, url, width=1200, height=900, before=None, **options):
        self.complaints, self.strangers = [], []
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.page.on("console", lambda m: self.complain(f"{m.text} {m.location.get('url', '')}".strip())
                     if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.strangers.append(r.url)
                     if "://127.0.0.1" not in r.url and not r.url.startswith(("data:", "blob:")) else None)
        if before is not None:
            before(self.page)                       # what must be so when the page opens
        self.page.goto(url)

    def complain(self, text):
        """Keep what the page complains of, but for what Gradio's own script says of its own stream as a page is left."""
        its = "BodyStreamBuffer was aborted" in text or "Connection errored out" in text
        if not (its and "/assets/" in text):
            self.complaints.append(text)

    def ask(self, expression, argument=None):
        """JavaScript with `stage` the stage of this page."""
        return self.page.evaluate(f"async (given) => {{ const stage = document.querySelector('.msk-host')?.mskStage; "
                                  f"return ({expression}); }}", argument)

    def wait(self, expression, seconds=60):
        from playwright.sync_api import TimeoutError
        try:
            self.page.wait_for_function(f"() => {{ const stage = document.querySelector('.msk-host')?.mskStage; "
                                        f"return stage && ({expression}); }}", timeout=1000 * seconds, polling=100)
        except TimeoutError:
            now = self.ask("stage && { state: stage.state, index: stage.current?.index, marks: stage.current?.marks, "
                           "points: [...stage.points], stats: stage.stats }")
            raise AssertionError(f"waited {seconds} s for {expression}; the stage: {now}; {self.complaints}") from None
        return self

    def rests_at(self, x, y, seconds=60):
        """Wait until the first point has been at (x, y) for six frames: it may overrun the hand a little before."""
        return self.wait("stage.kept.slice(-6).every((f) => f.marks.length && "
                         f"Math.hypot(f.marks[0].x - {x}, f.marks[0].y - {y}) < 0.005)", seconds)

    def expect(self, shown):
        """Playwright's `expect` of a part of the page (a selector or a locator), which waits until the page says so."""
        from playwright.sync_api import expect
        expect.set_options(timeout=60_000)
        return expect(self.page.locator(shown) if isinstance(shown, str) else shown)

    def listen(self):
        """From now on keep what the picture says, however soon something else is said: for `said`."""
        self.ask("""(() => {
            const hint = document.querySelector('.msk-host').shadowRoot.querySelector('.hint');
            window.heard = [];
            new MutationObserver(() => window.heard.push(hint.textContent)).observe(hint, { childList: true }); })()""")
        return self

    def said(self, text, seconds=60):
        return self.wait(f"window.heard.some((text) => text.includes({text!r}))", seconds)

    def state(self, name, seconds=60):
        return self.wait(f"stage.state === '{name}'", seconds)

    def steady(self):
        """Wait until the page around the picture has stopped moving: fonts and panels that come late push it about."""
        top, seen = self.page.locator(".msk-host .top"), []
        for _ in range(300):
            seen.append(tuple(top.bounding_box().values()))
            if len(seen) >= 6 and len(set(seen[-6:])) == 1:
                return self
            self.page.wait_for_timeout(100)
        raise AssertionError(f"the page has not come to rest in 30 s: {seen[-6:]}")

    def at(self, x, y):
        """Shares of the picture -> where that is on the page."""
        box = self.page.locator(".msk-host .top").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def press(self, x, y):
        self.steady().page.mouse.move(*self.at(x, y))
        self.page.mouse.down()

    def click(self, x, y):
        self.press(x, y)
        self.page.mouse.up()

    def drag(self, start, end, steps=40, pause=25, let_go=True):
        """A real pointer: down, along a line in steps * pause milliseconds, up."""
        self.press(*start)
        for i in range(1, steps + 1):
            share = i / steps
            self.page.mouse.move(*self.at(start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share))
            self.page.wait_for_timeout(pause)
        if let_go:
            self.page.mouse.up()

    def frames(self, last=240):
        """The frames this page received, newest last: (index, marks, pixels [H, W, 3] uint8)."""
        got = self.ask("Promise.all(stage.kept.filter((f) => !f.still).slice(-given).map(async (f) => ({ index: f.index, "
                       "marks: f.marks, jpeg: btoa(String.fromCharCode(...new Uint8Array(await f.blob.arrayBuffer()))) "
                       "})))", last)
        return [(f["index"], f["marks"], np.asarray(Image.open(io.BytesIO(base64.b64decode(f["jpeg"]))))) for f in got]
