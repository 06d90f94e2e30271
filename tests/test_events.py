"""The stage where only Gradio's own routes are let through: the same line, for the same pages only, and within bounds."""
import asyncio
import base64
import io
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from msk.live import events, post, protocol
from msk.live.post import HELD, MAX_POST, MAX_WAITING, PostLine, wrap
from msk.live.protocol import Sample
from tests.pages import exact
from tests.pages.browser import Stage, open_browser
from tests.pages.serve import free_port, serve
from tests.test_canvas_browser import BALL, ball
from tests.test_live import is_frame, is_state, is_type, until, wait_for
from tests.test_post import WRONG, Line, proof, words

W = exact.GEOMETRY.width


@pytest.fixture(scope="module")
def canvas(tmp_path_factory):
    pytest.importorskip("gradio")
    page, lobby, url = serve("exact", free_port(), folder=tmp_path_factory.mktemp("takes"))
    lobby.address, lobby.grace = url.removeprefix("http://").rstrip("/"), 1.0
    yield lobby
    lobby.close()
    page.close(verbose=False)


class Events(Line):
    """The same line through Gradio; it takes what comes and, unless `told`, does not say so."""
    told = True

    def __init__(self, http, answer, lobby):
        self.http, self.lobby, self.held, self.took = http, lobby, b"", -1
        self.pieces, self.refused = self.listen(answer), ""

    async def listen(self, answer):
        event = ""
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            event = value if name == "event" else event
            if name == "data" and event == "generating":
                self.took += 1
                yield base64.b64decode(json.loads(value)[0]) if self.took else json.loads(value)[0]
            elif name == "data" and event == "error":
                self.refused = json.loads(value)["error"]

    async def ask(self, name, *data, **change):
        headers = proof(self.lobby, **change)
        data = [headers.pop("x-msk-token", ""), *data]
        return await self.http.post(f"/gradio_api/run/msk_{name}", content=json.dumps({"data": data}),
                                    headers=headers | {"content-type": "application/json"})

    async def post(self, data, key=None, **change):
        data = base64.b64encode(data).decode() if isinstance(data, bytes) else data
        answer = await self.ask("post", key or self.key, data, self.took if self.told else 0, **change)
        assert answer.status_code == 200
        return answer.json()["data"]

    async def send(self, data):
        assert await self.post(wrap(data)) == [204, ""]


@asynccontextmanager
async def call(lobby, resume="", **change):
    import httpx
    async with httpx.AsyncClient(base_url=f"http://{lobby.address}", trust_env=False, timeout=60) as http:
        headers, where = proof(lobby, **change), "/gradio_api/call/msk_stream"
        answer = await http.post(where, json={"data": [headers.pop("x-msk-token", ""), resume]}, headers=headers)
        async with http.stream("GET", f"{where}/{answer.json()['event_id']}") as answer:
            line = Events(http, answer, lobby)
            line.key = await anext(line.pieces, None)
            yield line


def test_a_page_drags_the_ball_by_gradios_events_and_says_good_bye(canvas):
    async def client():
        async with call(canvas) as line:
            assert (await wait_for(line, is_type("hello")))["model"] == "exact"
            await wait_for(line, is_state("ready"))
            start = [{"type": "add", "id": 1, "kind": "live", "x": exact.BALL_AT[0] / W, "y": 0.5, "t": 0},
                     {"type": "start"}, {"type": "grab", "ids": [1], "t": 1}]
            sample = wrap(protocol.write_samples([Sample(2.0, 1, 0.6, 0.7)]))
            assert await line.post(words(*start) + sample) == [204, ""]
            frame = await wait_for(line, lambda m: is_frame(m) and m["marks"] and abs(m["marks"][0].x - 0.6) < 0.004, 60)
            x, y = exact.red_centre(np.asarray(Image.open(io.BytesIO(frame["jpeg"]))))
            assert abs(x - 0.6 * W) < 1.5 and abs(y - 0.7 * W) < 1.5
            await line.post(b"")
            with pytest.raises(StopAsyncIteration):
                while True:
                    await line.recv()
    asyncio.run(client())
    until(lambda: canvas.player is None and not canvas._lines)


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_page_that_is_not_ours_gets_no_line_by_events_either(canvas, wrong):
    async def client():
        async with call(canvas, **wrong) as line:
            assert line.key is None and len(line.refused) > 10 and canvas.player is None
        async with call(canvas) as line:
            hello = await wait_for(line, is_type("hello"))
            await wait_for(line, is_state("ready"))
            assert (await line.post(words({"type": "start"}), **wrong))[0] == 403
            assert (await line.ask("bring", hello["session"], "", **wrong)).json()["data"][0] == 403
            assert canvas.player.session.state == "ready"
            await line.post(b"")
    asyncio.run(client())
    until(lambda: canvas.player is None)


def test_calls_are_bounded_and_a_bad_one_ends_nothing(canvas, monkeypatch):
    async def client():
        async with call(canvas) as line:
            await wait_for(line, is_state("ready"))
            pings = words(*[{"type": "ping", "t": 0}] * (MAX_WAITING + 1))
            for code, data in {413: bytes(MAX_POST + 9), 400: b"\x07" + bytes(9), 429: pings}.items():
                said = await line.post(data)
                assert said[0] == code and 10 < len(said[1]) < 200
            assert [(await line.post(data))[0] for data in ("no base64!", 7, None, ["x"])] == [400] * 4
            assert (await line.post(b"", key="guess"))[0] == 404
            assert (await line.ask("bring", "\ud800", "")).json()["data"][0] == 403
            monkeypatch.setattr(events, "MAX_LINES", 1)
            async with call(canvas) as second:
                assert second.key is None and "come back later" in second.refused
            await line.send(json.dumps({"type": "start"}))
            await wait_for(line, is_frame)
            await line.post(b"")
    asyncio.run(client())
    until(lambda: canvas.player is None)


def test_gradio_is_given_no_more_than_the_page_has_room_for(monkeypatch):
    monkeypatch.setattr(post, "BEAT", 0.5)

    async def line():
        line = PostLine(events=True)

        async def play():
            while True:
                await line.send_bytes(b"frame")
        playing, pieces = asyncio.create_task(play()), line.down()

        async def given():
            count = 0
            while await anext(pieces):                          # an empty one: there is nothing it may give
                count += 1
            return count
        assert await given() == HELD
        line.took(10 ** 9)                                      # it cannot have taken more than there was
        assert await given() == HELD
        line.end(1000)
        assert [piece async for piece in pieces] == [wrap(b"frame")] * 3
        playing.cancel()
    asyncio.run(line())


def test_a_page_that_has_gone_without_a_word_is_missed(canvas, monkeypatch):
    monkeypatch.setattr(post, "BEAT", 0.2)

    async def client():
        async with call(canvas) as line:
            await wait_for(line, is_state("ready"))
    asyncio.run(client())
    until(lambda: canvas.player is None and canvas._orphan is None and not canvas._lines, 60)


@pytest.mark.parametrize("proxy", ["bars", "says nothing"])
def test_where_only_gradios_routes_are_let_through_the_page_streams_by_its_events(tmp_path, proxy):
    pytest.importorskip("gradio")
    server, lobby, url = serve("exact", free_port(), folder=tmp_path, auth=("me", "secret"))
    try:
        with open_browser() as browser:
            def bar(page):
                page.route_web_socket("**/msk/ws*", lambda socket: socket.close() if proxy == "bars" else None)
                page.route("**/msk/**", lambda route: route.fulfill(status=404) if proxy == "bars" else None)
            stage = Stage(browser, url, before=bar)
            stage.page.get_by_label("username").fill("me")
            stage.page.get_by_label("password").fill("secret")
            stage.page.get_by_role("button", name="Login").click()
            stage.state("ready").wait("stage.current").expect(".msk-host .way").to_have_text("events")
            stage.drag(BALL, (0.7, 0.65), let_go=False)
            stage.rests_at(0.7, 0.65)
            stage.page.mouse.up()
            np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.7, 0.65), atol=0.02)
            stage.wait("stage.latencies.length > 10")
            stage.page.keyboard.press("Enter")
            stage.state("ended").page.locator(".msk-host .what").select_option("session")
            with stage.page.expect_download() as download:
                stage.page.locator(".msk-host [data-do=file]").click()
            download.value.save_as(tmp_path / "session.json")
            with stage.page.expect_file_chooser() as chooser:
                stage.page.locator(".msk-host [data-do=bring]").click()
            chooser.value.set_files(tmp_path / "session.json")
            stage.state("ready")
            session = stage.ask("stage.hello.session")
            stage.page.keyboard.press("Enter")
            stage.state("playing").ask("stage.host.drop()")
            stage.state("lost").state("playing", 120)           # and finds its session again, by the same way
            assert stage.ask("stage.hello.session") == session and stage.ask("stage.host.way") == "events"
            stage.page.reload()                                 # says good-bye: the stage is free at once
            stage.state("ready")
            stage.page.close()
            assert [c for c in stage.complaints if "/msk/" not in c and "/login" not in c] == [] and stage.strangers == []
    finally:
        lobby.close()
        server.close(verbose=False)


def test_no_one_without_a_login_gets_to_the_events(tmp_path):
    httpx = pytest.importorskip("httpx")
    server, lobby, url = serve("exact", free_port(), folder=tmp_path, auth=("me", "secret"))
    lobby.address = url.removeprefix("http://").rstrip("/")
    try:
        with httpx.Client(base_url=url, trust_env=False, headers=proof(lobby)) as http:
            for where in ("call/msk_stream", "call/msk_stream/guess", "run/msk_post", "run/msk_bring"):
                answer = (http.get if where.endswith("guess") else http.post)(f"gradio_api/{where}")
                assert answer.status_code == 401, where
    finally:
        lobby.close()
        server.close(verbose=False)
