"""The running page on bad days: odd pictures, thin lines, strangers, people who walk off, a server that dies, a slow hub."""
import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages.browser import Stage
from tests.pages.serve import free_port, serve
from tests.test_canvas_browser import BALL, ball
from tests.test_live import until as until_soon

ROOT = Path(__file__).parent.parent


# -- pictures ----------------------------------------------------------------------------------------------------------

PIXEL = """stage.pixels().then(({ width, height, data }) => {
    const at = 4 * (Math.floor(given[1] * height) * width + Math.floor(given[0] * width));
    return [...data.slice(at, at + 3)]; })"""


def twenty_megabytes(path):
    """Noise above, red below: nothing that a PNG could make smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (2600, 2600, 3), dtype=np.uint8)
    pixels[1400:] = 200, 20, 20
    pixels[1400:1404] = np.random.default_rng(1).integers(0, 256, (4, 2600, 3), dtype=np.uint8)
    pixels = np.concatenate([pixels, np.random.default_rng(2).integers(0, 256, (1300, 2600, 3), dtype=np.uint8)])
    Image.fromarray(pixels).save(path, compress_level=1)
    assert 19e6 < path.stat().st_size < 25e6


def one_pixel(path):
    Image.new("RGB", (1, 1), (20, 60, 220)).save(path)


def sideways_and_clear(path):
    """The camera was held sideways: what is above belongs to the right; what is below is transparent."""
    image, exif = Image.new("RGBA", (60, 60), (0, 0, 0, 0)), Image.Exif()
    image.paste((220, 30, 30, 255), (0, 0, 60, 30))
    exif[0x0112] = 6
    image.save(path, exif=exif)


@pytest.mark.parametrize("make, places", [
    (twenty_megabytes, {(0.5, 0.5): (200, 20, 20)}), (one_pixel, {(0.1, 0.1): (20, 60, 220), (0.9, 0.9): (20, 60, 220)}),
    (sideways_and_clear, {(0.85, 0.5): (220, 30, 30), (0.15, 0.5): (255, 255, 255)})])
def test_odd_pictures_are_shown_as_they_are_meant_and_played(stage, tmp_path, make, places):
    make(tmp_path / "mine.png")
    stills = stage.ask("stage.kept.filter((f) => f.still).length")
    stage.page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.png")
    stage.wait(f"stage.kept.filter((f) => f.still).length > {stills} && stage.current === stage.kept.at(-1)").state("ready")
    for (x, y), colour in places.items():
        seen = stage.ask(PIXEL, [x, y])
        np.testing.assert_allclose(seen, colour, atol=12)
    stage.drag((0.5, 0.5), (0.6, 0.5), steps=8)
    stage.wait("stage.current.index > 6 && stage.current.marks.length === 1")


def test_a_picture_beyond_all_bounds_is_refused_and_the_stage_plays_on(stage, tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    stage.page.keyboard.press("Enter")
    stage.wait("stage.current.index > 3")
    stage.page.locator("input[type=file]").first.set_input_files(tmp_path / "huge.png")
    stage.page.get_by_text("9000 x 9000 pixels").first.wait_for()
    now = stage.ask("stage.current.index")
    stage.wait(f"stage.current.index > {now + 12}")


# -- strangers and noise -----------------------------------------------------------------------------------------------

KNOCK = """async ([url, token]) => {
    const socket = new WebSocket(url.replace("http", "ws") + "msk/ws", ["msk.v2", ...(token ? ["token." + token] : [])]);
    const met = await new Promise((done) => { socket.onopen = () => done("open"); socket.onclose = () => done("closed"); });
    const post = await fetch(url + "msk/stream", { method: "POST", headers: token ? { "x-msk-token": token } : {} })
        .then(({ status }) => status, () => "refused");
    return [met, post]; }"""


def test_another_site_s_page_gets_nothing_though_it_has_a_token_and_a_page_of_ours_nothing_without(browser, canvas):
    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, *_):
            pass

    lobby, url = canvas
    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{site.server_port}/")
        assert page.evaluate(KNOCK, [url, lobby.tokens.issue()]) in (["closed", "refused"], ["closed", 403])
        page.goto(url + "msk/file/none")                            # a page of this origin, which was served no token
        assert page.evaluate(KNOCK, [url, ""]) == ["closed", 403]
        assert page.evaluate(KNOCK, [url, "forged"]) == ["closed", 403]
        assert lobby.player is None and not lobby._lines
    finally:
        page.close()
        site.shutdown()


def test_what_is_far_too_large_or_makes_no_sense_gets_a_sentence_and_the_stream_goes_on(stage):
    stage.page.keyboard.press("Enter")
    stage.wait("stage.current.index > 3")
    for wrong in ("'x'.repeat(3e6)", "new ArrayBuffer(3e6)", "'['.repeat(9000)", "new Uint8Array(200).fill(1).buffer",
                  "JSON.stringify({ type: 'path', id: 1, nodes: Array(999).fill([0, 0, 0]), loop: 'once', speed: 1, t: 0 })",
                  "JSON.stringify({ type: 'add', id: 1e9, kind: 'live', x: null, y: 'a', t: 0 })"):
        before = stage.ask("stage.stats.errors.length")
        stage.ask(f"stage.host.send({wrong}) && 0")
        stage.wait(f"stage.stats.errors.length > {before}")
    assert max(stage.ask("stage.stats.errors.map((text) => text.length)")) < 400
    now = stage.ask("stage.current.index")
    stage.wait(f"stage.current.index > {now + 12} && stage.state === 'playing'")


# -- lines -------------------------------------------------------------------------------------------------------------

class ThinLine:
    """All bytes between page and server go through here; those to the page at `rate` bytes a second, if it is set."""

    def __init__(self, port: int):
        self.port, self.rate, self.carried, self.began = port, None, 0, threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        assert self.began.wait(10)

    async def _run(self):
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0, limit=4096)
        self.here, self._over = server.sockets[0].getsockname()[1], asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.began.set()
        await self._over.wait()

    async def _meet(self, reader, writer):
        import socket
        pipe = socket.socket()
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)          # the queue of a modem, not of a data centre
        pipe.setblocking(False)
        await self._loop.sock_connect(pipe, ("127.0.0.1", self.port))
        from_server, to_server = await asyncio.open_connection(sock=pipe, limit=4096)
        await asyncio.gather(self._carry(reader, to_server, False), self._carry(from_server, writer, True))

    async def _carry(self, reader, writer, thin):
        try:
            while data := await reader.read(2048 if thin and self.rate else 65536):
                if thin and self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                self.carried += len(data) * thin
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def close(self):
        self._loop.call_soon_threadsafe(self._over.set)


def test_on_a_thin_line_the_quality_falls_and_the_latency_does_not_grow(browser, canvas):
    line = ThinLine(int(canvas[1].rstrip("/").rpartition(":")[2]))
    try:
        stage = Stage(browser, f"http://127.0.0.1:{line.here}/").state("ready").wait("stage.current")
        stage.press(*BALL)
        qualities = []

        def stir(seconds):
            """The hand goes round for so long, and until more than ten latencies are known: those."""
            stage.ask("stage.latencies.length = 0")
            qualities.clear()
            began, turn, known = time.monotonic(), 0.0, 0
            while (past := time.monotonic() - began) < seconds or known <= 10:
                assert past < seconds + 60, "no frame knows of the hand"
                turn += 0.15
                stage.page.mouse.move(*stage.at(0.5 + 0.2 * np.sin(turn), 0.5 + 0.2 * np.cos(turn)))
                stage.page.wait_for_timeout(30)
                quality, known = stage.ask("[stage.current.quality, stage.latencies.length]")
                qualities.append(quality)
            return stage.ask("stage.latencies.slice()")
        stir(3)
        stage.wait("stage.current.quality === 95")                  # a page that has just opened may pause for breath
        line.carried, began = 0, time.monotonic()
        free = np.median(stir(4))
        line.rate = line.carried / (time.monotonic() - began) / 4   # bytes a second: a quarter of what it takes
        stir(8)
        early = np.median(stir(5))
        seen, late = min(qualities), np.median(stir(5))
        assert min(seen, *qualities) < 95                           # it goes up again whenever there is room
        assert late < free + 3000                                   # ms; without bounds it would be 10,000 more
        assert late < early + 1000 + free
        line.rate = None
        stir(2)
        stage.wait("stage.current.quality === 95")                  # and it comes back
        stage.page.mouse.up()
        stage.page.close()
        assert stage.complaints == []
    finally:
        line.close()


def test_who_touches_nothing_gives_way_and_finds_what_they_made(browser, canvas):
    lobby, url = canvas
    one = Stage(browser, url).state("ready").wait("stage.current")
    one.drag(BALL, (0.7, 0.5))
    one.wait("stage.current.index > 12")
    lobby.turn = 8.0
    other = Stage(browser, url).state("queue")
    try:
        other.expect(".veil").to_contain_text("or touch nothing for 8 seconds")
        one.expect(".hint").to_contain_text("others wait for the stage")
        one.state("queue")
        lobby.turn = 120.0                                          # who plays now is not hurried
        one.expect(".veil").to_contain_text("the stage went to the next")
        one.expect(".veil").to_contain_text("number 1 in line")
        other.state("ready").wait("stage.current")
        other.page.close()
        one.state("ready").wait("stage.points.size === 0")          # a stage of one's own again, as all begin
        one.page.get_by_role("button", name="Last session").click()
        one.state("ready").wait("stage.points.size === 1")
        one.page.close()
        assert one.complaints == other.complaints == []
    finally:
        lobby.turn = 120.0


# -- a server that dies ------------------------------------------------------------------------------------------------

class Server:
    """The canvas in a process of its own, its takes in `folder`/recordings."""

    def __init__(self, folder: Path, port: int):
        self.url, self._options = f"http://127.0.0.1:{port}/", dict(
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._command = [sys.executable, "-m", "tests.pages.serve", "exact", str(port)]

    def begin(self):
        self.process = subprocess.Popen(self._command, **self._options)
        until_soon(self._answers, seconds=180)
        return self

    def _answers(self):
        assert self.process.poll() is None
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=5):
                return True
        except OSError:
            return False

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_a_session_outlives_its_server_and_goes_on_where_it_stood(browser, tmp_path):
    server = Server(tmp_path, free_port()).begin()
    try:
        stage = Stage(browser, server.url).state("ready").wait("stage.current")
        stage.drag(BALL, (0.7, 0.65))
        stage.rests_at(0.7, 0.65)
        made = stage.ask("stage.current.index")
        server.kill()                                               # in mid-stream, without a word
        stage.state("lost")
        server.begin()
        assert list((tmp_path / "recordings").glob("*.mp4"))        # what was cut off is whole again
        stage.page.reload()
        stage.state("ready").page.get_by_role("button", name="Last session").click()
        stage.state("ready").wait("stage.points.size === 1")
        button = stage.page.get_by_role("button", name="To its end")
        button.click()
        stage.state("paused").wait(f"stage.current.index >= {made - 12}")
        stage.expect(button).to_be_hidden()
        np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.7, 0.65), atol=0.02)
        stage.page.keyboard.press(" ")
        stage.drag((0.7, 0.65), (0.4, 0.4))
        stage.rests_at(0.4, 0.4)
        np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.4, 0.4), atol=0.02)
        stage.page.close()
    finally:
        server.kill()


# -- a slow hub --------------------------------------------------------------------------------------------------------

@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, someone/moves, which holds a toy kit and gives it out slowly."""
    from huggingface_hub import constants

    import msk
    kit, commit, go = msk.Kit.random("toy").save(tmp_path / "kit"), "c" * 40, threading.Event()
    for small in ("cutter", "finish", "plate"):         # so that a large one comes first, and is half there for long
        (kit / f"{small}.safetensors").unlink()
    files = {path.relative_to(kit).as_posix(): path.read_bytes() for path in sorted(Path(kit).rglob("*")) if path.is_file()}

    def about(name, data):
        large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
        return {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest(),
                **(large if name.endswith(".safetensors") else {})}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            if self.path.startswith("/api/models/someone/moves/tree/"):
                tree = [{"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"],
                         **({"lfs": one["lfs"] | {"oid": one["lfs"]["sha256"]}} if "lfs" in one else {})}
                        for one in (about(*file) for file in files.items())]
                return self._give(json.dumps(tree).encode(), "application/json", body)
            if self.path.startswith("/api/models/someone/moves"):
                told = json.dumps({"id": "someone/moves", "sha": commit, "siblings": [about(*one) for one in files.items()]})
                return self._give(told.encode(), "application/json", body)
            name = self.path.partition(f"/resolve/{commit}/")[2].partition("?")[0]
            if name not in files:
                return self.send_error(404)
            self._give(files[name], "application/octet-stream", body, about(name, files[name]))

        def do_HEAD(self):
            self.do_GET(body=False)

        def _give(self, data, kind, body, file=None):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if file:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{file["lfs"]["sha256"] if "lfs" in file else file["blobId"]}"')
            self.end_headers()
            half = len(data) // 2 if body and file and "lfs" in file else 0
            if half:
                self.wfile.write(data[:half])
                self.wfile.flush()
                assert go.wait(60)
            if body:
                self.wfile.write(data[half:])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    yield go
    go.set()
    server.shutdown()


def test_a_download_is_seen_to_come_and_then_plays(browser, tmp_path, hub):
    page, lobby, url = serve("exact", free_port(), folder=tmp_path / "takes", models=["exact", "someone/moves"])
    try:
        stage = Stage(browser, url).state("ready").wait("stage.current")
        stage.page.keyboard.press("Enter")
        stage.page.locator(".msk-host .models select").select_option("someone/moves")
        stage.page.get_by_role("button", name="Load").click()
        stage.expect(".msk-host .told").to_contain_text(re.compile(r"downloading someone/moves: 0\.\d of 0\.\d MB"))
        bar = "document.querySelector('.msk-host').shadowRoot.querySelector('progress')"
        stage.wait(f"{bar}.value > 0.2 && {bar}.value < 0.8")       # half of its weights are here, and that stays so
        now = stage.ask("stage.current.index")
        stage.wait(f"stage.current.index > {now + 12}")             # while the old model plays on
        hub.set()
        stage.wait("stage.hello.model !== 'exact' && stage.state === 'ready' && stage.current.still")
        stage.page.keyboard.press("Enter")
        stage.wait("stage.current.index > 3")
        stage.page.close()
        assert stage.complaints == []
    finally:
        lobby.close()
        page.close(verbose=False)
