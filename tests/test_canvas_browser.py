"""The running page in a real browser, with real pointer events: what is dragged goes where it is dragged."""
import io
import json
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msk.cutter import cut
from msk.live.server import Lobby
from tests.pages import exact
from tests.pages.browser import Stage
from tests.pages.serve import free_port, serve
from tests.test_live import until as until_soon

W = exact.GEOMETRY.width
BALL = exact.BALL_AT[0] / W, exact.BALL_AT[1] / W


def until(true):
    until_soon(true, seconds=60)


def ball(frame):
    return np.array(exact.red_centre(frame)) / W


def test_the_thing_under_the_pointer_goes_where_it_is_dragged(stage):
    stage.drag(BALL, (0.7, 0.65), let_go=False)
    stage.rests_at(0.7, 0.65)
    stage.page.mouse.up()
    frames = stage.frames()
    where = np.array([ball(pixels) for _, _, pixels in frames])
    np.testing.assert_allclose(where[-1], (0.7, 0.65), atol=0.02)                   # it got there
    asked = np.array([(marks[0]["x"], marks[0]["y"]) for _, marks, _ in frames])
    np.testing.assert_allclose(where, asked, atol=0.02)                             # and was always where it was asked to be
    index = np.array([i for i, _, _ in frames])
    step = np.linalg.norm(np.diff(asked, axis=0), axis=1) / np.diff(index)          # a busy machine may drop a frame
    assert np.diff(index).min() >= 1 and step.max() <= 0.0401                       # without a jump
    way = np.array((0.7, 0.65)) - BALL
    along, aside = (where - BALL) @ way / (way @ way), (where - BALL) @ (-way[1], way[0]) / np.linalg.norm(way)
    assert np.abs(aside).max() < 0.02 and along.max() < 1.2         # straight there, beyond only by the hand's own foresight


def test_a_hand_drags_out_of_the_picture_and_takes_hold_at_its_edge(stage):
    stage.drag(BALL, (1.2, 0.5))
    stage.wait("Math.abs(stage.points.get(1).x - 1.2) < 0.01 && stage.current.index > 24 && stage.current.marks[0].x > 1.19")
    stage.drag((0.995, 0.5), (0.7, 0.5))                                # its mark waits where it left
    stage.rests_at(0.7, 0.5)
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.7, 0.5), atol=0.02)


def test_a_point_dragged_in_mid_stream_and_a_pin_that_stays(stage):
    stage.page.keyboard.down("Shift")
    stage.click(*BALL)
    stage.page.keyboard.up("Shift")
    stage.wait("stage.points.size === 1")
    stage.page.keyboard.press("Enter")
    stage.wait("stage.current.index > 10")
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), BALL, atol=0.02)
    stage.drag((0.8, 0.2), (0.6, 0.3))                                              # something else, while it plays
    stage.wait("stage.current.marks.length === 2 && Math.abs(stage.current.marks[1].x - 0.6) < 0.02")
    _, marks, pixels = stage.frames(1)[0]
    np.testing.assert_allclose(ball(pixels), BALL, atol=0.02)
    assert [m["kind"] for m in marks] == ["pin", "live"]


def all_shown(stage, lobby):
    """What was on its way has come."""
    until(lambda: not lobby.player.frames and stage.ask("stage.current.seq") == lobby.player.link.seq)


def test_keys_and_buttons(stage, canvas):
    keys = stage.page.keyboard
    keys.press("Enter")
    stage.state("playing").wait("stage.current.index > 3")
    keys.press(" ")
    all_shown(stage.state("paused"), canvas[0])
    held = stage.ask("stage.current.index")
    stage.page.wait_for_timeout(400)
    assert stage.ask("stage.current.index") == held
    keys.press(" ")
    stage.state("playing").wait(f"stage.current.index > {held}")
    stage.click(0.5, 0.5)
    stage.wait("stage.points.size === 1")
    keys.press("ArrowRight")
    stage.wait("stage.current.marks.length && stage.current.marks[0].x > 0.515")
    keys.press("Control+z")
    stage.wait("stage.current.marks.length && Math.abs(stage.current.marks[0].x - 0.5) < 0.005")
    keys.press("Control+z")
    stage.wait("stage.points.size === 0")
    stage.click(0.5, 0.5)
    stage.wait("stage.points.size === 1")
    keys.press("Delete")
    stage.wait("stage.points.size === 0")
    keys.press("Enter")
    stage.state("ended")
    stage.page.get_by_role("button", name="Again").click()
    stage.state("playing")
    stage.page.get_by_role("button", name="Reset").click()
    stage.state("ready")


def test_letting_go_frees_the_point(stage):
    stage.page.get_by_role("button", name="lets go").click()
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.points.size === 0")


def throw(stage):
    """The ball glides from (0.5, 0.5) on to the right."""
    stage.page.get_by_role("button", name="glides").click()
    for _ in range(10):                                             # on a busy machine, a hand may seem to rest
        stage.drag(BALL, (0.5, 0.5), steps=10, pause=16)
        stage.page.wait_for_timeout(500)
        if stage.ask("stage.points.get(1).x") > 0.51:
            return
        stage.page.keyboard.press("Control+z")
        stage.rests_at(*BALL)
    pytest.fail("ten throws, and no hand was quick enough")


DRAW = """(async () => {
    const root = document.querySelector('.msk-host').shadowRoot, top = root.querySelector('.top');
    const box = top.getBoundingClientRect();
    root.querySelector('[data-tool=path]').click();
    const { x, y } = stage.current.marks[0];
    for (const [kind, by] of [['down', 0], ['move', -0.05], ['move', -0.1], ['move', -0.15], ['up', -0.15]]) {
        top.dispatchEvent(new PointerEvent('pointer' + kind, { pointerId: 99, pointerType: 'mouse', bubbles: true,
            clientX: box.left + (x + by) * box.width, clientY: box.top + y * box.height }));
        await new Promise((done) => setTimeout(done, 50));
    } })()"""


@pytest.mark.parametrize("how, kind", [("stage.pinAll()", "pin"), (DRAW, "path")], ids=["pinned", "on a path"])
def test_a_point_that_glides_stays_where_it_is_pinned_or_put_on_a_path(stage, how, kind):
    throw(stage)
    stage.ask(f"({how}, 0)" if kind == "pin" else how)
    stage.wait(f"stage.points.get(1).kind === '{kind}'")
    x, index = stage.ask("[stage.points.get(1).x, stage.current.index]")
    stage.wait(f"stage.current.index > {index + 24}")
    assert abs(stage.ask("stage.points.get(1).x") - x) < 0.01


def test_a_thrown_point_glides_on_comes_to_rest_and_was_one_deed(stage):
    throw(stage)
    stage.wait("stage.points.get(1).x > 0.51")                                      # nobody's hand led it there
    stage.wait("stage.kept.slice(-8).every((f) => Math.abs(f.marks[0]?.x - stage.points.get(1).x) < 0.005)")
    x = stage.ask("stage.points.get(1).x")
    assert 0.51 < x <= 1.5 and abs(stage.ask("stage.points.get(1).y") - 0.5) < 0.02
    if x < 0.85:
        np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (x, 0.5), atol=0.02)
    stage.page.keyboard.press("Control+z")
    stage.rests_at(*BALL)
    stage.drag(BALL, (0.5, 0.5), steps=10, pause=16, let_go=False)
    stage.page.wait_for_timeout(300)                                                # a hand that rests throws nothing
    stage.page.mouse.up()
    stage.rests_at(0.5, 0.5)


def test_points_are_added_moved_and_taken_out_while_it_is_paused(stage, canvas):
    stage.drag(BALL, (0.6, 0.5))
    stage.rests_at(0.6, 0.5)
    stage.page.keyboard.press(" ")
    all_shown(stage.state("paused"), canvas[0])
    index = stage.ask("stage.current.index")
    stage.drag((0.6, 0.5), (0.6, 0.7), steps=10)
    stage.click(0.2, 0.2)
    stage.click(0.8, 0.2)
    stage.page.keyboard.press("Delete")
    stage.wait("stage.points.size === 2")
    assert stage.ask("stage.state") == "paused" and stage.ask("stage.current.index") == index
    stage.page.keyboard.press(" ")
    stage.rests_at(0.6, 0.7)
    assert [m["id"] for m in stage.frames(1)[0][1]] == [1, 2]
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.6, 0.7), atol=0.02)


def test_the_page_says_how_fast_it_is(stage):
    stage.drag(BALL, (0.6, 0.6), steps=60)
    stage.wait("stage.stats.drawn > 10 && stage.latencies.length > 10 && stage.stats.latency > 0")
    assert 0 < stage.ask("stage.stats.latency") < 10_000                            # the machine may be busy
    stage.expect(".hud .chunk").to_have_text(re.compile(r"^\d+$"))


def test_the_export_is_what_was_shown(stage, tmp_path):
    av = pytest.importorskip("av")
    stage.drag(BALL, (0.7, 0.5))
    stage.wait("stage.current.index > 24")
    stage.page.keyboard.press(" ")
    stage.state("paused")
    stage.page.wait_for_timeout(300)
    with stage.page.expect_download() as download:
        stage.page.get_by_role("button", name="Export mp4").click()
    path = tmp_path / "clip.mp4"
    shutil.copy(download.value.path(), path)
    with av.open(str(path)) as video:
        clip = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    frames = stage.frames()
    assert len(clip) == frames[-1][0] + 1
    for index, _, pixels in frames[::7]:
        np.testing.assert_allclose(ball(clip[index]), ball(pixels), atol=0.02)


def test_another_prompt_and_a_fresh_anchor_while_it_plays(stage, canvas):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    field, session = stage.page.get_by_label("Prompt"), canvas[0].player.session
    field.fill("a blue ball")
    field.press("Enter")
    stage.wait("stage.prompt === 'a blue ball'")
    stage.page.get_by_role("button", name="Anchor").click()
    index = stage.ask("stage.current.index")
    stage.wait(f"stage.current.index > {index + 24}")
    stream = session.engine.stream
    assert [prompt for _, prompt in stream.said] == ["a blue ball"] and len(stream.anchors) == 1
    assert stage.ask("stage.state") == "playing" and stream.said[0][0] > 0                  # the video went on
    stage.page.get_by_role("button", name="Undo").click()
    until(lambda: stage.ask("stage.state") == "playing" and stream.unanchored)
    assert stage.ask("stage.prompt") == "a blue ball"                                       # one deed at a time
    stage.page.get_by_role("button", name="Undo").click()
    stage.wait("stage.prompt === 'a red ball' && document.querySelector('#msk-prompt textarea').value === 'a red ball'")
    stage.page.locator(".msk-host .hud").click()
    stage.page.keyboard.press("Control+y")
    stage.wait("stage.prompt === 'a blue ball'")


def test_weather_is_a_click_away_and_shows_what_the_prompt_says(stage):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    field, weather = stage.page.get_by_label("Prompt"), lambda name: stage.page.get_by_role("radio", name=name)
    stage.expect(weather("none")).to_be_checked()
    for event, says in (("snow falling", "a red ball, snow falling"), ("night falls", "a red ball, night falls"),
                        ("none", "a red ball")):
        weather(event).check()
        stage.wait(f"stage.prompt === '{says}'")
        stage.expect(field).to_have_value(says)
    field.fill("a red ball, bubbles rising, far away")
    field.press("Enter")
    stage.wait("stage.prompt.endsWith('away')")
    stage.expect(weather("bubbles rising")).to_be_checked()
    weather("day breaks").check()
    stage.wait("stage.prompt === 'a red ball, far away, day breaks'")
    for said in ("a red ball, bubbles rising, far away", "a red ball"):
        stage.page.get_by_role("button", name="Undo").click()
        stage.wait(f"stage.prompt === '{said}'")
    stage.expect(weather("none")).to_be_checked()


def test_a_saved_session_is_opened_plays_again_and_goes_on(stage, tmp_path):
    stage.drag(BALL, (0.7, 0.6))
    stage.wait("stage.current.index > 24")
    stage.page.keyboard.press("Enter")
    stage.state("ended")
    films = [{index: pixels for index, _, pixels in stage.frames()}]
    stage.page.get_by_label("What to export").select_option("session")
    with stage.page.expect_download() as download:
        stage.page.get_by_role("button", name="Export session").click()
    path = tmp_path / "mine.json"
    shutil.copy(download.value.path(), path)
    kept = json.loads(path.read_text())
    assert kept["prompt"] == "a red ball" and kept["shown"] > 24 and kept["chunks"] and kept["events"]

    def open_file(file):
        with stage.page.expect_file_chooser() as chooser:
            stage.page.get_by_role("button", name="Open session").click()
        chooser.value.set_files(file)
    open_file(path)
    stage.state("ready").wait("stage.points.size === 1")
    stage.page.locator(".msk-host .hud").click()
    stage.page.keyboard.press("Enter")
    stage.state("paused")
    films.append({index: pixels for index, _, pixels in stage.frames()[-len(films[0]):]})
    same = sorted(set(films[0]) & set(films[1]))
    assert len(same) > 12 and all(np.abs(films[0][i].astype(int) - films[1][i]).max() < 40 for i in same)
    stage.page.keyboard.press(" ")
    stage.drag((0.7, 0.6), (0.5, 0.4))
    stage.rests_at(0.5, 0.4)
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.5, 0.4), atol=0.02)
    stage.page.reload()
    stage.wait("stage.state === 'ready' && stage.current")
    stage.page.get_by_role("button", name="Last session").click()
    stage.state("ready").wait("stage.points.size === 1")


def test_redo_help_and_figures(stage):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    for back, again in (("Control+z", "Control+y"), ("Control+z", "Control+Shift+z")):
        stage.page.keyboard.press(back)
        stage.wait(f"Math.abs([...stage.points.values()][0].x - {BALL[0]}) < 0.01")
        stage.page.keyboard.press(again)
        stage.wait("Math.abs([...stage.points.values()][0].x - 0.6) < 0.01")
    stage.expect(".hud .p95").to_have_text(re.compile(r"^\d+$"))
    stage.page.keyboard.press("?")
    stage.expect(stage.page.get_by_text("fresh anchor: hold")).to_be_visible()
    assert stage.page.locator(".help.on dt").count() >= 10
    stage.page.keyboard.press("Escape")
    stage.expect(".help.on").to_have_count(0)


def test_after_a_reset_nothing_is_said_of_the_video_that_is_gone(stage):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    stage.expect(".hud .memory i").not_to_have_count(0)
    stage.page.keyboard.press("h")
    stage.page.locator(".msk-host [data-do=reset]").click()
    stage.state("ready").expect(".hud .memory i").to_have_count(0)
    stage.expect(".hud .took").to_have_text("–")
    stage.expect(".hint").to_have_text("Press Enter to play, or drag a point")
    stage.page.keyboard.press("h")


def test_an_export_that_takes_long_says_that_it_is_being_made(stage, monkeypatch):
    ended = threading.Event()
    made = Lobby._export
    monkeypatch.setattr(Lobby, "_export", lambda *given: ended.wait(60) and made(*given))
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    stage.page.keyboard.press(" ")
    stage.state("paused").page.get_by_label("What to export").select_option("png")
    with stage.page.expect_download(timeout=60_000):
        stage.page.get_by_role("button", name="Export still").click()
        stage.expect(".hint").to_have_text("making the still…")
        ended.set()
    stage.expect(".hint").to_contain_text("saved")


@pytest.mark.parametrize("what, opens", [("webp", b"RIFF"), ("gif", b"GIF8"), ("png", b"\x89PNG"), ("npz", b"PK"),
                                         ("tracks", b"{")])
def test_every_other_export_comes(stage, what, opens):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    stage.page.get_by_label("What to export").select_option(what)
    with stage.page.expect_download() as download:
        stage.page.locator(".msk-host [data-do=file]").click()
    with open(download.value.path(), "rb") as file:
        assert file.read(len(opens)) == opens


def test_another_picture_and_an_upload_are_taken(stage):
    before = stage.ask("stage.pixels().then((p) => p.data.slice(0, 400).join())")
    stage.page.locator("#msk-gallery .grid-container button").nth(2).click()
    stage.wait("stage.kept.filter((f) => f.still).length > 1 && stage.current === stage.kept.at(-1)").state("ready")
    assert stage.ask("stage.pixels().then((p) => p.data.slice(0, 400).join())") != before
    stage.expect(stage.page.get_by_label("Prompt")).not_to_have_value("a red ball")
    data = io.BytesIO()
    Image.new("RGBA", (300, 200), (250, 200, 10, 255)).save(data, "PNG")
    stage.page.locator("input[type=file]").first.set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": data.getvalue()})
    stage.wait("stage.kept.filter((f) => f.still).length > 2 && stage.current === stage.kept.at(-1)")
    r, g, b = stage.ask("stage.pixels().then((p) => [...p.data.slice(0, 3)])")
    assert r > 230 and 180 < g < 220 and b < 40
    stage.expect(stage.page.get_by_label("Prompt")).to_have_value("")               # what was said of the other picture
    stage.expect("#msk-gallery .thumbnail-item.selected").to_have_count(0)
    stage.state("ready")
    stage.page.keyboard.press("Escape")
    stage.page.locator(".msk-host .top").click(position={"x": 5, "y": 5})
    stage.page.keyboard.press("Enter")
    stage.wait("!stage.current.still")


def test_a_broken_picture_is_refused_and_the_stage_stays(stage):
    stage.page.locator("input[type=file]").first.set_input_files(
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG not at all"})
    stage.page.get_by_text("could not be read as a picture").first.wait_for()
    stage.page.keyboard.press("Escape")
    assert stage.ask("stage.state") == "ready"


def test_wrong_messages_get_a_sentence_and_the_stream_goes_on(stage):
    stage.page.keyboard.press("Enter")
    stage.wait("stage.current.index > 3")
    for wrong in ("nonsense", json.dumps({"type": "fly"}), json.dumps({"type": "grab", "ids": [4], "t": 0})):
        stage.ask("stage.host.send(given)", wrong)
    stage.ask("stage.host.send(new Uint8Array([9, 9, 9]).buffer)")
    stage.wait("stage.stats.errors.length >= 4")
    index = stage.ask("stage.current.index")
    stage.wait(f"stage.current.index > {index + 5}")


def test_a_dropped_link_finds_its_session_again(stage):
    stage.drag(BALL, (0.6, 0.5))
    stage.wait("stage.current.index > 12")
    session, index = stage.ask("stage.hello.session"), stage.ask("stage.current.index")
    stage.ask("stage.host.drop()")
    stage.state("lost").state("playing").wait(f"stage.current.index > {index + 12}")
    assert stage.ask("stage.hello.session") == session and stage.ask("stage.points.size") == 1


def test_a_second_page_waits_and_then_plays(stage, browser, canvas):
    other = Stage(browser, canvas[1]).state("queue")
    try:
        other.expect(".veil").to_contain_text("you are number 1 in line")
        box = other.page.locator(".msk-host .screen").bounding_box()
        assert box["height"] > 300 and box["width"] > 300                   # it can be read
        other.page.locator("#msk-gallery .thumbnail-item").nth(2).click()
        chosen = canvas[0].pictures["start-2"]
        stage.page.goto("about:blank")
        other.state("ready").wait("stage.current")
        until(lambda: canvas[0].player.session.source.tobytes() == chosen.tobytes())        # what it chose in line
        other.wait("stage.prompt === document.querySelector('#msk-prompt textarea').value").state("ready")
        other.page.get_by_role("button", name="Start").click()
        other.wait("stage.current.index > 3")
        assert other.complaints == []
    finally:
        other.page.close()


def test_a_login_guards_the_stage_too(browser, tmp_path):
    websockets = pytest.importorskip("websockets.sync.client")
    page, lobby, url = serve("exact", free_port(), folder=tmp_path, auth=("me", "secret"))
    try:
        stage = Stage(browser, url)

        def login(password):
            stage.page.get_by_label("username").fill("me")
            stage.page.get_by_label("password").fill(password)
            stage.page.get_by_role("button", name="Login").click()

        login("guess")
        stage.page.get_by_text("Incorrect").wait_for()
        assert stage.page.locator(".msk-host").count() == 0 and lobby.player is None
        side_door, origin = f"ws{url.removeprefix('http')}msk/ws", url.rstrip("/")
        with pytest.raises(websockets.InvalidStatus):
            websockets.connect(side_door, origin=origin, subprotocols=["msk"], proxy=None)
        login("secret")
        stage.state("ready").wait("stage.current").page.keyboard.press("Enter")
        stage.wait("stage.current.index > 3")
        stage.page.close()
    finally:
        lobby.close()
        page.close(verbose=False)


def test_another_model_is_chosen_on_the_page_and_played(browser, tmp_path):
    """From the exact environment to a real kit in a folder of one's own, of another shape; with one that cannot be had."""
    import msk
    from msk.config import PRESETS
    toy, go = PRESETS["toy"], threading.Event()
    tall, wide = toy.geometry.height, 2 * toy.geometry.height
    mine = str(msk.Kit.random(replace(toy, geometry=replace(toy.geometry, width=wide))).save(tmp_path / "mine"))

    def load(name):
        if name == "gone":
            raise ConnectionError("gone could not be fetched from the hub: check the network and the name")
        assert go.wait(60)
        return msk.load(name, device="cpu")
    models = ["exact", "gone", mine, "wantrack-1.3b"]
    page, lobby, url = serve("exact", free_port(), folder=tmp_path, models=models, load=load)
    try:
        stage = Stage(browser, url).state("ready").wait("stage.current")
        chooser, button, told = (stage.page.locator(f".msk-host .models {part}") for part in ("select", "button", ".told"))
        assert chooser.locator("option").all_inner_texts()[:3] == ["exact", "gone", "mine"] and button.is_disabled()
        stage.page.keyboard.press("Enter")
        chooser.select_option("wantrack-1.3b")
        if not torch.cuda.is_available():
            stage.expect(told).to_contain_text("it needs a GPU of 16 GB, and here is none")
            assert button.is_disabled()
        stage.expect(told).to_contain_text("1.56 B parameters")
        stage.expect(told).to_contain_text("no licence is stated")
        chooser.select_option("gone")
        button.click()
        stage.page.get_by_text("gone could not be loaded, the old model goes on").wait_for()
        chooser.select_option(mine)
        stage.expect(told).to_contain_text("parameters")
        button.click()
        stage.page.locator(".msk-host progress").wait_for()
        now = stage.ask("stage.current.index")
        stage.wait(f"stage.current.index > {now + 24}")                     # the old one plays on
        go.set()
        stage.wait(f"stage.hello.width === {wide} && stage.state === 'ready' && stage.current.still")
        stage.expect(chooser).to_have_value(mine)
        stage.expect(button).to_be_disabled()
        stage.expect(".msk-host progress").to_be_hidden()
        box = stage.steady().page.locator(".msk-host .screen").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(2, abs=0.02)
        stage.page.wait_for_function("() => { const one = document.querySelector('#msk-gallery img'); "
                                     "return one.naturalWidth === 2 * one.naturalHeight; }")
        stage.drag((0.3, 0.5), (0.6, 0.5))
        stage.wait("stage.current.index > 12 && stage.current.marks.length === 1")
        assert stage.frames(1)[0][2].shape == (tall, wide, 3)
        stage.page.close()
        assert stage.complaints == []
    finally:
        lobby.close()
        page.close(verbose=False)


def test_points_and_picture_go_along_to_another_model(browser, tmp_path):
    """One that is twice as wide as tall sees the middle half of the picture: there all is where it was put."""
    pytest.importorskip("cv2")
    import msk
    from msk.config import PRESETS
    toy = PRESETS["toy"]
    wide = msk.Kit.random(replace(toy, geometry=replace(toy.geometry, height=96, width=2 * W)))
    page, lobby, url = serve("exact", free_port(), folder=tmp_path, models=["exact", "wantrack-1.3b"], load=lambda _: wide,
                             cut=cut, rest=True)
    lobby.choice.offers[1] = replace(lobby.choice.offers[1], why_not="")
    try:
        stage = Stage(browser, url).state("ready").wait("stage.current")
        keys, old = stage.page.keyboard, lobby.player.session
        keys.press("2")
        stage.click(0.7, 0.4)
        stage.click(0.5, 0.1)                                               # not seen by the other model
        keys.press("3")
        stage.click(0.2, 0.7)
        stage.click(0.6, 0.6)
        keys.press("Enter")
        keys.press("h")
        keys.press("1")
        stage.drag(BALL, (0.6, 0.6), steps=10)
        stage.wait("stage.points.size === 4 && stage.current.index > 12")
        stage.ask("stage.follow('a red ball in the rain')")
        until(lambda: old.prompt == "a red ball in the rain" and old.hold.things)
        chosen = stage.listen().ask("[...stage.chosen]")
        stage.page.locator(".msk-host .models select").select_option("wantrack-1.3b")
        stage.page.get_by_role("button", name="Load").click()
        stage.wait(f"stage.hello.width === {2 * W} && stage.state === 'ready' && stage.current.still", 240)
        stage.said("1 of the points lie outside")
        new = lobby.player.session
        places = {p.id: (round(p.target.real / 192, 2), round(p.target.imag / 96, 2)) for p in new.points.values()}
        assert places == {1: (0.7, 0.3), 3: (0.2, 0.9), 4: (0.31, 0.5)} and chosen == [4]
        assert [new.points[i].kind for i in places] == ["pin", "path", "live"] and new.points[3].way.speed == 1
        end = new.points[3].way.nodes[-1][1]
        assert (end.real / 192, end.imag / 96) == pytest.approx((0.6, 0.7), abs=0.01)
        assert (new.prompt, new.seed, new.hold.rest) == (old.prompt, old.seed, False)       # what was chosen stays so
        until(lambda: new.hold.things)                                      # the ball, cut again where it is here
        assert new.hold.things[0].mask[48, 60] and new.points[4].thing is new.hold.things[0]
        assert stage.ask("[...stage.chosen]") == chosen and stage.ask("stage.points.size") == 3
        stage.expect("#msk-prompt textarea").to_have_value("a red ball in the rain")
        stage.drag((0.31, 0.5), (0.5, 0.5), steps=10)
        stage.wait("stage.current.index > 8 && stage.current.marks.length === 3")
        stage.page.close()
        assert stage.complaints == []
    finally:
        lobby.close()
        page.close(verbose=False)


def test_touch_on_a_narrow_screen(browser, canvas):
    stage = Stage(browser, canvas[1], width=360, height=740, has_touch=True, device_scale_factor=2)
    stage.state("ready").wait("stage.current")
    assert stage.page.evaluate("document.documentElement.scrollWidth") <= 360
    x, y = stage.steady().at(*BALL)
    line = stage.page.context.new_cdp_session(stage.page)

    def touch(kind, points):
        line.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch("touchStart", [{"x": x, "y": y}])
    stage.wait("[...stage.points].length === 1", 20)
    to_x, to_y = stage.at(0.65, 0.6)
    for i in range(1, 21):
        touch("touchMove", [{"x": x + (to_x - x) * i / 20, "y": y + (to_y - y) * i / 20}])
        stage.page.wait_for_timeout(20)
    touch("touchEnd", [])
    stage.rests_at(0.65, 0.6)
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.65, 0.6), atol=0.03)
    stage.page.close()
    assert stage.complaints == []


# -- things of the world, moved by a model -----------------------------------------------------------------------------

def things(count, geometry, seen=24):
    """(picture, caption, where a large thing is, where to drag it) of held-out clips; places are shares of the picture."""
    import torch

    from msk.world import HELD_OUT, World
    width, clip = geometry.width, World(geometry).sample(seen, frames=1, seed=HELD_OUT + 500)
    rows = torch.arange(4, width, 4) + 0.5
    grid = torch.cartesian_prod(rows, rows).expand(seen, -1, -1)
    layer = clip.scene.track(grid)[2]
    found = []
    for i in range(seen):
        largest = max(set(layer[i].tolist()) - {0}, key=lambda k: int((layer[i] == k).sum()), default=None)
        if largest is not None:
            on = grid[i][layer[i] == largest]
            start = on[(on - on.mean(0)).norm(dim=1).argmin()] / width                  # the middle, on the thing itself
            towards = 0.5 - start
            end = start + 0.22 * towards / towards.norm() if towards.norm() > 0.1 else start + torch.tensor([0.2, 0.1])
            picture = Image.fromarray(clip.frames[i, 0].mul(255).round().byte().permute(1, 2, 0).numpy())
            found.append((len(on), picture, clip.captions[i], tuple(start.tolist()), tuple(end.tolist())))
    return [f[1:] for f in sorted(found, key=lambda f: -f[0])[:count]]


def geometry_of(kit):
    import msk
    return exact.GEOMETRY if kit == "exact" else msk.load(kit).geometry


def find(patch, frame):
    """Where a patch [h, w, 3] is found in a frame, by normalised correlation: the patch's middle, x then y, in pixels."""
    windows = np.lib.stride_tricks.sliding_window_view(frame.astype(np.float32), patch.shape)[:, :, 0]
    windows = windows - windows.mean(axis=(2, 3), keepdims=True)
    wanted = patch - patch.mean(axis=(0, 1))
    likeness = (windows * wanted).sum(axis=(2, 3, 4)) / np.sqrt((windows ** 2).sum(axis=(2, 3, 4)) + 1)
    row, column = np.unravel_index(likeness.argmax(), likeness.shape)
    return np.array((column + patch.shape[1] / 2, row + patch.shape[0] / 2))


@pytest.mark.parametrize("kit, most", [("exact", 0.02), ("tiny", 0.08)])
def test_things_of_the_world_follow_the_pointer(browser, tmp_path, kit, most):
    """The errors of three drags, judged by where the thing's own pixels are found in the last frame the page received."""
    geometry = geometry_of(kit)
    chosen, width = things(3, geometry), geometry.width
    pictures = [(picture, caption) for picture, caption, *_ in chosen]
    page, lobby, url = serve(kit, free_port(), folder=tmp_path, pictures=pictures)
    errors = []
    try:
        for number, (picture, _, start, end) in enumerate(chosen):
            stage = Stage(browser, url).state("ready").wait("stage.current")
            if number:
                stage.page.locator("#msk-gallery .grid-container button").nth(number).click()
                stage.wait("stage.kept.filter((f) => f.still).length > 1 && stage.current === stage.kept.at(-1)")
                stage.state("ready")
            stage.drag(start, end, steps=60, pause=30, let_go=False)
            stage.rests_at(*end)
            stage.page.mouse.up()
            last = stage.frames(1)[0][2]
            (x, y), r = np.array(start) * width, 9
            patch = np.asarray(picture, np.float32)[int(y) - r:int(y) + r, int(x) - r:int(x) + r]
            errors.append(np.linalg.norm(find(patch, last) / width - end))
            stage.page.close()
            assert stage.complaints == []
    finally:
        lobby.close()
        page.close(verbose=False)
    assert np.median(errors) < most, errors


def test_the_tiny_model_streams_and_answers_the_pointer(browser, tmp_path):
    """The same picture, dragged and left alone: with the hand the frames differ most where the hand went."""
    geometry = geometry_of("tiny")
    (picture, caption, start, end), = things(1, geometry)
    page, lobby, url = serve("tiny", free_port(), folder=tmp_path, pictures=[(picture, caption)], fewest=3)     # both in all
    films = []
    try:
        for drag in (False, True):
            stage = Stage(browser, url).state("ready").wait("stage.current")
            if drag:
                stage.drag(start, end, steps=60, pause=30, let_go=False)
            else:
                stage.page.keyboard.press("Enter")
            stage.wait("stage.current.index >= 120")
            film = {index: pixels.astype(np.float32) for index, _, pixels in stage.frames()}
            films.append(film)
            stage.page.close()
            assert stage.complaints == []
    finally:
        lobby.close()
        page.close(verbose=False)
    alone, led = films
    late = [(index, min(led, key=lambda other: abs(other - index))) for index in alone if index >= 60]
    same = [(a, b) for a, b in late if abs(a - b) <= 2]                             # a busy page may miss some frames
    change = np.mean([np.abs(led[b] - alone[a]).mean(-1) for a, b in same], axis=0)
    rows, columns = np.mgrid[:geometry.height, :geometry.width] / geometry.width
    near = np.minimum(np.hypot(columns - start[0], rows - start[1]), np.hypot(columns - end[0], rows - end[1])) < 0.2
    assert change[near].mean() > 2 * change[~near].mean()
