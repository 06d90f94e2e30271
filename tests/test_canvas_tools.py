"""The canvas's tools in a real browser: paths, grids, groups, the camera, the map; with pointer, keys and fingers."""
import base64
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from msk.cutter import cut
from msk.live.points import Way
from msk.live.replay import packed
from msk.live.session import Session
from msk.live.widget import RENDER, STAGE_JS, Pulled
from tests.pages import exact
from tests.pages.browser import Stage
from tests.pages.serve import free_port, serve
from tests.test_canvas_browser import BALL, W, ball
from tests.test_live import until as until_soon

FPS = exact.GEOMETRY.fps
CLICKED = 0.35                  # widths a second between clicked nodes, as ways.js says
SCREEN = "document.querySelector('.msk-host').shadowRoot"


def eye(tracks, start):
    """Three small pictures of what is told: a light cell where a track speaks."""
    told = np.zeros((3, 12, 12, 3), np.uint8)
    if tracks is not None:
        for x, y in (tracks.xy[0, -1] / W * 12).long().clamp(0, 11).tolist():
            told[:, y, x] = 255
    return told


@contextmanager
def watch(stream, steps=None, at=None):
    """Two layers of a model whose points look at where they are."""
    glow = Image.new("RGBA", (12, 12))
    if at is not None:
        glow.putpixel([int(12 * v) for v in at], (255, 196, 87, 255))
    layers = [[0, 0.5, 0.25, 0.25], [1, 0.25, 0.25, 0.5]] if stream.index else [[0, 0, 0, 1], [1, 0, 0, 1]]
    yield {"layers": layers} | ({"cells": packed(glow)} if at is not None else {})


@pytest.fixture(scope="module")
def canvas_options():
    return {"eye": eye, "watch": watch}


@pytest.fixture
def session(stage, canvas):
    return canvas[0].player.session


@contextmanager
def counted(session):
    """All that the camera is asked for in here, summed up as it comes."""
    total, ask = dict.fromkeys(session.hold.flight.asked, 0.0), session.hold.flight.ask

    def count(move):
        for part, amount in move.items():
            total[part] += amount
        return ask(move)
    session.hold.flight.ask = count
    yield total
    session.hold.flight.ask = ask


@pytest.fixture
def asked(session):
    with counted(session) as total:
        yield total


def until(true):
    until_soon(true, seconds=60)


def later(stage, frames=24):
    """Wait until so many more frames have been shown."""
    stage.wait(f"stage.current.index > {stage.ask('stage.current.index') + frames}")


def until_asked(stage, true):
    """Wait for it, and let the page's questions be answered meanwhile."""
    for _ in range(1200):
        if true():
            return
        stage.page.wait_for_timeout(50)
    raise AssertionError("it did not happen")


def clicks(stage, *places):
    for place in places:
        stage.click(*place)


def at(point):
    return point.target.real / W, point.target.imag / W


def test_a_clicked_path_is_played_in_its_time(stage, session):
    keys, places = stage.page.keyboard, [BALL, (0.6, 0.3), (0.8, 0.7)]
    keys.press("3")
    clicks(stage, *places)
    keys.press("Enter")                                                     # ends the path, not the take
    until(lambda: 1 in session.points)
    way = session.points[1].way
    assert session.state == "ready" and session.points[1].kind == "path" and len(way.nodes) == 3
    np.testing.assert_allclose([(p.real / W, p.imag / W) for _, p in way.nodes], places, atol=0.01)
    far = np.linalg.norm(np.diff(places, axis=0), axis=1)
    np.testing.assert_allclose(np.diff([t for t, _ in way.nodes]), far / CLICKED, atol=0.05)
    keys.press("Enter")
    stage.wait("stage.current.index > 60")
    for index, marks, pixels in stage.frames()[::5]:
        there = way.at(index / FPS)
        assert marks[0]["kind"] == "path"
        np.testing.assert_allclose((marks[0]["x"], marks[0]["y"]), (there.real / W, there.imag / W), atol=0.005)
        np.testing.assert_allclose(ball(pixels), (marks[0]["x"], marks[0]["y"]), atol=0.02)
    index, head = stage.ask("[stage.current.index, stage.points.get(1).head]")              # the ruler's playhead
    assert head == pytest.approx(min(index / FPS, way.nodes[-1][0]), abs=0.06)


def test_a_path_is_drawn_by_hand_while_it_plays_for_a_point_that_is_there(stage, session):
    stage.drag(BALL, (0.4, 0.4), steps=10)
    stage.rests_at(0.4, 0.4)
    stage.page.keyboard.press("3")
    stage.drag((0.4, 0.4), (0.75, 0.6), steps=15, pause=60)
    until(lambda: session.points[1].way is not None)
    way = session.points[1].way
    assert len(session.points) == 1 and way.nodes[-1][0] > 0.7                      # in the hand's own time
    places = np.array([(p.real / W, p.imag / W) for _, p in way.nodes])
    np.testing.assert_allclose(places[[0, -1]], [(0.4, 0.4), (0.75, 0.6)], atol=0.01)
    direction = np.array((0.35, 0.2))
    assert (np.diff(places @ direction) >= -1e-6).all()
    stage.rests_at(0.75, 0.6, seconds=60 + way.nodes[-1][0])                        # a slow machine has a slow hand
    np.testing.assert_allclose(ball(stage.frames(1)[0][2]), (0.75, 0.6), atol=0.02)
    stage.page.keyboard.press("Control+z")
    until(lambda: session.points[1].way is None)
    stage.rests_at(0.4, 0.4)


def test_a_path_leads_out_of_the_picture_and_its_mark_with_it(stage, session):
    clicks_at = ((0.3, 0.5), (0.7, 0.5))
    stage.page.keyboard.press("3")
    clicks(stage, *clicks_at)
    stage.page.keyboard.press("Enter")
    until(lambda: 1 in session.points)
    stage.page.keyboard.press("5")
    stage.drag((0.7, 0.5), (1.3, 0.5), steps=8)                             # its end, out of the picture
    until(lambda: session.points[1].way.nodes[-1][1].real > 1.25 * W)
    stage.page.keyboard.press("Enter")
    stage.wait("stage.current.marks.length && stage.current.marks[0].x > 1.25", 90)
    assert stage.ask("stage.points.get(1).shown.x") > 1.2
    assert stage.ask("stage.points.get(1).head") > 0.9 * session.points[1].way.nodes[-1][0]
    stage.drag((0.995, 0.5), (0.6, 0.5), steps=8)                           # at the edge it is taken again
    until(lambda: abs(session.points[1].way.nodes[-1][1].real - 0.6 * W) < 2)


def test_a_double_click_ends_a_path_and_escape_leaves_one(stage, session):
    stage.page.get_by_role("button", name="Path", exact=True).click()
    clicks(stage, (0.2, 0.2), (0.5, 0.2))
    assert stage.ask("stage.draft.nodes.length") == 2
    stage.page.keyboard.press("Escape")
    assert stage.ask("stage.draft === null && stage.points.size === 0")
    stage.click(0.2, 0.2)
    stage.steady().page.mouse.dblclick(*stage.at(0.5, 0.3))
    stage.wait("stage.points.size === 1 && stage.draft === null")
    until(lambda: len(session.points) == 1)
    (point,) = session.points.values()
    assert [(round(p.real / W, 1), round(p.imag / W, 1)) for _, p in point.way.nodes] == [(0.2, 0.2), (0.5, 0.3)]


def test_a_path_is_set_to_swing_made_faster_smooth_and_even(stage, session):
    page = stage.page
    page.keyboard.press("3")
    clicks(stage, (0.2, 0.5), (0.5, 0.2), (0.55, 0.8))
    page.get_by_role("button", name="Finish").click()
    until(lambda: 1 in session.points)
    point = session.points[1]
    page.keyboard.press("Enter")
    until(lambda: point.played > 0.5)
    for loop in ("loop", "swing"):
        page.get_by_role("button", name=loop, exact=True).click()
        until(lambda loop=loop: point.way.loop == loop)
    page.get_by_label("Speed of the path").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(lambda: point.way.speed == 2)
    assert point.played > 0.5                                               # it went on where it was
    stage.expect(".msk-host .times").to_have_text("2×")
    clicked = point.way
    page.get_by_role("button", name="Smooth").click()
    until(lambda: len(point.way.nodes) > 20)
    smooth = point.way

    def corners(way):                                                       # the sharpest turn, in degrees
        at = np.array([way.at(t / way.speed) for t in np.linspace(0, way.nodes[-1][0], 40)])
        step = np.diff(at)
        return np.abs(np.angle(step[1:] / step[:-1], deg=True)).max()
    assert corners(smooth) < 0.6 * corners(clicked) and (smooth.loop, smooth.speed) == ("swing", 2)
    np.testing.assert_allclose([smooth.start, smooth.nodes[-1][1]], [clicked.start, clicked.nodes[-1][1]], atol=0.1)
    page.get_by_role("button", name="Even").click()
    until(lambda: point.way is not smooth)

    def steps(way):
        return np.abs(np.diff([p for _, p in way.nodes])) / np.diff([t for t, _ in way.nodes])
    uneven, even = steps(smooth), steps(point.way)
    assert np.ptp(uneven) > 0.3 * np.mean(uneven) and np.ptp(even) < 0.1 * np.mean(even)
    for _ in range(2):
        page.get_by_role("button", name="Undo").click()
    until(lambda: point.way.nodes == clicked.nodes)


def test_nodes_of_a_path_are_dragged_added_and_taken_out(stage, session):
    page = stage.page
    page.keyboard.press("3")
    clicks(stage, (0.2, 0.3), (0.5, 0.7), (0.8, 0.3))
    page.keyboard.press("Enter")
    until(lambda: 1 in session.points)
    page.keyboard.press("5")

    def are(*places):
        nodes = session.points[1].way.nodes
        return len(nodes) == len(places) and np.allclose([(p.real / W, p.imag / W) for _, p in nodes], places, atol=0.01)
    began = session.points[1].way.nodes
    stage.drag((0.5, 0.7), (0.5, 0.5), steps=8)
    until(lambda: are((0.2, 0.3), (0.5, 0.5), (0.8, 0.3)))
    assert [t for t, _ in session.points[1].way.nodes] == [t for t, _ in began] and stage.ask("stage.node") == 1
    page.keyboard.press("Shift+ArrowUp")
    until(lambda: are((0.2, 0.3), (0.5, 0.4), (0.8, 0.3)))
    page.mouse.dblclick(*stage.at(0.35, 0.35))
    until(lambda: are((0.2, 0.3), (0.35, 0.35), (0.5, 0.4), (0.8, 0.3)))
    stage.drag((0.2, 0.3), (0.1, 0.2), steps=8)                             # its start: the point goes along
    until(lambda: are((0.1, 0.2), (0.35, 0.35), (0.5, 0.4), (0.8, 0.3)))
    assert stage.ask("stage.node") == 0 and at(session.points[1]) == pytest.approx((0.1, 0.2), abs=0.01)
    page.keyboard.press("Delete")
    until(lambda: are((0.35, 0.35), (0.5, 0.4), (0.8, 0.3)))
    assert session.points[1].way.nodes[0][0] == 0
    for places in ([(0.1, 0.2), (0.35, 0.35), (0.5, 0.4), (0.8, 0.3)], [(0.2, 0.3), (0.35, 0.35), (0.5, 0.4), (0.8, 0.3)],
                   [(0.2, 0.3), (0.5, 0.4), (0.8, 0.3)], [(0.2, 0.3), (0.5, 0.5), (0.8, 0.3)]):
        page.keyboard.press("Control+z")
        until(lambda places=places: are(*places))
    stage.drag((0.35, 0.4), (0.45, 0.4), steps=8)                           # by its line, all of it; and the stream begins
    until(lambda: are((0.3, 0.3), (0.6, 0.5), (0.9, 0.3)))
    stage.wait("stage.current.index > 12")
    stage.drag((0.9, 0.3), (0.9, 0.6), steps=8)                             # while it plays, and it goes on
    until(lambda: are((0.3, 0.3), (0.6, 0.5), (0.9, 0.6)))
    assert session.points[1].played > 0.3
    stage.wait("stage.current.marks.length === 1 && Math.abs(stage.current.marks[0].y - 0.6) < 0.01")
    assert len(session.points) == 1


def test_nodes_of_a_path_are_chosen_and_edited_by_keys_alone(stage, session):
    """And each step is said where a screen reader hears it."""
    keys = stage.listen().page.keyboard
    stage.expect(".msk-host .hint").to_have_attribute("aria-live", "polite")
    stage.page.locator(".msk-host .stage").focus()
    keys.press("]")
    stage.said("There is no path yet")
    for key in ("3", "ArrowLeft", "i", "Shift+ArrowRight", "Shift+ArrowDown", "i", "Shift+ArrowRight", "i", "Enter",
                "Escape"):
        keys.press(key)
    until(lambda: 1 in session.points)

    def are(*places):
        nodes = session.points[1].way.nodes
        return len(nodes) == len(places) and np.allclose([(p.real / W, p.imag / W) for _, p in nodes], places, atol=0.01)
    until(lambda: are((0.5, 0.5), (0.6, 0.6), (0.7, 0.6)))
    keys.press("]")                                                         # from whatever tool
    stage.said("Node 1 of 3: 50 % across, 50 % down")
    assert stage.ask("stage.tool") == "select" and stage.ask("[...stage.chosen]") == [1]
    keys.press("[")
    stage.said("Node 3 of 3: 70 % across, 60 % down")
    keys.press("Shift+ArrowRight")
    stage.said("Node 3 of 3: 80 % across, 60 % down")
    keys.press("]")
    keys.press("]")
    stage.said("Node 2 of 3: 60 % across, 60 % down")
    until(lambda: are((0.5, 0.5), (0.6, 0.6), (0.8, 0.6)))
    keys.press("i")
    stage.said("Node 3 of 4: 70 % across, 60 % down")
    until(lambda: are((0.5, 0.5), (0.6, 0.6), (0.7, 0.6), (0.8, 0.6)))
    keys.press("[")
    keys.press("Delete")
    stage.said("Node taken out: 3 are left")
    until(lambda: are((0.5, 0.5), (0.7, 0.6), (0.8, 0.6)))
    assert stage.ask("stage.node") is None and len(session.points) == 1
    keys.press("Control+z")
    until(lambda: are((0.5, 0.5), (0.6, 0.6), (0.7, 0.6), (0.8, 0.6)))
    keys.press("?")
    assert "] and [" in stage.page.locator(".help.on dt").all_inner_texts()
    keys.press("Escape")
    keys.press("Tab")                                                       # which is no key of the stage: the focus goes on
    stage.wait(f"{SCREEN}.activeElement?.tagName === 'BUTTON'")


def test_a_pen_takes_hold_like_a_finger_and_draws_like_a_mouse(stage, session):
    line = stage.page.context.new_cdp_session(stage.page)

    def pen(kind, x, y, held=1):
        to_x, to_y = stage.at(x, y)
        line.send("Input.dispatchMouseEvent", {"type": kind, "x": to_x, "y": to_y, "button": "left" if held else "none",
                                               "buttons": held, "clickCount": held, "pointerType": "pen"})

    def stroke(start, end):
        stage.steady()
        pen("mouseMoved", *start, held=0)
        pen("mousePressed", *start)
        for i in range(1, 11):
            pen("mouseMoved", *(a + (b - a) * i / 10 for a, b in zip(start, end)))
            stage.page.wait_for_timeout(30)
        pen("mouseReleased", *end)
    stage.click(0.5, 0.5)
    until(lambda: 1 in session.points)
    beside = 0.5 + 24 / stage.page.locator(".msk-host .top").bounding_box()["width"]         # too far for a mouse
    stroke((beside, 0.5), (beside, 0.7))
    until(lambda: at(session.points[1]) == pytest.approx((0.5, 0.7), abs=0.01))
    assert len(session.points) == 1
    stage.page.keyboard.press("3")
    stroke((0.2, 0.2), (0.6, 0.2))
    until(lambda: 2 in session.points)
    nodes = session.points[2].way.nodes
    assert len(nodes) > 4 and nodes[-1][1].real / W == pytest.approx(0.6, abs=0.02)
    stage.click(beside, 0.3)                                                # a mouse: the first node of another path
    assert stage.ask("stage.draft.nodes.length") == 1


def test_the_ruler_counts_frames_along_a_path(stage):
    """At half the speed the same way takes twice the frames; ticks that would touch are left out."""
    def ruler(speed):
        return stage.ask("(() => { const { way } = given; return stage.ways.ruler(way, given.speed, 24, 1, 540) })()",
                         {"way": [[0, 0.1, 0.5], [2, 0.9, 0.5]], "speed": speed})
    plain, slow = ruler(1), ruler(0.5)
    assert plain[0]["frame"] == 0 and plain[-1]["frame"] == 48 and plain[-1]["t"] == pytest.approx(2)
    assert slow[-1]["frame"] == 96 and slow[-1]["t"] == pytest.approx(2)
    for ticks in (plain, slow):
        apart = np.diff([tick["t"] for tick in ticks]) / 2 * 0.8 * 540
        assert apart.min() >= 8 and sum(tick["named"] for tick in ticks) >= 3


def test_a_grid_is_dragged_out_and_taken_back(stage, session):
    page = stage.page
    page.get_by_role("button", name="Grid", exact=True).click()
    page.get_by_role("button", name="pins").click()
    page.get_by_label("Spacing of the grid").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")                                   # 14 % -> 20 %
    stage.drag((0.15, 0.2), (0.77, 0.64), steps=5)
    until(lambda: len(session.points) == 6)                                 # 0.62 and 0.44 hold three and two times 0.2
    assert {p.kind for p in session.points.values()} == {"pin"}
    x, y = np.array([at(p) for p in session.points.values()]).T
    np.testing.assert_allclose(sorted(set(x.round(3))), 0.15 + 0.62 * np.array([1, 3, 5]) / 6, atol=0.01)
    np.testing.assert_allclose(sorted(set(y.round(3))), 0.2 + 0.44 * np.array([1, 3]) / 4, atol=0.01)
    page.keyboard.press("Control+z")
    stage.wait("stage.points.size === 0")
    page.keyboard.press("Control+Shift+z")
    stage.wait("stage.points.size === 6")
    page.get_by_label("Spacing of the grid").fill("4")
    stage.drag((0.01, 0.01), (0.99, 0.99), steps=5)                         # 24 x 24 are too many
    stage.wait("document.querySelector('.msk-host').shadowRoot.querySelector('.hint').textContent.includes('more than 144')")
    assert len(session.points) == 6


def test_a_box_chooses_points_and_they_go_together(stage, session):
    page = stage.page
    clicks(stage, (0.3, 0.3), (0.5, 0.4), (0.8, 0.8))
    page.keyboard.press("5")
    stage.drag((0.2, 0.2), (0.6, 0.5), steps=5)
    assert stage.ask("[...stage.chosen]") == [1, 2]
    stage.drag((0.3, 0.3), (0.4, 0.5), let_go=False)
    stage.wait("stage.kept.slice(-6).every(({ marks }) => marks.length === 3 "
               "&& Math.hypot(marks[1].x - 0.6, marks[1].y - 0.6) < 0.005)")
    page.mouse.up()
    until(lambda: not session.board.held)

    def are(*places):
        return not session.board.held and np.allclose([at(p) for p in session.points.values()], places, atol=0.01)
    assert are((0.4, 0.5), (0.6, 0.6), (0.8, 0.8))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    until(lambda: are((0.42, 0.4), (0.62, 0.5), (0.8, 0.8)))
    page.keyboard.press("Control+z")                                        # each is one deed for the whole group
    until(lambda: are((0.42, 0.5), (0.62, 0.6), (0.8, 0.8)))
    assert stage.ask("[...stage.chosen]") == [1, 2]
    page.keyboard.press("Delete")
    until(lambda: set(session.points) == {3})
    page.keyboard.press("Control+z")
    until(lambda: set(session.points) == {1, 2, 3})


def test_a_hundred_points_go_together(stage, session):
    stage.page.keyboard.press("4")
    stage.page.get_by_label("Spacing of the grid").fill("8")
    stage.drag((0.05, 0.05), (0.87, 0.87), steps=5)
    until(lambda: len(session.points) == 100)
    before = np.array([at(p) for p in session.points.values()])
    stage.page.keyboard.press("1")
    stage.drag(tuple(before[44]), tuple(before[44] + 0.05), steps=15)
    until(lambda: not session.board.held and len(session.board.deeds.last()) == 100)                  # one deed
    moved = np.array([at(p) for p in session.points.values()]) - before
    np.testing.assert_allclose(moved, 0.05, atol=0.01)
    assert stage.ask("stage.stats.errors") == []                            # the line held


def test_the_camera_flies_by_key_and_the_flight_is_taken_back(stage, session, asked):
    keys = stage.page.keyboard
    keys.press("d")
    stage.wait("stage.kept.some((f) => f.marks.some((m) => m.kind === 'camera'))")          # and the stream has begun
    tap = asked["right"]
    assert 0.03 < tap < 0.1 and not any(asked[part] for part in ("down", "zoom", "roll", "orbit", "dolly"))
    until(lambda: abs(session.hold.flight.asked["right"]) < 1e-6)
    chunks = [tracks for tracks in session.engine.stream.asked if tracks is not None]
    ids = set.intersection(*(set(tracks.ids[0].tolist()) for tracks in chunks))
    moved = [sum((tracks.xy[0, -1, n, 0] - tracks.xy[0, 0, n, 0]).item() for tracks in chunks
                 for n in [tracks.ids[0].tolist().index(i)]) for i in ids]
    assert ids and max(moved) < 0 and min(moved) >= -tap * W - 0.1                          # to the right: all goes left
    until(lambda: stage.page.get_by_role("button", name="Undo").is_enabled())
    keys.press("Control+z")
    until(lambda: abs(asked["right"]) < 1e-6)                                               # it flies back
    for key, part in (("w", "down"), ("+", "zoom"), ("e", "roll"), ("x", "orbit"), ("r", "dolly")):
        keys.press(key)
        until(lambda part=part: asked[part])
    assert asked["down"] < 0 < min(asked[part] for part in ("zoom", "roll", "orbit", "dolly"))
    keys.down("s")
    until(lambda: asked["down"] > 0.2)                                                      # held, it goes on
    keys.up("s")
    later(stage)
    low = asked["down"]
    later(stage)
    assert asked["down"] == low                                                             # let go, it does not
    keys.press("?")
    listed = " ".join(stage.page.locator(".help.on dt").all_inner_texts())
    assert all(key in listed.split() or key in listed for key in ("W A S D", "+ −", "Q E", "Z X", "R F"))


def test_the_camera_tool_drags_the_ground_and_the_things_on_it(stage, session, asked):
    page = stage.page
    stage.click(*BALL)
    page.keyboard.press("6")
    stage.drag(BALL, (0.5, 0.5))                                            # a point goes with the hand
    until(lambda: np.allclose(at(session.points[1]), (0.5, 0.5), atol=0.01))
    assert not any(asked.values())
    stage.drag((0.85, 0.8), (0.75, 0.85))                                   # the ground: the camera goes the other way
    until(lambda: asked["right"] == pytest.approx(0.1, abs=0.01) and asked["down"] == pytest.approx(-0.05, abs=0.01))
    stage.wait("stage.current.marks.some((m) => m.kind === 'camera') && stage.current.marks.some((m) => m.kind === 'live')")
    page.mouse.wheel(0, -200)
    until(lambda: asked["zoom"] == pytest.approx(0.2))
    page.get_by_role("button", name="Zoom in").click()
    until(lambda: asked["zoom"] > 0.3)
    later(stage)
    near = asked["zoom"]
    later(stage)
    assert asked["zoom"] == near                                            # a click is a tap, and ends
    assert stage.ask("stage.points.size") == 1 and np.allclose(at(session.points[1]), (0.5, 0.5), atol=0.01)
    stage.wait("stage.points.get(1).shown && Math.abs(stage.points.get(1).shown.x - 0.5) < 0.01")   # not the camera's mark


def test_what_the_model_sees_is_shown_beneath_the_picture(stage, session):
    page = stage.page
    clicks(stage, BALL)
    page.get_by_role("button", name="what the model sees").click()
    until(lambda: session.engine.looks)
    stage.expect(page.get_by_text("Nothing has been told yet")).to_be_visible()
    page.keyboard.press("Enter")
    stage.wait("stage.maps.has(stage.current.chunk)")
    page.get_by_text("the motion map, one picture for each latent frame").wait_for()
    stage.expect(".msk-host .map i").to_have_count(3)
    bright = stage.ask(f"""(async () => {{
        const url = {SCREEN}.querySelector('.map i').style.backgroundImage.slice(5, -2), bitmap = new Image();
        bitmap.src = url; await bitmap.decode();
        const c = new OffscreenCanvas(36, 12).getContext('2d'); c.drawImage(bitmap, 0, 0);
        const data = c.getImageData(0, 0, 36, 12).data, lit = [];
        for (let i = 0; i < 12 * 36; i++) if (data[4 * i] > 128) lit.push([i % 36, Math.floor(i / 36)]);
        return lit; }})()""")
    x, y = int(BALL[0] * 12), int(BALL[1] * 12)
    assert bright == [[x, y], [x + 12, y], [x + 24, y]]                      # where the point is, in each of the three
    page.keyboard.press("m")
    until(lambda: not session.engine.looks)
    stage.expect(".msk-host .map").to_be_hidden()


def test_where_the_model_looks_is_shown_beneath_the_picture(stage, session):
    page, legend = stage.page, ".msk-host .legend span"
    page.get_by_role("button", name="where the model looks").click()
    until(lambda: session.engine.gazes)
    stage.expect(legend).to_have_text(["sink", "window", "now"])
    stage.expect(page.get_by_text("here will be where the attention of each chunk goes")).to_be_visible()
    page.keyboard.press("Enter")
    stage.wait("stage.current.chunk > 0 && stage.gazes.has(stage.current.chunk)")
    stage.expect(legend).to_have_text(["sink 38 %", "window 25 %", "now 38 %"])         # all layers; below it each of them
    stage.expect(page.get_by_role("img", name="sink 38 %, window 25 %, now 38 %")).to_be_visible()
    bars = f"[...{SCREEN}.querySelectorAll('.bars i')].map((part) => part.offsetWidth / part.parentElement.offsetWidth)"
    stage.wait(f"{bars}.every((share, i) => "
               "Math.abs(share - [0.375, 0.25, 0.375, 0.5, 0.25, 0.25, 0.25, 0.25, 0.5][i]) < 0.02)")
    stage.expect(".msk-host .spot").to_be_hidden()                                      # no point is chosen
    clicks(stage, BALL)
    stage.expect(page.get_by_role("img", name="Where in the sink the chosen point looks")).to_be_visible()
    lit = stage.ask(f"""(async () => {{
        const url = {SCREEN}.querySelector('.spot i').style.backgroundImage.slice(5, -2), bitmap = new Image();
        bitmap.src = url; await bitmap.decode();
        const c = new OffscreenCanvas(12, 12).getContext('2d'); c.drawImage(bitmap, 0, 0);
        const data = c.getImageData(0, 0, 12, 12).data, lit = [];
        for (let i = 0; i < 144; i++) if (data[4 * i + 3] > 128) lit.push([i % 12, Math.floor(i / 12)]);
        return lit; }})()""")
    assert lit == [[int(BALL[0] * 12), int(BALL[1] * 12)]]
    page.keyboard.press("Escape")
    until(lambda: session.engine.gazer == -1)
    stage.expect(".msk-host .spot").to_be_hidden()
    stage.wait(f"stage.current.chunk > 6 && {SCREEN}.querySelector('.given').width === 96")
    assert stage.ask("stage.gazes.size") <= 5                                           # however long it plays
    page.keyboard.press("g")
    until(lambda: not session.engine.gazes)
    stage.expect(".msk-host .gaze").to_be_hidden()


def test_what_a_point_takes_is_outlined_and_a_page_can_choose_otherwise(browser, tmp_path):
    pytest.importorskip("cv2")
    page, lobby, url = serve("exact", free_port(), folder=tmp_path, cut=cut, rest=True)
    drawn = f"""(() => {{ const c = {SCREEN}.querySelector('.top'), w = c.width, h = c.height, got = new Set();
        const data = c.getContext('2d').getImageData(0, 0, w, h).data;
        for (let i = 0; i < data.length; i += 4) {{
          const [r, g, b, a] = data.subarray(i, i + 4), x = i / 4 % w, y = Math.floor(i / 4 / w);
          if (g > 170 && r < 120 && b < 190 && a > 200) got.add(Math.floor(x / w * 48) + 48 * Math.floor(y / h * 48)); }}
        return got.size; }})()"""
    try:
        stage = Stage(browser, url).state("ready").wait("stage.current")
        session = lobby.player.session
        stage.click(*BALL)
        until(lambda: session.points and session.hold.things)
        stage.wait(f"{drawn} > 12")                                     # a line about the ball, not a disc in it
        around = stage.ask(drawn)
        stage.page.get_by_role("button", name="its spot").click()
        until(lambda: not session.hold.grips)
        stage.wait(f"{drawn} < {around} - 6")
        still = stage.page.get_by_role("button", name="Still")
        stage.expect(still).to_have_attribute("aria-pressed", "true")
        stage.page.keyboard.press("h")
        until(lambda: not session.hold.rest)
        stage.wait(f"{SCREEN}.querySelector('[data-do=rest]').getAttribute('aria-pressed') === 'false'")
        stage.page.get_by_role("button", name="the thing", exact=True).click()
        until(lambda: session.hold.things)
        stage.drag(BALL, (0.7, 0.6))
        way = 0.7 * W - exact.BALL_AT[0]
        until(lambda: abs((session.hold.things[0].here() - session.hold.things[0].origins).real.mean() - way) < 2)
        assert [c for c in stage.complaints if "getImageData" not in c] == []       # that is this test's own
    finally:
        lobby.close()
        page.close(verbose=False)


def test_keys_alone_lay_points_boxes_and_paths(stage, session):
    keys = stage.page.keyboard
    stage.page.locator(".msk-host .stage").focus()
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowUp", "i"):             # the cross begins in the middle
        keys.press(key)
    until(lambda: 1 in session.points)
    np.testing.assert_allclose(at(session.points[1]), (0.48, 0.4), atol=0.01)
    for key in ("Escape", "2", "ArrowDown", "i", "Escape"):
        keys.press(key)
    until(lambda: 2 in session.points)
    assert session.points[2].kind == "pin"
    for key in ("3", "ArrowDown", "Shift+ArrowDown", "i", "Shift+ArrowRight", "Shift+ArrowRight", "i", "Enter"):
        keys.press(key)
    until(lambda: 3 in session.points)
    stage.wait("stage.points.size === 3")
    assert len(session.points[3].way.nodes) == 2
    keys.press("Escape")
    keys.press(".")
    assert stage.ask("[...stage.chosen]") == [1]
    stage.expect(".hint").to_have_text("Handle, 1 of 3: 48 % across, 40 % down")        # for who does not see it
    keys.press(",")
    assert stage.ask("[...stage.chosen]") == [3]
    stage.expect(".hint").to_contain_text("Path, 3 of 3")
    keys.press("Escape")
    keys.press("ArrowDown")
    stage.expect(".hint").to_contain_text("Cross: ")
    keys.press("Control+a")
    assert sorted(stage.ask("[...stage.chosen]")) == [1, 2, 3]
    keys.press("Delete")
    until(lambda: not session.points)


def test_where_the_keyboard_is_is_seen_and_pictures_have_names(stage):
    stage.expect(stage.page.get_by_role("button", name="a red ball")).to_have_count(1)
    assert stage.page.get_by_role("button", name="Thumbnail").count() == 0
    stage.page.locator("#msk-gallery .thumbnail-item").last.focus()
    seen = []
    for _ in range(5):
        stage.page.keyboard.press("Tab")
        seen.append(stage.page.evaluate("((e) => [e.tagName, getComputedStyle(e).outline])(document.activeElement)"))
    assert {"BUTTON", "TEXTAREA", "INPUT"} == {tag for tag, _ in seen}
    assert all("solid" in outline for _, outline in seen)


def test_the_list_of_keys_is_scrolled_by_keys_where_it_is_longer_than_the_picture(browser, canvas):
    stage = Stage(browser, canvas[1], 1280, 600).state("ready").wait("stage.current")
    stage.page.locator(".msk-host .stage").focus()
    stage.page.keyboard.press("?")
    stage.expect("[data-do=help]").to_have_attribute("aria-expanded", "true")
    last = stage.page.locator(".msk-host .help dd").last
    assert not shown(last)
    for _ in range(30):
        stage.page.keyboard.press("ArrowDown")
    assert shown(last) and stage.ask("stage.cross") is None
    stage.page.keyboard.press("Escape")
    stage.expect("[data-do=help]").to_have_attribute("aria-expanded", "false")
    stage.page.close()
    assert stage.complaints == []


def shown(locator):
    return locator.evaluate("(e) => e.getBoundingClientRect().bottom <= e.closest('.screen').getBoundingClientRect().bottom")


def test_on_a_laptop_picture_tools_and_their_settings_are_seen_at_once(browser, canvas):
    stage = Stage(browser, canvas[1], 1280, 800).state("ready").wait("stage.current").steady()
    box = stage.page.locator(".msk-host .options").bounding_box()
    stage.page.close()
    assert box["y"] + box["height"] <= 800


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_light_and_dark_can_be_read(browser, canvas, scheme):
    """The stage follows the page; every word on a visible button stands out from its ground as WCAG AA asks (4.5 : 1)."""
    stage = Stage(browser, canvas[1], color_scheme=scheme).state("ready").wait("stage.current")
    stage.wait(f"{SCREEN}.querySelector('.stage').dataset.theme === '{scheme}'")
    low = []
    for tool in "123456":
        stage.page.keyboard.press(tool)
        low += stage.ask("""(() => {
            const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
            const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => {
                const v = c[i] / 255; return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
            const ground = (e) => { for (; e; e = e.parentElement) {
                const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3) return c; } };
            const root = document.querySelector('.msk-host').shadowRoot;
            return [...root.querySelectorAll('button, label, .options span, .state')]
                .filter((e) => e.offsetParent && !e.disabled)
                .map((e) => {
                    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a);
                    return [e.textContent.trim(), (a + 0.05) / (b + 0.05)]; })
                .filter(([, ratio]) => ratio < 4.5); })()""")
    stage.page.close()
    assert low == [] and stage.complaints == []


def test_on_a_phone_nothing_sticks_out_and_fingers_find_the_tools(browser, canvas):
    stage = Stage(browser, canvas[1], width=390, height=844, has_touch=True, device_scale_factor=2)
    stage.state("ready").wait("stage.current").steady()
    for tool in ("live", "pin", "path", "grid", "select", "camera"):
        stage.page.locator(f".msk-host button[data-tool={tool}]").tap()
        assert stage.ask("stage.tool") == tool
        assert stage.page.evaluate("document.documentElement.scrollWidth") <= 390
        for box in stage.ask(f"[...{SCREEN}.querySelectorAll('button, select, input')].filter((e) => e.offsetParent)"
                             ".map((e) => e.getBoundingClientRect().toJSON())"):
            assert box["left"] >= 0 and box["right"] <= 390
        tall = stage.ask(f"{SCREEN}.querySelector('button[data-tool={tool}]').offsetHeight")
        assert tall >= 44
    stage.page.close()
    assert stage.complaints == []


def test_on_a_phone_a_picture_that_is_picked_is_seen_and_no_key_is_asked_for(browser, canvas):
    stage = Stage(browser, canvas[1], width=390, height=844, has_touch=True, is_mobile=True)
    stage.state("ready").wait("stage.current").steady()
    stage.page.locator("#msk-gallery .thumbnail-item").nth(3).tap()
    stage.wait("stage.kept.filter((f) => f.still).length > 1").state("ready").steady()
    assert stage.page.locator(".msk-host .screen").bounding_box()["y"] >= 0
    stage.page.get_by_role("button", name="Start").tap()
    stage.wait("stage.current.index > 3")
    stage.page.get_by_role("button", name="End").tap()
    stage.expect(".hint").to_have_text("Ended: press Again to begin anew")
    stage.page.locator(".msk-host .top").tap()
    stage.expect(".hint").to_have_text("This take has ended: press Again to begin anew")
    stage.page.close()
    assert stage.complaints == []


def test_fingers_draw_a_path_and_pinch_the_camera(browser, canvas):
    stage = Stage(browser, canvas[1], width=390, height=844, has_touch=True, device_scale_factor=2)
    stage.state("ready").wait("stage.current").steady()
    session, line = canvas[0].player.session, stage.page.context.new_cdp_session(stage.page)

    def touch(kind, *places):
        points = [dict(zip("xy", stage.at(*place)), id=i) for i, place in enumerate(places)]
        line.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    stage.page.locator(".msk-host button[data-tool=path]").tap()
    touch("touchStart", BALL)
    for i in range(1, 16):
        touch("touchMove", (BALL[0] + 0.03 * i, BALL[1]))
        stage.page.wait_for_timeout(20)
    touch("touchEnd")
    until(lambda: 1 in session.points)
    np.testing.assert_allclose(session.points[1].way.nodes[-1][1].real / W, BALL[0] + 0.45, atol=0.02)
    stage.page.wait_for_timeout(700)                            # Chromium takes a tap right after a swipe for its end
    stage.page.locator(".msk-host button[data-tool=camera]").tap()
    with counted(session) as asked:
        touch("touchStart", (0.4, 0.8), (0.6, 0.8))
        for i in range(1, 11):
            touch("touchMove", (0.4 - 0.01 * i, 0.8), (0.6 + 0.01 * i, 0.8))
            stage.page.wait_for_timeout(20)
        touch("touchEnd")
        until(lambda: asked["zoom"] == pytest.approx(1, abs=0.05))           # twice as far apart
        assert abs(asked["right"]) < 0.02 and abs(asked["roll"]) < 2
    stage.wait("stage.kept.some((f) => f.marks.some((m) => m.kind === 'camera'))")
    stage.page.close()
    assert stage.complaints == []


# What the server says comes 400 ms late.
LATE = """{
    const own = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
    Object.defineProperty(WebSocket.prototype, "onmessage", {
        set(hear) { own.set.call(this, (event) => setTimeout(() => hear.call(this, event), 400)); } }); }"""


def press_in_haste(stage, session):
    """Three steps of a point and three of a path's speed, each pressed before the last has been answered."""
    keys = stage.page.keyboard
    stage.click(*BALL)
    for _ in range(3):
        keys.press("ArrowRight")
    wanted = BALL[0] + 0.06
    until_asked(stage, lambda: 1 in session.points and abs(at(session.points[1])[0] - wanted) < 0.005)
    keys.press("Escape")
    keys.press("3")
    clicks(stage, (0.2, 0.8), (0.8, 0.8))
    keys.press("Enter")
    stage.page.get_by_label("Speed of the path").focus()
    for _ in range(3):
        keys.press("ArrowRight")
    until_asked(stage, lambda: 2 in session.points and session.points[2].way.speed == pytest.approx(2 ** 0.75))
    stage.page.locator(".msk-host .stage").focus()
    keys.press("Control+a")
    keys.press("Delete")
    assert stage.ask("stage.points.size") == 0
    for _ in range(16):                                                     # and no older word brings them back
        assert stage.ask("stage.points.size") == 0
        stage.page.wait_for_timeout(50)
    assert not session.points


def test_on_a_slow_line_no_key_is_lost(browser, canvas):
    stage = Stage(browser, canvas[1], before=lambda page: page.add_init_script(LATE)).state("ready").wait("stage.current")
    press_in_haste(stage, canvas[0].player.session)
    stage.page.close()
    assert stage.complaints == []


def twice(stage, key):
    """Press a key twice in one breath: no answer can come in between. What was said to the server, and it was heard."""
    said = stage.ask("""((own) => {
        const said = [], press = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: given, bubbles: true }));
        stage.host.send = (word) => said.push(word) && own(word);
        press(); press();
        stage.host.send = own;
        return said.filter((word) => word.n); })(stage.host.send.bind(stage.host))""", key)
    return [{name: value for name, value in word.items() if name != "n"} for word in said], said[-1]["n"]


def test_a_key_pressed_twice_before_it_is_answered_takes_itself_back(stage, session):
    still = session.hold.rest
    said, last = twice(stage, "h")
    assert said == [{"type": "rest", "on": not still}, {"type": "rest", "on": still}]
    until(lambda: session.heard >= last)
    assert session.hold.rest is still
    stage.expect(".msk-host [data-do=rest]").to_have_attribute("aria-pressed", str(still).lower())
    assert twice(stage, "Enter")[0] == [{"type": "start"}, {"type": "stop"}]
    stage.state("ended").expect(".msk-host [data-do=toggle]").to_contain_text("Again")
    stage.page.keyboard.press("Enter")
    stage.state("playing").wait("stage.current.index > 3")
    assert twice(stage, " ")[0] == [{"type": "pause"}, {"type": "resume"}]
    index = stage.ask("stage.current.index")
    stage.state("playing").wait(f"stage.current.index > {index + 30}")
    stage.expect(".msk-host [data-do=hold]").to_contain_text("Pause")


def test_a_key_that_comes_too_late_is_answered_as_well(stage, session):
    stage.page.keyboard.press("Enter")
    stage.state("playing").wait("stage.current.index > 3")
    stage.ask("((own) => { stage.host.send = (word) => word.type === 'pause' ? (stage.late = () => own(word)) : own(word); "
              "})(stage.host.send.bind(stage.host))")
    stage.page.keyboard.press(" ")
    session.stop()                                                          # while the key is on its way
    stage.state("ended").ask("stage.late() && 0")
    stage.expect(".msk-host [data-do=toggle]").to_contain_text("Again")     # and not "End", of what was to be paused
    stage.page.keyboard.press("Enter")
    stage.state("playing")


KERNEL = """async (script) => {
    const pack = (b) => btoa(String.fromCharCode(...new Uint8Array(b)));
    const unpack = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const hears = [], model = { on: (_, hear) => hears.push(hear), off() {}, async send(content, _, buffers = []) {
        const { answer, frames } = await window.kernel(content, buffers.map(pack));
        hears.forEach((hear) => hear(answer, frames.map(unpack))); } };
    const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    const cell = document.querySelector(".cell");
    module.default.render({ model, el: cell });
    cell.firstChild.className = "msk-host"; }"""


@pytest.fixture
def cell(browser):
    """(a stage in a notebook's cell, its session): the widget's own module, asked and answered as a kernel would do it."""
    kit = exact.exact_kit()

    def open_stream(prompt, image, seed):
        return exact.ExactStream(kit, prompt, image, seed=seed)
    with Session(open_stream, kit.geometry, eye=eye, watch=watch) as session:
        session.open(exact.picture(), "a red ball")
        pulled, stage = Pulled(session), Stage(browser, "about:blank")

        def kernel(content, buffers):
            answer, frames = pulled.answer(content, [base64.b64decode(b) for b in buffers])
            return {"answer": answer, "frames": [base64.b64encode(f).decode() for f in frames]}
        stage.page.expose_function("kernel", kernel)
        stage.page.set_content("<body data-jp-theme-light=true><textarea></textarea><div class=cell></div></body>")
        stage.page.evaluate(KERNEL, STAGE_JS + RENDER)
        yield stage.state("ready").wait("stage.current"), session
        stage.page.close()
    assert stage.complaints == []


def test_in_a_notebook_no_key_is_lost_either(cell):
    stage, session = cell
    stage.page.evaluate("() => { const { kernel } = window; window.kernel = (...asked) => kernel(...asked)"
                        ".then((answer) => new Promise((done) => setTimeout(done, 400, answer))); }")
    press_in_haste(stage, session)


def test_a_second_view_of_a_cell_shows_the_same_stage(cell):
    """As when a notebook is opened again while its kernel runs."""
    stage, session = cell
    stage.click(*BALL)
    until_asked(stage, lambda: 1 in session.points)
    stage.page.evaluate("() => document.querySelector('.cell').replaceChildren()")
    stage.page.evaluate(KERNEL, STAGE_JS + RENDER)
    stage.state("ready").wait("stage.points.size === 1")
    stage.drag(BALL, (0.6, 0.6))
    stage.rests_at(0.6, 0.6)


def test_in_a_notebook_the_tools_are_the_same(cell):
    stage, session = cell
    stage.wait("stage.current").wait(f"{SCREEN}.querySelector('.stage').dataset.theme === 'light'")
    stage.page.keyboard.press("3")                                      # not for the stage: it has not been touched
    assert stage.ask("stage.tool") == "live"
    stage.page.get_by_role("button", name="Path", exact=True).click()
    clicks(stage, BALL, (0.6, 0.6))
    for key in ("Enter", "m", "g", "Enter"):
        stage.page.keyboard.press(key)
    until_asked(stage, lambda: session.state == "playing" and session.points[1].kind == "path")
    stage.rests_at(0.6, 0.6).wait("stage.maps.has(stage.current.chunk)").wait("stage.gazes.has(stage.current.chunk)")
    stage.page.keyboard.press("d")
    stage.wait("stage.current.marks.some((m) => m.kind === 'camera')")


def test_a_way_that_lasts_as_long_goes_on():
    """What the page sends back is rounded; that must not begin the way anew, nor must a node that is dragged."""
    way = Way(((0.0, 10 + 10j), (1.23456, 20.123456 + 11j)))
    assert Way(((0.0, 10 + 10j), (1.235, 20.12346 + 11j)), "swing", 2.0).goes_on_as(way)
    assert Way(((0.0, 10 + 10j), (0.5, 3j), (1.235, 20.3 + 11j))).goes_on_as(way)
    assert not Way(((0.0, 10 + 10j), (1.3, 20.12346 + 11j))).goes_on_as(way)
