"""The stage without a WebSocket: one long answer and posts do the same, for the same pages only, and within bounds."""
import asyncio
import io
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from msk.live import protocol
from msk.live.post import MAX_POST, MAX_WAITING, PostLine, unwrap, wrap
from msk.live.protocol import ProtocolError, Sample
from tests.pages import exact
from tests.pages.browser import Stage, open_browser
from tests.pages.serve import free_port, serve
from tests.test_canvas_browser import BALL, ball
from tests.test_live import is_frame, is_state, is_type, knock, served, until, wait_for  # noqa: F401  served: a fixture

W = exact.GEOMETRY.width


def proof(lobby, **change):
    """The headers of a page of ours, or nearly."""
    headers = {"origin": f"http://{lobby.address}", "x-msk-token": lobby.tokens.issue()} | change
    return {name: value for name, value in headers.items() if value is not None}


class Line:
    """A page's side of a PostLine, with the two methods that `wait_for` uses of a WebSocket."""

    def __init__(self, http, answer, lobby):
        self.http, self.lobby, self.pieces, self.held = http, lobby, answer.aiter_raw(), b""
        self.key = answer.headers["x-msk-line"]

    async def recv(self):
        while True:
            if len(self.held) >= 5 and len(self.held) >= (end := 5 + int.from_bytes(self.held[1:5], "little")):
                data, self.held = self.held[:end], self.held[end:]
                return unwrap(data)[0]
            self.held += await anext(self.pieces)

    async def post(self, data, **change):
        return await self.http.post(f"/msk/in/{self.key}", content=data, headers=proof(self.lobby, **change))

    async def send(self, data):
        assert (await self.post(wrap(data))).status_code == 204


@asynccontextmanager
async def call(lobby, resume="", **change):
    import httpx
    async with httpx.AsyncClient(base_url=f"http://{lobby.address}", trust_env=False, timeout=20) as http:
        where = "/msk/stream" + (f"?resume={resume}" if resume else "")
        async with http.stream("POST", where, headers=proof(lobby, **change)) as answer:
            yield Line(http, answer, lobby) if answer.status_code == 200 else answer


def words(*messages):
    return b"".join(wrap(json.dumps(m)) for m in messages)


def test_what_is_wrapped_is_unwrapped_and_nothing_else():
    messages = ["", "drag \u00e9", b"", b"\x01\x02", "x" * 70000]
    assert unwrap(b"".join(map(wrap, messages))) == messages and unwrap(b"") == []
    for bad in (b"\x00", wrap("abc")[:-1], b"\x02" + wrap("a")[1:], wrap("a") + b"\x00\x00", b"\x00\xff\xff\xff\xff"):
        with pytest.raises(ProtocolError, match="cut off or no row of messages"):
            unwrap(bad)


def test_a_page_without_a_websocket_drags_the_ball(served):  # noqa: F811
    async def client():
        async with call(served) as line:
            assert (await wait_for(line, is_type("hello")))["model"] == "exact"
            await wait_for(line, is_state("ready"))
            start = [{"type": "add", "id": 1, "kind": "live", "x": exact.BALL_AT[0] / W, "y": 0.5, "t": 0},
                     {"type": "start"}, {"type": "grab", "ids": [1], "t": 1}, {"type": "fly"}]
            sample = wrap(protocol.write_samples([Sample(2.0, 1, 0.6, 0.7)]))
            assert (await line.post(words(*start) + sample)).status_code == 204             # heard in their order
            assert "fly" in (await wait_for(line, is_type("error")))["message"]
            frame = await wait_for(line, lambda m: is_frame(m) and m["marks"] and abs(m["marks"][0].x - 0.6) < 0.004)
            x, y = exact.red_centre(np.asarray(Image.open(io.BytesIO(frame["jpeg"]))))
            assert frame["echo"] == 2.0 and abs(x - 0.6 * W) < 1.5 and abs(y - 0.7 * W) < 1.5
            await line.post(b"")                                                            # good-bye
            with pytest.raises(StopAsyncIteration):
                while True:
                    await line.recv()
    asyncio.run(client())
    until(lambda: served.player is None and not served._lines)


WRONG = [{"x-msk-token": None}, {"x-msk-token": "forged"}, {"origin": "http://evil.example"}, {"origin": None},
         {"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"host": "rebound.example", "origin": "http://rebound.example"}]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_page_that_is_not_ours_gets_no_line_and_may_post_on_none(served, wrong):  # noqa: F811
    async def client():
        async with call(served, **wrong) as answer:
            assert answer.status_code == 403 and served.player is None
        async with call(served) as line:
            await wait_for(line, is_state("ready"))
            assert (await line.post(words({"type": "start"}), **wrong)).status_code == 403
            assert served.player.session.state == "ready"
    asyncio.run(client())


def test_posts_are_bounded_and_a_bad_one_ends_nothing(served):  # noqa: F811
    async def client():
        async with call(served) as line:
            await wait_for(line, is_state("ready"))
            pings = words(*[{"type": "ping", "t": 0}] * (MAX_WAITING + 1))
            tries = {413: bytes(MAX_POST + 1), 400: b"\x07" + bytes(9), 429: pings}
            assert len(pings) < MAX_POST
            for code, data in tries.items():
                answer = await line.post(data)
                assert answer.status_code == code and 10 < len(answer.text) < 200
            assert (await line.http.post("/msk/in/guess", content=b"", headers=proof(served))).status_code == 404
            await line.send("x" * (protocol.MAX_TEXT + 1))
            assert "at most" in (await wait_for(line, is_type("error")))["message"]
            await line.send(json.dumps({"type": "start"}))
            await wait_for(line, is_frame)
    asyncio.run(client())


def test_a_session_is_found_again_on_the_other_way(served):  # noqa: F811
    async def clients():
        async with call(served) as line:
            hello = await wait_for(line, is_type("hello"))
            await wait_for(line, is_state("ready"))
            await line.send(json.dumps({"type": "add", "id": 4, "kind": "live", "x": 0.3, "y": 0.5, "t": 0}))
            await line.send(json.dumps({"type": "start"}))
            await wait_for(line, is_frame)
            async with call(served) as second:
                assert (await wait_for(second, is_type("queue")))["place"] == 1
        until_gone = asyncio.get_running_loop().time() + 20                                 # without a good-bye
        while served._orphan is None:
            assert asyncio.get_running_loop().time() < until_gone
            await asyncio.sleep(0.02)
        async with knock(served, resume=hello["session"]) as socket:
            assert (await wait_for(socket, is_type("hello")))["session"] == hello["session"]
            assert [p["id"] for p in (await wait_for(socket, is_type("state")))["points"]] == [4]
    asyncio.run(clients())


def test_a_page_that_is_back_before_its_lost_link_was_missed_plays_on(served):  # noqa: F811
    async def clients():
        async with call(served) as line, call(served, resume="n\u00f6") as other:
            hello = await wait_for(line, is_type("hello"))
            await wait_for(line, is_state("ready"))
            await wait_for(other, is_type("queue"))
            await line.send(json.dumps({"type": "start"}))
            before = await wait_for(line, is_frame)
            async with call(served, resume=hello["session"]) as back:
                assert (await wait_for(back, is_type("hello")))["session"] == hello["session"]
                after = await wait_for(back, lambda m: is_frame(m) and m["index"] > before["index"])
                await line.post(b"")                            # the old line's end changes nothing
                await wait_for(back, lambda m: is_frame(m) and m["index"] > after["index"] + 12)
    asyncio.run(clients())


def test_a_page_that_falls_silent_has_gone_and_a_line_ends_once():
    async def line():
        silent = PostLine(silence=0.05)
        assert await silent.receive() == {"type": "websocket.disconnect", "code": 1006}
        for _ in range(4):
            await silent.send_bytes(b"frame")                   # nobody takes them
        silent.end(1000)
        silent.end(1006)
        assert (await silent.receive())["code"] == 1000
        return [piece async for piece in silent.down()]
    assert asyncio.run(line()) == [wrap(b"frame")] * 3          # what would have hindered the end is left out


@pytest.mark.parametrize("proxy", ["closes", "says nothing"])
def test_where_a_proxy_bars_websockets_the_page_streams_over_http(tmp_path, proxy):
    pytest.importorskip("gradio")
    server, lobby, url = serve("exact", free_port(), folder=tmp_path)
    try:
        with open_browser() as browser:
            def bar(page):
                page.route_web_socket("**/msk/ws*", lambda socket: socket.close() if proxy == "closes" else None)
            stage = Stage(browser, url, before=bar).state("ready").wait("stage.current")
            assert stage.ask("stage.host.way") == "http"
            stage.expect(".msk-host .way").to_have_text("http")
            stage.drag(BALL, (0.7, 0.65), let_go=False)
            stage.rests_at(0.7, 0.65)
            stage.page.mouse.up()
            np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.7, 0.65), atol=0.02)
            stage.wait("stage.latencies.length > 10")
            session = stage.ask("stage.hello.session")
            stage.ask("stage.host.drop()")
            stage.state("lost").state("playing")                # and finds its session again, by the same way
            assert stage.ask("stage.hello.session") == session and stage.ask("stage.host.way") == "http"
            stage.page.reload()                                 # says good-bye: the stage is free at once
            stage.state("ready")
            stage.page.close()
            assert stage.complaints == [] and stage.strangers == []
    finally:
        lobby.close()
        server.close(verbose=False)


def test_a_page_that_gets_a_websocket_uses_it(tmp_path):
    pytest.importorskip("gradio")
    server, lobby, url = serve("exact", free_port(), folder=tmp_path)
    try:
        with open_browser() as browser:
            stage = Stage(browser, url).state("ready").wait("stage.current")
            assert stage.ask("stage.host.way") == "ws" and not lobby._lines
            stage.page.close()
    finally:
        lobby.close()
        server.close(verbose=False)
