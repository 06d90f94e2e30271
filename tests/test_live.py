"""The session, its protocol and its server: points follow pointers, and nothing a page sends breaks anything."""
import asyncio
import io
import json
import math
import random
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from msk.config import Geometry
from msk.live import protocol
from msk.live.choose import Choice
from msk.live.follow import MAX_TRAIL, Clock, Follow, Follower
from msk.live.pace import Pace
from msk.live.protocol import ProtocolError, Sample
from msk.live.record import Take, parse_session, read_session, recover
from msk.live.server import LADDER, Link, Lobby, Pictures, Tokens
from msk.live.session import Session
from msk.models import Offer
from msk.text import unknown_words
from tests.pages import exact

W = exact.GEOMETRY.width


def until(true, seconds=20.0):
    """Wait for it; a loaded machine may take its time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def play():
    """A running session on the exact environment, and all it showed and said."""
    sessions = []

    def begin(open_it=True, cost=0.01, **options):
        streams, kit = [], exact.exact_kit()

        def open_stream(prompt, image, seed):
            streams.append(exact.ExactStream(kit, prompt, image, seed=seed, cost=cost))
            return streams[-1]

        session = Session(open_stream, kit.geometry, name="exact", **options)
        session.frames, session.events, session.streams = [], [], streams
        session.on_frame, session.on_event = session.frames.append, session.events.append
        if open_it:
            session.open(exact.picture(), "a red ball", 3)
        sessions.append(session)
        return session

    yield begin
    for session in sessions:
        session.close()


def moving(session):
    return [f for f in session.frames if not f.still]


# -- following ---------------------------------------------------------------------------------------------------------

def hand(times, place):
    """A follower whose hand is sampled at 60 Hz; chunk after chunk, as the engine asks."""
    follower, path, now = Follower(place(0.0), 0.0), [], 0.0
    follower.held = True
    for end in times:
        while now < end:
            now += 1 / 60
            follower.put(place(now), now)
        path += follower.path(12, W, now)
    return np.array(path)


def test_a_steady_drag_becomes_a_steady_motion_that_keeps_up():
    speed = 30.0                                                # pixels a second
    path = hand([0.5 * k for k in range(1, 9)], lambda t: complex(5 + speed * t, 40))
    steps = np.abs(np.diff(path[36:]))
    np.testing.assert_allclose(steps, speed / 24, rtol=0.05)    # no pulse where chunks join
    lag = (5 + speed * 4.0) - path[-1].real                     # behind the hand, at the moment the last chunk was asked for
    assert abs(lag + Follow().foresight * speed) < 0.05 * speed


def test_a_resting_hand_is_reached_within_a_chunk_and_not_overrun():
    path = hand([0.5, 1.0, 1.5, 2.0], lambda t: complex(20 + 40 * min(t, 0.9), 40))
    rest = 20 + 40 * 0.9
    assert abs(path[23] - complex(rest, 40)) < 5
    assert abs(path[-1] - complex(rest, 40)) < 0.01
    assert path.real.max() < rest + 40 * 0.15 + 0.5             # at most as far as the pointer's speed was believed


def test_no_step_is_longer_than_the_model_can_follow_and_the_hand_is_still_reached():
    jump = hand([0.5, 1.0, 1.5], lambda t: complex(5 if t < 0.1 else 85, 40))
    assert np.abs(np.diff(jump)).max() <= Follow().max_step * W * 1.0001
    assert abs(jump[-1] - complex(85, 40)) < 0.5


def test_a_circle_stays_a_circle():
    def circle(t):
        return 48 + 48j + 20 * np.exp(2j * math.pi * t / 4)
    path = hand([0.5 * k for k in range(1, 17)], circle)
    radius = np.abs(path[24:] - (48 + 48j))
    assert radius.min() > 17 and radius.max() < 23


def test_the_path_between_two_samples_is_straight_and_in_time():
    follower = Follower(0j, 0.0)
    follower.put(10 + 0j, 1.0)
    follower.put(10 + 20j, 2.0)
    assert follower._pointer(0.25) == 2.5 and follower._pointer(1.5) == 10 + 10j and follower._pointer(9) == 10 + 20j


def test_the_trail_is_bounded_and_time_never_runs_backwards():
    follower = Follower(0j, 0.0)
    for i in range(5000):
        follower.put(complex(i), random.Random(i).random() * 10)
    times = [t for t, _ in follower.trail]
    assert len(times) <= MAX_TRAIL and times == sorted(set(times)) and follower.target == 4999


def test_the_first_frame_of_a_video_has_the_point_where_it_was_put():
    follower = Follower(7 + 7j, 0.0)
    follower.put(60 + 7j, 0.5)
    path = follower.path(9, W, 0.5, includes_now=True)
    assert path[0] == 7 + 7j and len(path) == 9


def test_the_quickest_message_tells_the_difference_between_two_clocks():
    clock = Clock()
    assert clock.here(1000.0, 50.0) == 50.0                     # the first message: as if without a journey
    assert clock.here(1100.0, 50.2) == pytest.approx(50.1)      # took 0.1 s longer: it is 0.1 s old
    assert clock.here(99999.0, 50.3) <= 50.3                    # nothing comes from the future


# -- the session -------------------------------------------------------------------------------------------------------

def test_the_thing_under_the_point_goes_where_the_pointer_goes(play):
    session = play()
    session.add(1, exact.BALL_AT[0] / W, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.7, 0.3)])
    until(lambda: moving(session) and abs(moving(session)[-1].marks[0].x - 0.7) < 0.005)
    x, y = exact.red_centre(moving(session)[-1].picture)
    assert abs(x - 0.7 * W) < 1.5 and abs(y - 0.3 * W) < 1.5


def test_every_frame_shows_the_thing_where_its_mark_says(play):
    session = play()
    session.add(1, exact.BALL_AT[0] / W, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.75, 0.6)])
    until(lambda: len(moving(session)) > 30)
    for frame in moving(session):
        x, y = exact.red_centre(frame.picture)
        assert abs(x - frame.marks[0].x * W) < 1.2 and abs(y - frame.marks[0].y * W) < 1.2


def test_the_model_gets_tracks_of_the_frames_it_wants_with_one_id_per_point_for_life(play):
    session = play()
    session.add(1, 0.3, 0.5)
    session.add(2, 0.8, 0.2, kind="pin")
    session.start()
    until(lambda: session.streams and len(session.streams[0].asked) >= 2)
    session.add(3, 0.5, 0.5)                                    # in mid-stream
    until(lambda: len(session.streams[0].asked) >= 5)
    asked = session.streams[0].asked
    assert [t.xy.shape[1] for t in asked[:3]] == [9, 12, 12]
    first, last = asked[0].ids[0].tolist(), asked[-1].ids[0].tolist()
    assert last[:2] == first and len(set(last)) == 3 and all(0 <= i < session.max_id for i in last)
    assert all(t.visible.all() and t.xy.dtype.is_floating_point for t in asked)
    pinned = [t.xy[0, :, t.ids[0].tolist().index(first[1])] for t in asked]
    assert all((xy == pinned[0][0]).all() for xy in pinned)


def test_nothing_drawn_asks_for_nothing(play):
    session = play()
    session.start()
    until(lambda: session.streams and session.streams[0].asked)
    assert session.streams[0].asked == [None]


def test_frames_come_at_an_even_pace_and_no_faster(play):
    session = play(cost=0.0)
    session.start()
    until(lambda: len(moving(session)) > 40)
    due = np.array([f.due for f in moving(session)])
    assert [f.index for f in moving(session)] == list(range(len(due)))
    assert np.median(np.diff(due)) == pytest.approx(1 / 24, rel=0.02) and np.diff(due).min() > 0.9 / 24
    assert len(session.player.frames) <= 12                            # a small buffer: never more than one chunk ahead


def test_a_chunk_is_made_as_late_as_playback_allows(play):
    session = play(cost=0.02)
    session.start()
    until(lambda: session.player.chunk >= 4)
    asked = []
    step = session.streams[0].step
    session.streams[0].step = lambda tracks, steps: (
        asked.append(session.player.next_due - time.monotonic()), step(tracks))[1]
    until(lambda: len(asked) >= 3)
    assert min(asked) < 0.4                                     # of the half second that a chunk plays


def test_a_picture_that_is_opened_as_a_chunk_begins_is_not_shown_the_old_one(play):
    session = play()
    until(lambda: session.state == "ready")
    with session.changed:
        session.open(exact.picture(), "another", 4)
        session.start()
        session.engine._make_chunk()                            # it was decided on just before
        assert not session.streams[0].asked and session.player.index == 0


def test_pause_holds_and_resume_goes_on_with_the_next_frame(play):
    session = play()
    session.start()
    until(lambda: len(moving(session)) > 15)
    session.pause()
    time.sleep(0.1)
    held = len(moving(session))
    time.sleep(0.4)
    assert len(moving(session)) == held and session.state == "paused"
    session.resume()
    until(lambda: len(moving(session)) > held + 5)
    assert [f.index for f in moving(session)] == list(range(len(moving(session))))


def test_reset_returns_points_to_where_they_were_put_and_forgets_later_ones(play):
    session = play()
    session.add(1, 0.3, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.8, 0.8)])
    until(lambda: len(moving(session)) > 12)
    session.add(2, 0.5, 0.5)
    session.reset()
    until(lambda: session.state == "ready")
    points = session.describe()["points"]
    assert [p["id"] for p in points] == [1] and points[0]["x"] == pytest.approx(0.3)
    session.start()
    until(lambda: session.streams[0].asked and session.streams[0].asked[-1].xy.shape[1] == 9, 20)
    assert session.streams[0].asked[-1].xy[0, 0, 0, 0] == pytest.approx(0.3 * W)


def test_undo_takes_back_one_deed_at_a_time(play):
    session = play()
    session.add(1, 0.3, 0.5)
    session.grab([1])
    session.move([Sample(1.0, 1, 0.6, 0.5)])
    session.release([1])
    session.pin([1])
    session.remove([1])
    seen = []
    for _ in range(5):
        session.undo()
        seen.append([(p["kind"], round(p["x"], 2)) for p in session.describe()["points"]])
    for _ in range(4):
        session.redo()
    assert session.describe()["points"] == [] and session.describe()["undo"] == 4
    assert seen[0][0][0] == "pin" and seen[1][0][0] == "live" and seen[2] == [("live", 0.3)] and seen[3] == seen[4] == []


def test_what_was_taken_away_comes_back_also_after_a_reset_and_where_it_was_put(play):
    session = play()
    session.add(1, 0.3, 0.5)
    session.rest(True)
    session.path(2, [(0, 0.2, 0.2), (1, 0.8, 0.2)])
    session.start()
    session.grab([1, 2])
    session.move([Sample(1.0, 1, 0.6, 0.5), Sample(1.0, 2, 0.3, 0.4)])
    session.release([1, 2])
    session.pin([1])
    session.remove([1, 2])
    session.reset()
    assert session.describe()["points"] == []

    def seen():
        return [(p["id"], p["kind"], round(p["x"], 2), round(p["y"], 2)) for p in session.describe()["points"]]
    session.undo()
    assert seen() == [(1, "pin", 0.3, 0.5), (2, "path", 0.2, 0.2)]
    session.undo()
    assert seen()[0] == (1, "live", 0.3, 0.5)                       # and not where a hand had led it in that video
    session.undo()
    assert len(seen()) == 1                                         # the drag is of a video that has ended
    session.undo()
    assert session.hold.rest is False and len(seen()) == 1
    session.redo()
    assert session.hold.rest is True


def test_whole_things_or_spots_is_a_deed_as_well(play):
    session = play(cut=lambda picture, place: np.zeros(picture.shape[:2], bool))
    session.grip(False)
    session.undo()
    assert session.hold.grips
    session.redo()
    assert not session.hold.grips


def test_a_point_that_is_let_go_arrives_and_then_says_no_more(play):
    session = play()
    session.add(1, 0.3, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.6, 0.5)])
    until(lambda: len(moving(session)) > 6)
    session.release([1], keep=False)
    asked = session.streams[0].asked
    until(lambda: asked[-1] is None)
    assert asked[-2].xy[0, -1, 0, 0] == pytest.approx(0.6 * W, abs=1) and not session.points


def test_a_stream_that_fails_says_so_and_can_be_begun_again(play):
    session = play()
    session.start()
    until(lambda: len(moving(session)) > 3)
    session.streams[0].step = lambda tracks, steps: 1 / 0
    until(lambda: session.state == "failed")
    assert any("division by zero" in e["message"] for e in session.events if e["type"] == "error")
    count = len(moving(session))
    session.start()
    until(lambda: len(moving(session)) > count + 9)
    assert len(session.streams) == 2


def test_points_are_bounded_and_unknown_ones_are_refused_in_one_sentence(play):
    session = play()
    for i in range(protocol.MAX_POINTS):
        session.add(i, 0.5, 0.5)
    with pytest.raises(ProtocolError, match="144 points already, of 144"):
        session.add(999, 0.5, 0.5)
    with pytest.raises(ProtocolError, match="no point 4000"):
        session.grab([4000])
    session.move([Sample(0.0, 4000, 0.5, 0.5)])                 # a straggler of a removed point: passed over
    with pytest.raises(ProtocolError, match="point 5 already"):
        session.add(5, 0.5, 0.5)


def test_closing_in_the_middle_ends_both_threads_and_keeps_what_was_made(play, tmp_path):
    session = play(folder=tmp_path)
    session.start()
    until(lambda: len(moving(session)) > 12)
    session.close()
    assert not any(t.is_alive() for t in session._threads)
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".json", ".mp4"]


def test_a_stream_nobody_touches_rests(play):
    session = play(idle_after=0.3)
    session.start()
    until(lambda: session.state == "paused")
    assert any("nobody has touched" in e.get("message", "") for e in session.events)


# -- recordings --------------------------------------------------------------------------------------------------------

def frames_of(path):
    import av
    with av.open(str(path)) as video:
        return [f.to_ndarray(format="rgb24") for f in video.decode(video=0)], dict(video.metadata)


def test_a_take_holds_the_frames_that_were_shown_and_the_paths_that_were_asked(play, tmp_path):
    session = play(folder=tmp_path)
    session.add(1, exact.BALL_AT[0] / W, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.7, 0.5)])
    until(lambda: len(moving(session)) > 20)
    middle = session.export(tmp_path / "middle.mp4")            # while it runs
    until(lambda: len(moving(session)) > 40)
    session.stop()
    until(lambda: session.take.path is not None)
    shown = [f.picture for f in moving(session)]
    frames, metadata = frames_of(session.take.path)
    assert len(frames) == len(shown) == session.take.frames and len(frames_of(middle)[0]) >= 20
    for i in (0, 12, 25, len(shown) - 1):
        assert np.abs(np.asarray(exact.red_centre(frames[i])) - exact.red_centre(shown[i])).max() < 1.0
    assert "AI-generated" in metadata["comment"] and json.loads(metadata["msk"])["seed"] == 3
    kept = read_session(session.take.path.with_suffix(".json"))
    assert kept["prompt"] == "a red ball" and kept["shown"] == len(shown) and kept["chunks"][0]["frames"] == 9
    asked = session.streams[0].asked[1]
    np.testing.assert_allclose(kept["chunks"][1]["xy"], asked.xy[0], atol=1e-3)
    assert kept["chunks"][1]["ids"] == asked.ids[0].tolist()


def test_a_session_file_plays_the_same_frames_again_to_the_last_bit(kit, tmp_path):
    import torch

    from msk.live.replay import replay, whole
    from msk.stream import Stream
    session = Session(lambda prompt, image, seed: Stream(kit, prompt, image, seed=seed), kit.geometry, folder=tmp_path,
                      name="toy", max_id=kit.preset.tracks.max_id, fps=5000)         # so fast that steps have to go
    shown = []
    session.on_frame = shown.append
    try:
        session.open(exact.picture(), "snow", 4)
        session.add(1, 0.3, 0.5)
        session.path(2, [(0.0, 0.2, 0.2), (1.0, 0.8, 0.2)], loop="swing")
        session.start()
        session.grab([1])
        session.move([Sample(1.0, 1, 0.7, 0.37)])
        until(lambda: len(shown) > 12)
        session.say("rain")
        session.camera(right=0.2, down=0, zoom=0.1, roll=0, orbit=0, dolly=0)
        until(lambda: len(shown) > 34)
        session.anchor()
        until(lambda: len(shown) > 58)
        session.undo()
        session.say("snow")
        until(lambda: len(shown) > 82)
        session.stop()
        until(lambda: session.take.path is not None)
        kept = read_session(session.take.file())
    finally:
        session.close()
    frames = [f.picture for f in shown if not f.still]
    again = torch.cat([made.clamp(0, 1).mul(255).round().byte() for made in replay(kit, kept)])
    assert kept["shown"] == len(frames) == len(again)
    assert all(np.array_equal(a, b.permute(1, 2, 0).numpy()) for a, b in zip(frames, again))
    assert any("say" in c for c in kept["chunks"])
    assert [c["anchor"] for c in kept["chunks"] if "anchor" in c] == [[True], [False]]
    assert {c.get("steps") for c in kept["chunks"]} == {None, 2, 1}
    assert whole(kept).xy.shape[1] == sum(c["frames"] for c in kept["chunks"])


# -- pace --------------------------------------------------------------------------------------------------------------

def test_a_late_chunk_is_forgiven_and_two_take_a_step_off():
    pace = Pace(3, fewest=2)
    assert [pace.took(1.2, 1), pace.took(.8, 1), pace.took(1.2, 1)] == [False] * 3 and pace.steps == 3
    assert pace.took(1.1, 1) and pace.steps == 2
    assert not pace.took(5, 1) and not pace.took(5, 1) and pace.steps == 2, "and there are never fewer than the fewest"


def test_a_step_comes_back_when_four_chunks_had_time_for_it():
    pace = Pace(3, fewest=1)
    for _ in range(4):
        pace.took(2, 1)
    assert pace.steps == 1
    assert [pace.took(.4, 1) for _ in range(4)] == [False, False, False, True] and pace.steps == 2
    assert not any(pace.took(.7, 1) for _ in range(8)), "three steps would take 1.05 of the time"
    assert [pace.took(.6, 1) for _ in range(4)][-1] and pace.steps == 3
    assert not any(pace.took(.1, 1) for _ in range(8)) and pace.steps == 3, "there are no more"


def test_a_machine_that_falls_behind_makes_chunks_in_fewer_steps_and_says_so(play):
    session = play(cost=.6, fps=24, fewest=2)       # three steps: .6 s for half a second of video; two: .4 s
    session.start()
    until(lambda: session.streams and len(session.streams[0].stepped) >= 5, 30)
    assert session.streams[0].stepped[:5] == [3, 3, 2, 2, 2]
    said = [event["steps"] for event in session.events if event["type"] == "chunk"]
    assert said[:4] == [[3, 3], [3, 3], [2, 3], [2, 3]]


def test_who_asks_for_what_the_model_does_not_know_is_told_so(play):
    session = play(unknown=unknown_words)
    told = lambda: [e["message"] for e in session.events if e["type"] == "note"]
    session.say("a red fish, it is snowing")
    assert not told()
    session.say("a dragon in the snow, breathing fire")
    assert told() == ["words that this model does not know: dragon, breathing, fire"]


def test_another_prompt_and_a_fresh_anchor_come_with_the_next_chunk_and_are_kept(play, tmp_path):
    session = play(folder=tmp_path)
    with pytest.raises(ProtocolError, match="start the stream first"):
        session.anchor()
    session.start()
    until(lambda: len(moving(session)) > 6)
    session.hear({"type": "anchor"})
    session.hear({"type": "say", "prompt": "rain"})
    stream = session.streams[0]
    until(lambda: stream.said and stream.anchors)
    session.undo()
    until(lambda: len(stream.said) == 2)
    assert [prompt for _, prompt in stream.said] == ["rain", "a red ball"] and session.prompt == "a red ball"
    session.redo()
    until(lambda: len(stream.said) == 3)
    count = len(moving(session))
    until(lambda: len(moving(session)) > count + 24)            # so that what was said is seen, and not cut off
    session.stop()
    until(lambda: session.take.path is not None)
    kept = read_session(session.take.file())
    assert [c["say"] for c in kept["chunks"] if "say" in c] == ["rain", "a red ball", "rain"]
    assert [c["chunk"] for c in kept["chunks"] if c.get("anchor")] == stream.anchors
    assert [e["event"] for e in kept["events"]] == ["anchor", "say"]


def test_a_fresh_anchor_is_a_deed_and_before_the_next_chunk_it_is_as_if_nothing_had_been(play, tmp_path):
    session = play(folder=tmp_path)
    session.start()
    until(lambda: len(moving(session)) > 6)
    stream = session.streams[0]
    session.anchor()
    until(lambda: stream.anchors)
    session.undo()
    until(lambda: stream.unanchored)
    session.pause()                                             # from here on no chunk comes between
    until(lambda: stream.settled == stream.index)
    time.sleep(0.2)
    for deed in (session.redo, session.undo, session.anchor, session.undo, session.redo, session.undo):
        deed()
    assert session.engine.anchors == [] and session.describe()["undo"] == 0
    session.redo()
    chunk = stream.index
    session.resume()
    until(lambda: len(stream.anchors) == 2)
    until(lambda: session.player.chunk > chunk + 2)
    assert len(stream.unanchored) == 1
    session.reset()
    assert session.describe()["undo"] == 0 and session.describe()["redo"] == 0     # a new video has none yet
    until(lambda: session.journal.before.path is not None)
    kept = read_session(session.journal.before.file())
    assert [c["anchor"] for c in kept["chunks"] if "anchor" in c] == [[True], [False], [True]]


@pytest.fixture
def kept(play, tmp_path):
    """A session that was played, with its file and the frames that were shown."""
    session = play(folder=tmp_path)
    session.add(1, exact.BALL_AT[0] / W, 0.5)
    session.start()
    session.grab([1])
    session.move([Sample(1.0, 1, 0.7, 0.5)])
    until(lambda: len(moving(session)) > 20)
    session.say("rain")
    until(lambda: len(moving(session)) > 44)
    session.stop()
    until(lambda: session.take.path is not None)
    return session.take.name, read_session(session.take.file()), [f.picture for f in moving(session)]


def test_a_kept_session_plays_again_holds_where_it_ended_and_goes_on(play, kept, tmp_path):
    name, file, shown = kept
    session = play(folder=tmp_path)
    session.hear({"type": "recall", "take": name})
    assert session.events[-1]["type"] == "kept" and session.events[-1]["frames"] >= len(shown)
    session.hear({"type": "load", "take": name})
    session.start()
    until(lambda: session.state == "paused")
    again = [f.picture for f in moving(session)]
    assert len(again) == sum(c["frames"] for c in file["chunks"]) >= len(shown)
    assert all(np.array_equal(a, b) for a, b in zip(again, shown))
    assert session.prompt == "rain" and session.streams[-1].said[0][1] == "rain"
    session.resume()
    session.grab([1])
    session.move([Sample(2.0, 1, 0.4, 0.4)])
    until(lambda: abs(moving(session)[-1].marks[0].x - 0.4) < 0.005)    # the same point, in the hand


def test_a_kept_session_is_skipped_through_and_stands_where_it_stood(play, kept, tmp_path):
    name, file, shown = kept
    frames = sum(c["frames"] for c in file["chunks"])
    session = play(folder=tmp_path, fps=4)
    session.hear({"type": "load", "take": name})
    until(lambda: session.state == "ready")
    began = time.monotonic()
    session.hear({"type": "skip"})
    until(lambda: session.state == "paused")
    assert time.monotonic() - began < frames / session.fps          # and not in its own time, which is long
    until(lambda: session.take.frames == frames)                    # the last one as well
    assert len(moving(session)) == len(file["chunks"])    # one of each chunk is shown
    assert np.array_equal(moving(session)[0].picture, shown[file["chunks"][0]["frames"] - 1])
    assert session.describe()["script"] == 0 and session.prompt == "rain"
    session.resume()
    session.grab([1])
    session.move([Sample(2.0, 1, 0.4, 0.4)])
    until(lambda: abs(moving(session)[-1].marks[0].x - 0.4) < 0.005)
    live = [f.due for f in moving(session)[-12:]]
    np.testing.assert_allclose(np.diff(live), 1 / session.fps, atol=0.02)   # at its own pace again


def test_a_skip_that_comes_after_the_end_begins_nothing(play, kept):
    """The button may be pressed while the news of the end is on its way."""
    session = play(open_it=False)
    session.load(kept[1])
    session.start()
    until(lambda: len(moving(session)) > 3)
    session.hear({"type": "stop"})
    assert session.describe()["script"] == 0
    session.hear({"type": "skip"})
    assert session.state == "ended" and [p["id"] for p in session.describe()["points"]] == [1]


def test_what_is_made_faster_than_it_is_recorded_waits(play, kept, tmp_path):
    session = play(open_it=False, cost=0.0, folder=tmp_path / "slow")
    chunks = [chunk | {"chunk": i} for i, chunk in enumerate(kept[1]["chunks"][:1] + 12 * kept[1]["chunks"][1:2])]
    session.load(kept[1] | {"chunks": chunks})
    until(lambda: session.state == "ready")
    write, room, most = session.take.write, threading.Semaphore(0), []

    def slowly(picture):
        room.acquire(timeout=20)
        most.append(len(session.player.frames))
        write(picture)
    session.take.write = slowly
    session.skip()
    until(lambda: session.player.index >= 9 + 3 * 12)
    time.sleep(1)                                                       # nothing is recorded, and more could be made
    assert session.player.index <= 9 + 6 * 12
    for _ in range(9 + 12 * 12):
        room.release()
    until(lambda: session.take.frames == 9 + 12 * 12)
    assert max(most) <= 5 * 12


def test_a_hand_takes_over_from_a_kept_session(play, kept):
    session = play(open_it=False)
    session.load(kept[1])
    session.start()
    until(lambda: len(moving(session)) > 6)
    session.add(7, 0.2, 0.8)
    assert session.describe()["script"] == 0
    until(lambda: len(moving(session)) > len(kept[2]) + 24)             # nothing holds it any more


def test_a_move_of_the_camera_is_told_as_a_deed(play):
    """A page must learn that there is something to take back; of one gesture, once."""
    session = play()
    for _ in range(3):
        session.camera(right=0.02, down=0, zoom=0, roll=0, orbit=0, dolly=0)
    assert [e["undo"] for e in session.events if e["type"] == "state"][-1] == 1


def test_a_path_that_is_set_or_bent_goes_on_where_it_is(play):
    """What a page sends back was rounded on its way there: still the same way, also after it was dragged."""
    session = play()
    session.path(1, [(0, 0.1, 0.1), (1.23, 0.51234, 0.4), (4, 0.9, 0.5)])
    session.grab([1])
    session.move([Sample(1.0, 1, 0.133333, 0.1777777)])
    session.release([1])
    session.start()
    point = session.points[1]
    until(lambda: point.played > 0.3)
    told = session.describe()["points"][0]
    session.path(1, [tuple(node) for node in told["nodes"]], "loop", 2.0)
    assert point.way.speed == 2.0 and point.played > 0.3
    session.path(1, [(0, 0.1, 0.1), (2, 0.3, 0.7), (4, 0.9, 0.5)])
    assert point.played > 0.3
    session.path(1, [(0, 0.1, 0.1), (3.9, 0.9, 0.5)])                       # another: it lasts otherwise
    assert point.played < 0.3


def test_recall_finds_nothing_outside_its_folder(play, tmp_path):
    session = play(folder=tmp_path / "takes")
    (tmp_path / "take-x.json").write_text("{}")
    for name in ("../take-x", "take-20260101-000000-" + "0" * 16, "/etc/passwd", ""):
        count = len(session.events)
        session.hear({"type": "recall", "take": name})
        assert not any(e["type"] == "kept" for e in session.events[count:])
        with pytest.raises(ProtocolError, match="not here any more"):
            session.hear({"type": "load", "take": name})


def test_a_kept_session_that_is_damaged_is_not_offered(play, tmp_path):
    name = "take-20260101-000000-" + "0" * 16
    (tmp_path / f"{name}.json").write_text("{")
    session = play(folder=tmp_path)
    session.hear({"type": "recall", "take": name})
    assert not any(e["type"] == "kept" for e in session.events)
    with pytest.raises(ProtocolError, match="holds no session"):
        session.hear({"type": "load", "take": name})


def test_points_that_are_damaged_are_passed_over(play, kept):
    session, (point,) = play(), kept[1]["points"]
    damaged = [point | {"id": math.inf}, point | {"at": None}, {}, 7]
    session.load(kept[1] | {"chunks": [], "points": [*damaged, point]})
    assert list(session.points) == [1]


@pytest.mark.parametrize("damage", [
    lambda s: b"", lambda s: b"[]", lambda s: b"\xff\xfe", lambda s: b"[" * 100_000, lambda s: json.dumps(s)[:40].encode(),
    lambda s: json.dumps(s | {"seed": "3"}).encode(), lambda s: json.dumps(s | {"chunks": [7]}).encode(),
    lambda s: json.dumps(s | {"chunks": [s["chunks"][1] | {"xy": [[]]}]}).encode(),
    lambda s: json.dumps(s | {"chunks": [s["chunks"][1] | {"frames": 10 ** 9}]}).encode(),
    lambda s: json.dumps(s | {"points": 5}).encode(),
    lambda s: json.dumps(s | {"chunks": [s["chunks"][0] | {"tune": {"steps": 2}}]}).encode(),
    lambda s: json.dumps(s | {"chunks": [s["chunks"][0] | {"tune": {"sink": -1}}]}).encode(),
    lambda s: json.dumps(s | {"chunks": [s["chunks"][0] | {"anchor": ["yes"]}]}).encode(),
    lambda s: json.dumps(s | {"picture": "!"}).encode()])
def test_a_damaged_session_is_refused_in_one_sentence_and_the_stage_stays(play, kept, damage):
    session = play()
    until(lambda: session.state == "ready")
    with pytest.raises(ValueError) as error:
        session.load(parse_session(damage(kept[1])))
    assert len(str(error.value)) < 300 and session.state == "ready"


ABOUT = {"model": "exact", "prompt": "x", "seed": 0, "picture": "", "width": 96, "height": 96}


def test_a_killed_process_leaves_a_file_that_plays(tmp_path):
    subprocess.run([sys.executable, "-c", f"""
import os, numpy as np
from msk.live.record import Take
take = Take({str(tmp_path)!r}, 24, {ABOUT!r})
for i in range(40): take.write(np.full((96, 96, 3), 5 * i, np.uint8))
take.note({{"chunk": 0, "frames": 9, "ids": [], "who": [], "xy": [], "origin": []}})
os._exit(9)
"""], check=False)
    (part,) = tmp_path.glob("*.part.1.mp4")
    assert len(frames_of(part)[0]) >= 24                        # all but the last half second
    (lines,) = tmp_path.glob("*.jsonl")
    lines.write_text(lines.read_text() + '{"chunk": 1, "fra')   # the line that was being written
    assert [c["chunk"] for c in read_session(lines)["chunks"]] == [0]
    (whole,) = recover(tmp_path)                                # when the next server starts
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".mp4"]
    assert len(frames_of(whole.with_suffix(".mp4"))[0]) >= 24 and len(read_session(whole)["chunks"]) == 1
    assert recover(tmp_path) == []


def test_a_take_of_an_earlier_process_of_this_number_is_finished_and_one_of_this_process_is_not(tmp_path, monkeypatch):
    from msk.live import record
    chunk = {"chunk": 0, "frames": 9, "ids": [], "who": [], "xy": [], "origin": []}
    take = Take(tmp_path, 24, ABOUT)
    take.note(chunk)
    assert recover(tmp_path) == []
    monkeypatch.setattr(record, "_written_here", set())         # as after a restart, in a container where all are number 1
    assert recover(tmp_path) == [], "it may be another container's, which has just written"
    monkeypatch.setattr(record, "LATELY", 0)
    assert recover(tmp_path) == [take.lines.with_suffix(".json")]


def test_the_stage_of_a_notebook_is_asked_for_by_its_short_name():
    import msk
    from msk.live import Stage
    assert msk.Stage is Stage and "Stage" not in msk.__all__, "the core imports without it"
    with pytest.raises(AttributeError, match="no attribute 'Stages'"):
        msk.Stages  # noqa: B018


def test_a_recording_that_fails_is_closed_and_what_it_has_is_kept(play, tmp_path):
    session = play(folder=tmp_path)
    session.start()
    until(lambda: session.take.frames > 15)
    take = session.take
    take.write = lambda picture: 1 / 0
    until(lambda: session.take is None and take.closed)
    assert any("recording has stopped" in event.get("message", "") for event in session.events)
    assert session.state == "playing" and len(frames_of(take.path)[0]) > 12


def test_an_export_while_it_plays_keeps_no_chunk_waiting(play, tmp_path, monkeypatch):
    from msk.live import record
    session, slow, joined = play(folder=tmp_path), threading.Event(), record.join
    session.start()
    until(lambda: session.take.frames > 15)
    monkeypatch.setattr(record, "join", lambda *order: (slow.wait(20), joined(*order))[1])
    export = threading.Thread(target=session.take.join, args=(tmp_path / "out.mp4",))
    export.start()
    chunk = session.player.chunk
    until(lambda: session.player.chunk > chunk + 2)                   # the engine writes its lines all the while
    slow.set()
    export.join()
    assert len(frames_of(tmp_path / "out.mp4")[0]) > 15


def test_an_empty_take_leaves_nothing_and_cannot_be_exported(tmp_path):
    take = Take(tmp_path, 24, {})
    with pytest.raises(ValueError, match="nothing has been made yet"):
        take.join(tmp_path / "x.mp4")
    assert take.close() is None and not list(tmp_path.iterdir())


# -- the protocol ------------------------------------------------------------------------------------------------------

def test_what_is_written_is_what_is_read():
    samples = [Sample(12.5, 7, 0.25, 0.5), Sample(13.5, 65535, 1.0, 0.0)]
    assert protocol.read(protocol.write_samples(samples)) == {"type": "pointer", "samples": samples}
    assert protocol.read(protocol.write_ack(2 ** 32 - 1)) == {"type": "ack", "seq": 2 ** 32 - 1}
    about = dict(quality=85, seq=9, chunk=2, index=30, pts=1.5, sent=1.0, echo=None, still=True)
    marks = [protocol.Mark(3, "pin", 0.5, 0.25)]
    frame = protocol.read_frame(protocol.write_frame(b"jpeg", marks=marks, **about))
    assert frame == about | {"marks": marks, "jpeg": b"jpeg"}


BAD = ["", "{", "[]", "null", "7", '"start"', "{}", '{"type": 5}', '{"type": ["start"]}', '{"type": "fly"}', "[" * 5000,
       '{"type": "add", "id": 1}', '{"type": "add", "id": 1.5, "kind": "live", "x": 0, "y": 0, "t": 0}',
       '{"type": "add", "id": -1, "kind": "live", "x": 0, "y": 0, "t": 0}',
       '{"type": "add", "id": 1, "kind": "dead", "x": 0, "y": 0, "t": 0}',
       '{"type": "add", "id": 1, "kind": "live", "x": NaN, "y": 0, "t": 0}',
       '{"type": "add", "id": 1, "kind": "live", "x": 1e999, "y": 0, "t": 0}',
       '{"type": "add", "id": 1, "kind": "live", "x": 1' + "0" * 400 + ', "y": 0, "t": 0}',
       '{"type": "release", "ids": [1], "t": 0, "keep": "yes"}', '{"type": "open", "image": "a", "prompt": 5, "seed": 0}',
       '{"type": "open", "image": "a", "prompt": "' + "x" * 2000 + '", "seed": 0}',
       '{"type": "open", "image": "a", "prompt": "", "seed": -4}',
       '{"type": "export", "what": "exe", "mark": false}', "x" * 17000,
       b"", b"\x01", b"\x01\x00", b"\x01\x41" + b"\0" * 18 * 65, b"\x01\x01abc", b"\x02\x00", b"\x63" * 40, b"\0" * 70000,
       b"\x01\x01" + protocol._SAMPLE.pack(math.nan, 1, 0, 0), b"\x01\x01" + protocol._SAMPLE.pack(0, 1, math.inf, 0)]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_what_is_not_the_protocol_gets_one_sentence(data):
    with pytest.raises(ProtocolError) as error:
        protocol.read(data)
    assert 10 < len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_places_outside_the_picture_are_brought_to_its_edge():
    message = protocol.read('{"type": "add", "id": 1, "kind": "live", "x": -3, "y": 1.5, "t": 0}')
    assert (message["x"], message["y"]) == (0, 1)
    far = [Sample(0.0, 1, -3, 1.25), Sample(1.0, 1, 0.5, 9)]                            # a hand may lead out of it
    samples = protocol.read(protocol.write_samples(far))["samples"]
    assert [(s.x, s.y) for s in samples] == [(-0.5, 1.25), (0.5, 1.5)]


# -- the link ----------------------------------------------------------------------------------------------------------

def test_a_link_that_stops_answering_gets_no_more_than_its_window_and_smaller_frames(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("msk.live.server.time.monotonic", lambda: clock[0])
    link = Link(fps=24, ahead=0.12)
    for _ in range(24):                                         # a good link: each frame answered in 10 ms
        assert link.may_send()
        seq = link.sent()
        clock[0] += 0.01
        link.acked(seq)
        clock[0] += 0.03
    assert link.quality == LADDER[0] and link.window <= 13
    sent = 0
    for _ in range(24 * 8):
        if link.may_send():
            link.sent()
            sent += 1
        clock[0] += 1 / 24
    assert sent <= 3 * link.window and link.quality == LADDER[-1]   # what is lost is forgotten after 3 s, so it can recover
    link.acked(link.seq)
    for _ in range(24 * 20):                                    # it is well again
        if link.may_send():
            link.acked(link.sent())
        clock[0] += 1 / 24
    assert link.quality == LADDER[0]


def test_tokens_are_known_until_they_are_old_or_too_many():
    tokens = Tokens(limit=3, seconds=1000)
    issued = [tokens.issue() for _ in range(4)]
    assert [tokens.known(t) for t in issued] == [False, True, True, True] and not tokens.known("") and not tokens.known("x")
    tokens.seconds = 0
    assert not tokens.known(issued[-1])


# -- the server --------------------------------------------------------------------------------------------------------

@pytest.fixture
def served(tmp_path):
    """A lobby behind uvicorn on a free port; calling it gives a client's connection."""
    import uvicorn
    from starlette.applications import Starlette
    pytest.importorskip("websockets")
    kit, pictures = exact.exact_kit(), Pictures()
    pictures.keep("start-0", exact.picture())

    def open_stream(prompt, image, seed):
        return exact.ExactStream(kit, prompt, image, seed=seed, cost=0.01)

    lobby = Lobby(lambda: Session(open_stream, kit.geometry, name="exact", folder=tmp_path), pictures,
                  first=("start-0", "a red ball", 0), grace=1.0)
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=lobby.routes()), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    lobby.address = f"127.0.0.1:{port}"
    yield lobby
    lobby.close()
    server.should_exit = True
    thread.join(10)


def knock(lobby, token=True, origin=None, resume=""):
    from websockets.asyncio.client import connect
    token = lobby.tokens.issue() if token is True else token
    origin = f"http://{lobby.address}" if origin is None else origin
    offered = ["msk.v2"] + ([f"token.{token}"] if token else [])
    return connect(f"ws://{lobby.address}/msk/ws" + (f"?resume={resume}" if resume else ""), origin=origin or None,
                   proxy=None, subprotocols=offered, max_size=None)


async def wait_for(socket, true, seconds=20):
    """The first message for which it is true: words as dicts, frames as read_frame gives them (acknowledged)."""
    async with asyncio.timeout(seconds):
        while True:
            data = await socket.recv()
            message = json.loads(data) if isinstance(data, str) else protocol.read_frame(data)
            if not isinstance(data, str):
                await socket.send(protocol.write_ack(message["seq"]))
            if true(message):
                return message


def is_type(kind):
    return lambda m: m.get("type") == kind


def is_state(state):
    return lambda m: m.get("type") == "state" and m["state"] == state


def is_frame(m):
    return "jpeg" in m and not m["still"]


def send(socket, **message):
    return socket.send(json.dumps(message))


def test_a_client_drags_the_ball(served):
    async def client():
        async with knock(served) as socket:
            hello = await wait_for(socket, is_type("hello"))
            assert (hello["width"], hello["fps"], hello["model"]) == (96, 24, "exact")
            await wait_for(socket, is_state("ready"))
            await send(socket, type="add", id=1, kind="live", x=exact.BALL_AT[0] / W, y=0.5, t=0)
            await send(socket, type="start")
            await send(socket, type="grab", ids=[1], t=1)
            await socket.send(protocol.write_samples([Sample(2.0, 1, 0.6, 0.7)]))
            frame = await wait_for(socket, lambda m: is_frame(m) and m["marks"] and abs(m["marks"][0].x - 0.6) < 0.004)
            assert frame["echo"] == 2.0
            x, y = exact.red_centre(np.asarray(Image.open(io.BytesIO(frame["jpeg"]))))
            assert abs(x - 0.6 * W) < 1.5 and abs(y - 0.7 * W) < 1.5
            await send(socket, type="export", what="mp4", mark=False)
            file = await wait_for(socket, is_type("file"))
            return file["url"]
    url = asyncio.run(client())
    import urllib.request
    data = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{served.address}/{url}").read()
    assert data[4:8] == b"ftyp"


def test_a_session_file_is_taken_from_who_plays_and_from_no_one_else(served, kept):
    import httpx
    data = json.dumps(kept[1]).encode()

    async def client():
        async with knock(served) as socket:
            hello = await wait_for(socket, is_type("hello"))
            await wait_for(socket, is_state("ready"))
            url, origin = f"http://{served.address}/msk/session/", {"origin": f"http://{served.address}"}
            mine = origin | {"x-msk-token": served.tokens.issue()}
            async with httpx.AsyncClient(trust_env=False) as http:
                here, away = hello["session"], mine | {"origin": "http://elsewhere"}
                tries = ((here, origin, data), ("guess", mine, data), (here, mine, b"{}"), (here, away, data),
                         (here, mine, data))
                answers = [await http.post(url + to, content=content, headers=headers) for to, headers, content in tries]
            state = await wait_for(socket, lambda m: m.get("type") == "state" and m["script"])
            assert [a.status_code for a in answers] == [403, 403, 400, 403, 200]
            assert state["points"] and "holds no session" in answers[2].text
    asyncio.run(client())


def test_a_session_file_that_comes_when_the_stage_is_no_longer_theirs_is_refused(play, kept):
    from msk.live.server import Visitor
    lobby, session = Lobby(None), play()
    until(lambda: session.state == "ready")

    async def bring(meanwhile):
        lobby.player = player = Visitor(None, asyncio.get_running_loop())
        player.session, player.id = session, "mine"
        session.touched = 0.0

        async def read():
            assert session.touched > 0                                  # who sends a file is there
            meanwhile(player)
            return json.dumps(kept[1]).encode()
        return await lobby.bring("mine", read)

    def went(player):
        player.session, lobby.player = None, None

    def changed(player):                                                # its link came back as another
        lobby.player = Visitor(None, player.loop)
        lobby.player.session, lobby.player.id = session, "mine"
    assert asyncio.run(bring(lambda player: setattr(player, "session", None)))[0] == 403      # and its session is ending
    assert asyncio.run(bring(went))[0] == 403
    assert session.describe()["script"] == 0
    assert asyncio.run(bring(changed)) == (200, "") and session.describe()["script"] > 0


def test_what_comes_late_from_a_stage_that_was_given_up_is_not_shown(play):
    from msk.live.server import Visitor
    session, lobby = play(), Lobby(lambda: play(open_it=False))
    until(lambda: session.state == "ready")

    async def give_way():
        visitor = Visitor(None, asyncio.get_running_loop())
        lobby._seat(visitor, session, "mine")
        session.on_frame(session.still())                               # on its way to the page
        await lobby._give_way(visitor)
        await asyncio.sleep(0)
        return visitor
    visitor = asyncio.run(give_way())
    assert visitor.session is not session and not visitor.frames


def test_a_lobby_that_is_closed_asks_nobody_to_give_way(play):
    from msk.live.server import Visitor
    lobby = Lobby(lambda: play(open_it=False))

    async def close():
        lobby._queue_up(Visitor(None, asyncio.get_running_loop()))
        await asyncio.to_thread(lobby.close)
        await asyncio.wait([lobby._turns], timeout=20)
        return lobby._turns.cancelled()
    assert asyncio.run(close())


@pytest.mark.parametrize("how", [dict(token=""), dict(token="forged"), dict(origin="http://evil.example"), dict(origin=""),
                                 dict(origin="http://127.0.0.1:1"), dict(origin="null")])
def test_a_page_that_is_not_ours_is_not_let_in(served, how):
    from websockets.exceptions import InvalidStatus

    async def client():
        async with knock(served, **how):
            pass
    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(client())
    assert served.player is None


def test_a_local_server_answers_to_local_names_only():
    lobby = Lobby(None)

    def why(host):
        return lobby.refusal(SimpleNamespace(headers={
            "host": host, "origin": f"http://{host}", "sec-websocket-protocol": f"msk.v2, token.{lobby.tokens.issue()}"}))

    assert why("127.0.0.1:7860") is why("localhost:7860") is why("[::1]:7860") is None
    assert "does not answer to the name" in why("rebound.example:7860")      # a name that someone made point here
    lobby.hosts = None
    assert why("mine.example") is None


def test_whatever_a_client_sends_the_server_lives(served):
    async def client():
        async with knock(served) as socket:
            await wait_for(socket, is_state("ready"))
            noise = random.Random(0)
            astray = [json.dumps({"type": "grab", "ids": [77], "t": 0}),
                      json.dumps({"type": "open", "image": "none", "prompt": "", "seed": 0})]
            for data in BAD + [noise.randbytes(noise.randrange(1, 200)) for _ in range(30)] + astray:
                await socket.send(data)
                if not (isinstance(data, bytes) and data[:1] == b"\x02" and len(data) == 5):
                    answer = await wait_for(socket, is_type("error"))
                    assert len(answer["message"]) < 400
            await send(socket, type="ping", t=5)
            assert (await wait_for(socket, is_type("pong")))["t"] == 5
            await send(socket, type="start")
            await wait_for(socket, is_frame)
    asyncio.run(client())


def test_who_touches_nothing_gives_way_to_those_who_wait(served):
    served.turn = 0.5

    async def clients():
        async with knock(served) as idle:
            await wait_for(idle, is_state("ready"))
            await send(idle, type="start")
            await asyncio.sleep(1)
            await wait_for(idle, is_frame)                          # alone, one may look on for as long as one likes
            served.turn = 3.0
            async with knock(served) as next_one:
                assert "touch nothing for 3 seconds" in (await wait_for(next_one, is_type("queue")))["message"]
                assert "others wait" in (await wait_for(idle, is_type("note")))["message"]
                gave_way = lambda m: m.get("type") == "queue" and "went to the next" in m["message"]
                await wait_for(idle, lambda m: gave_way(m) and m["place"] == 1)     # 2 while the next one is being seated
                await send(idle, type="ack", seq=0)                 # of a last frame: that is no other answer
                assert "went to the next" in (await wait_for(idle, is_type("queue")))["message"]
                await wait_for(next_one, is_state("ready"))
                player, end = served.player, time.monotonic() + 2 * served.turn
                while time.monotonic() < end:                       # a hand on the stage keeps it
                    await send(next_one, type="camera", right=0, down=0, zoom=0, roll=0, orbit=0, dolly=0)
                    await asyncio.sleep(0.1)
                assert served.player is player and [v.session for v in served.waiting] == [None]
                await wait_for(next_one, lambda m: m.get("type") == "queue")
                await wait_for(idle, is_state("ready"))             # and back, as that one rests now
    asyncio.run(clients())


def wide(name, folder):
    """Another model, twice as wide: (how its sessions begin, its pictures)."""
    kit = exact.exact_kit(Geometry(96, 192, fps=24))

    def open_stream(prompt, image, seed):
        return exact.ExactStream(kit, prompt, image, seed=seed, cost=0.01)
    return SimpleNamespace(new_session=lambda: Session(open_stream, kit.geometry, name=name, folder=folder),
                           pictures=[(exact.picture(kit.geometry), "a wide sea")])


def offers(*names):
    return [Offer(name, name, "little", "it needs a GPU, and here is none" if name == "large" else "") for name in names]


def test_another_model_is_loaded_while_the_old_one_plays(served, tmp_path):
    go = threading.Event()

    def load(name, step):
        step("reading its weights")
        assert go.wait(20)
        return wide(name, tmp_path)
    served.choice = Choice(offers("exact", "wide", "large"), load)

    async def client():
        async with knock(served) as socket, knock(served) as other:
            hello = await wait_for(socket, is_type("hello"))
            assert [offer["label"] for offer in hello["models"]] == ["exact", "wide", "large"]
            assert hello["playing"] == "exact"
            await wait_for(socket, is_state("ready"))
            await wait_for(other, is_type("queue"))
            await send(socket, type="start")
            for name, why in (("large", "large cannot be played here: it needs a GPU"), ("exact", "playing already"),
                              ("../etc", "there is no model '../etc'")):
                await send(socket, type="model", name=name)
                assert why in (await wait_for(socket, is_type("error")))["message"]
            await send(other, type="model", name="wide")                    # those in line are told their place
            await wait_for(other, is_type("queue"))
            assert served.choice.loading == ""
            await send(socket, type="model", name="wide")
            word = await wait_for(socket, lambda m: m.get("type") == "model" and "reading" in m["message"])
            assert (word["state"], word["share"]) == ("loading", None)
            await send(socket, type="model", name="wide")
            assert "wide is being loaded" in (await wait_for(socket, is_type("error")))["message"]
            now = (await wait_for(socket, is_frame))["index"]
            await wait_for(socket, lambda m: is_frame(m) and m["index"] > now + 12)         # it plays on
            go.set()
            hello = await wait_for(socket, is_type("hello"))
            assert (hello["width"], hello["model"], hello["playing"]) == (192, "wide", "wide")
            met = []                                                        # which of the two comes first is not said
            await wait_for(socket, lambda m: met.append(m) or any(map(is_state("ready"), met)) and any(
                is_type("model")(m) and m["state"] == "here" for m in met))
            assert next(filter(is_state("ready"), met))["prompt"] == "a red ball"           # which stays, with its picture
            await send(socket, type="start")
            frame = await wait_for(socket, is_frame)
            assert Image.open(io.BytesIO(frame["jpeg"])).size == (192, 96)
        async with knock(served) as later:
            assert (await wait_for(later, is_type("hello")))["model"] == "wide"
    asyncio.run(client())


def test_a_page_that_came_back_or_is_away_gets_the_other_model_as_well(served, tmp_path):
    async def client():
        async with knock(served) as socket:
            hello = await wait_for(socket, is_type("hello"))
            await wait_for(socket, is_state("ready"))
            socket.transport.abort()
        async with knock(served, resume=hello["session"]) as socket:
            await wait_for(socket, is_state("ready"))
            served.choice = Choice(offers("exact", "wide"), lambda name, step: wide(name, tmp_path))
            await send(socket, type="model", name="wide")
            assert (hello := await wait_for(socket, is_type("hello")))["model"] == "wide"
            assert (await wait_for(socket, is_state("ready")))["prompt"] == "a red ball"
            go = threading.Event()
            served.choice = Choice(offers("wide", "wider"), lambda name, step: go.wait(20) and wide(name, tmp_path))
            await send(socket, type="model", name="wider")
            await wait_for(socket, is_type("model"))
            await send(socket, type="add", id=4, kind="live", x=0.4, y=0.5, t=0)
            await send(socket, type="say", prompt="rain")
            await wait_for(socket, lambda m: m.get("type") == "state" and m["prompt"] == "rain")
            served.grace = 60
            socket.transport.abort()
        until(lambda: served._orphan is not None)
        old = served._orphan[1]
        go.set()
        until(lambda: served._orphan[1] is not old)
        async with knock(served, resume=hello["session"]) as socket:        # all is as it was left
            hello = await wait_for(socket, lambda m: m.get("type") == "hello" and m["model"] == "wider")
            state = await wait_for(socket, is_state("ready"))
            assert ([p["id"] for p in state["points"]], state["prompt"], state["undo"]) == ([4], "rain", 2)
    asyncio.run(client())


def test_deeds_and_what_pins_hold_go_along_to_a_model_of_another_shape(play):
    """A picture of 96 x 96; the other model sees its middle half, 192 x 96: (x, y) there is (2 x, 2 y - 48) here."""
    from msk.live.session import Session
    disc = np.hypot(*np.meshgrid(np.arange(96) - exact.BALL_AT[0], np.arange(96) - exact.BALL_AT[1])) < exact.RADIUS
    old = play(cut=lambda picture, place: disc if disc.shape == picture.shape[:2] else np.zeros(picture.shape[:2], bool))
    old.add(1, exact.BALL_AT[0] / W, 0.5)
    until(lambda: old.points[1].looked and old.points[1].thing is not None)
    old.pin([1])                                                    # a pin now, and it holds the ball
    old.path(2, [(0, 0.25, 0.5), (1, 0.5, 0.5)])
    old.path(2, [(0, 0.25, 0.5), (1, 0.75, 0.5)])
    old.add(3, 0.5, 0.05)                                           # not seen by the other
    old.add(4, 0.5, 0.6)
    old.remove([4])
    old.say("rain")
    kit, looked = exact.exact_kit(Geometry(96, 192, fps=24)), []

    def cut(picture, place):
        looked.append(place)
        return np.zeros(picture.shape[:2], bool)
    new = Session(lambda prompt, image, seed: exact.ExactStream(kit, prompt, image, seed=seed), kit.geometry, cut=cut)
    with new:
        old.close()
        assert new.go_on_from(old) == 1 and sorted(new.points) == [1, 2]
        until(lambda: looked)                                       # what the pin holds is looked for again

        def end():
            return new.points[2].way.nodes[-1][1]
        new.undo()
        assert new.prompt == "a red ball"
        new.undo()
        assert new.points[4].target == pytest.approx(96 + 67.2j, abs=0.01)      # where it was put, in this one's pixels
        new.undo()
        assert sorted(new.points) == [1, 2] and end() == pytest.approx(144 + 48j)
        new.undo()
        assert end() == pytest.approx(96 + 48j)
        new.undo()
        new.undo()
        assert {i: p.kind for i, p in new.points.items()} == {1: "live"}
        for _ in range(6):
            new.redo()
        assert (sorted(new.points), new.points[1].kind, new.prompt) == ([1, 2], "pin", "rain") and end().real == 144


@pytest.mark.parametrize("error, says", [(ConnectionError("it could not be fetched from the hub: check the network"),
                                          "check the network"),
                                         (torch.OutOfMemoryError("CUDA out of memory"), "--model wide")])
def test_a_model_that_cannot_be_had_leaves_the_old_one_playing(served, error, says):
    def load(name, step):
        raise error
    served.choice = Choice(offers("exact", "wide"), load)

    async def client():
        async with knock(served) as socket:
            await wait_for(socket, is_state("ready"))
            await send(socket, type="start")
            await send(socket, type="model", name="wide")
            word = await wait_for(socket, lambda m: m.get("type") == "model" and m["state"] == "failed")
            assert says in word["message"] and "wide could not be loaded, the old model goes on" in word["message"]
            now = (await wait_for(socket, is_frame))["index"]
            await wait_for(socket, lambda m: is_frame(m) and m["index"] > now + 24)
            assert served.player.session.name == "exact" and served.choice.playing == "exact"
    asyncio.run(client())


def test_a_flood_is_passed_over_and_said_once(served):
    async def client():
        async with knock(served) as socket:
            await wait_for(socket, is_state("ready"))
            for _ in range(3000):
                await socket.send(protocol.write_samples([Sample(0.0, 1, 0.5, 0.5)]))
            await wait_for(socket, lambda m: m.get("type") == "error" and "messages a second" in m["message"])
            await asyncio.sleep(1)
            await send(socket, type="start")
            await wait_for(socket, is_frame)
    asyncio.run(client())


def test_the_second_waits_and_plays_when_the_first_has_gone(served):
    async def clients():
        async with knock(served) as first:
            await wait_for(first, is_state("ready"))
            async with knock(served) as second, knock(served) as third:
                assert (await wait_for(second, is_type("queue")))["place"] == 1
                assert "number 2" in (await wait_for(third, is_type("queue")))["message"]
                await send(second, type="start")                # it may not play yet
                await wait_for(second, is_type("queue"))
                await first.close()
                await wait_for(second, is_state("ready"))
                assert (await wait_for(third, lambda m: m.get("type") == "queue" and m["place"] == 1))
                await send(second, type="start")
                await wait_for(second, is_frame)
    asyncio.run(clients())


def test_a_client_that_vanishes_finds_its_session_again_or_leaves_a_whole_file(served, tmp_path):
    async def clients():
        socket = await knock(served)
        hello = await wait_for(socket, is_type("hello"))
        await wait_for(socket, is_state("ready"))
        await send(socket, type="add", id=4, kind="live", x=0.3, y=0.5, t=0)
        await send(socket, type="start")
        before = await wait_for(socket, lambda m: is_frame(m) and m["index"] > 10)
        socket.transport.abort()                                # no good-bye
        await asyncio.sleep(0.3)
        socket = await knock(served, resume=hello["session"])
        again = await wait_for(socket, is_type("hello"))
        assert again["session"] == hello["session"]
        state = await wait_for(socket, is_type("state"))
        assert [p["id"] for p in state["points"]] == [4]
        after = await wait_for(socket, is_frame)
        assert before["index"] < after["index"] < before["index"] + 30
        session = served.player.session
        socket.transport.abort()                                # and this time for good
        return session
    session = asyncio.run(clients())
    until(lambda: not any(t.is_alive() for t in session._threads) and session.take.path is not None)
    assert len(frames_of(session.take.path)[0]) == session.take.frames > 10
    until(lambda: served.player is None)


# -- the notebook ------------------------------------------------------------------------------------------------------

def test_a_notebook_pulls_what_a_page_gets_pushed(play, tmp_path):
    from msk.live.widget import Pulled
    session = play(folder=tmp_path)
    pulled = Pulled(session)
    answer, frames = pulled.answer({"type": "pull", "fresh": True}, [])
    assert [w["type"] for w in answer["words"][:2]] == ["hello", "state"] and protocol.read_frame(frames[0])["still"]
    words = [{"type": "add", "id": 1, "kind": "live", "x": exact.BALL_AT[0] / W, "y": 0.5, "t": 0}, {"type": "start"},
             {"type": "grab", "ids": [1], "t": 1}, {"type": "fly"}]
    pointer = protocol.write_samples([Sample(2.0, 1, 0.6, 0.7)])
    answer, _ = pulled.answer({"words": words, "order": [0, 0, 0, 1, 0]}, [pointer])
    seen = []

    def arrived():
        answer, frames = pulled.answer({}, [])
        seen.extend(map(protocol.read_frame, frames))
        return seen and seen[-1]["marks"] and abs(seen[-1]["marks"][0].x - 0.6) < 0.004

    assert any("fly" in w["message"] for w in answer["words"] if w["type"] == "error")
    until(arrived)
    x, y = exact.red_centre(np.asarray(Image.open(io.BytesIO(seen[-1]["jpeg"]))))
    assert abs(x - 0.6 * W) < 1.5 and abs(y - 0.7 * W) < 1.5


def test_where_nobody_asks_any_more_the_stream_rests_and_goes_on_when_somebody_does(play, monkeypatch):
    from msk.live import widget
    monkeypatch.setattr(widget, "AWAY", 0.5)
    session = play()
    pulled = widget.Pulled(session)
    pulled.answer({"fresh": True, "words": [{"type": "start"}], "order": [0]}, [])
    until(lambda: session.state == "paused")                        # the tab was closed: no chunk is made for nobody
    made = session.streams[0].index
    time.sleep(2)
    assert session.streams[0].index <= made + 1                     # one may have been on its way
    made = session.streams[0].index
    pulled.answer({"fresh": True}, [])
    until(lambda: pulled.answer({}, []) and session.streams[0].index > made)
    pulled.answer({"words": [{"type": "pause"}], "order": [0]}, [])         # but what a hand has paused stays so
    time.sleep(0.6)
    pulled.answer({}, [])
    assert session.state == "paused"


def test_a_picture_that_is_opened_while_nobody_asks_is_not_taken_for_a_rest(play):
    from msk.live import widget
    session = play()
    pulled = widget.Pulled(session)
    pulled.answer({"fresh": True}, [])
    until(lambda: session.state == "ready")
    pulled.asked -= 2 * widget.AWAY
    session.reset()                                                 # from a cell: its still is shown
    until(lambda: session.state == "ready")
    session.start()
    session.pause()
    pulled.answer({"fresh": True}, [])
    assert session.state == "paused"                                # as the hand left it


def test_sliders_beside_the_stage_change_the_stream_and_the_session_keeps_it(tmp_path):
    """The toy model, with more memory and guided from some chunk on: replayed, its frames are the same to the last bit, and
    the sliders show how it is tuned."""
    pytest.importorskip("anywidget")
    from msk.kit import Kit
    from msk.live import Stage
    from msk.live.replay import replay
    torch.manual_seed(0)
    kit = Kit.random("toy")
    for p in kit.dit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    stage = Stage(kit, exact.picture(), "a red ball", folder=tmp_path, fps=12)
    session, frames = stage.session, []
    session.on_frame = frames.append
    box = stage.with_controls()
    sliders = {slider.description: slider for slider in box.children[1].children}
    stream = kit.preset.stream
    assert (sliders["sink"].value, sliders["window"].value, sliders["steps"].value) == (
        stream.sink, stream.window, stream.steps)
    session.add(1, 0.5, 0.5)
    session.start()
    until(lambda: session.player.chunk > 1, seconds=60)
    sliders["window"].value, sliders["text guidance"].value, sliders["motion guidance"].value = 3, 2.0, 1.5
    sliders["steps"].value = 1
    chunk = session.player.chunk
    until(lambda: session.player.chunk > chunk + 4, seconds=60)
    assert len(session.engine.stream.memory["window"]) == 3
    session.stop()
    until(lambda: session.take.path is not None)
    kept, shown = read_session(session.take.file()), [f.picture for f in frames if not f.still]
    session.load(kept)
    until(lambda: session.state == "ready")
    stage.pulled.answer({}, [])
    assert (sliders["window"].value, sliders["text guidance"].value, sliders["steps"].value) == (
        stream.window, 0.0, stream.steps)
    session.skip()
    until(lambda: stage.pulled.answer({}, []) and session.state == "paused", seconds=60)    # no slider has taken over
    stage.pulled.answer({}, [])
    assert (sliders["window"].value, sliders["text guidance"].value) == (3, 2.0)
    assert session.player.index == sum(chunk["frames"] for chunk in kept["chunks"])
    stage.close()
    tuned = [c["tune"] for c in kept["chunks"] if "tune" in c]
    assert tuned[-1] == {"window": 3, "text_scale": 2.0, "motion_scale": 1.5} and kept["chunks"][-1]["steps"] == 1
    made = torch.cat(list(replay(kit, kept))).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    assert len(made) == len(shown) and all(np.array_equal(a, b) for a, b in zip(made, shown))
    plain = kept | {"chunks": [{k: v for k, v in c.items() if k != "tune"} for c in kept["chunks"]]}
    assert not np.array_equal(torch.cat(list(replay(kit, plain))).mul(255).round().byte()[-1], made[-1].transpose(2, 0, 1))


@pytest.mark.parametrize("how", [{"sink": -1}, {"window": 1.5}, {"steps": 0}, {"text_scale": float("nan")}, {"noise": 1}])
def test_what_a_stream_cannot_be_tuned_to_is_refused_in_one_sentence(play, how):
    with pytest.raises(ProtocolError, match="cannot be set: there are steps"):
        play().tune(**how)


def test_a_budget_that_holds_no_chunk_is_refused_before_the_stream_hears_of_it(tmp_path):
    from msk.config import PRESETS
    from msk.kit import Kit
    from msk.models import toy
    from msk.stream import Stream
    kit = Kit.random(toy(PRESETS["wantrack-1.3b"]))
    session = Session(lambda *asked: None, kit.geometry, folder=tmp_path)
    try:
        session.engine.stream = Stream(kit)
        before = session.engine.stream.tuning
        with pytest.raises(ProtocolError, match="a budget of 0 latent frames came, which would hold no chunk: use"):
            session.tune(window=0, steps=1)
        assert session.engine.stream.tuning == before and session.engine.wishes == {}
        session.tune(window=before["window"] + 3)
        assert session.engine.wishes == {"window": before["window"] + 3}
    finally:
        session.close()


def test_the_widget_is_a_picture_where_there_is_no_front_end(tmp_path):
    pytest.importorskip("anywidget")
    from msk.live import Stage
    kit = exact.exact_kit()
    stage = Stage(kit, exact.picture(), "a red ball", folder=tmp_path,
                  open_stream=lambda prompt, image, seed: exact.ExactStream(kit, prompt, image, seed=seed))
    data, _ = stage._repr_mimebundle_()
    import base64
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size == (288, 288) and "mountStage" in stage._esm and "export default" in stage._esm
    stage.close()
    assert not any(t.is_alive() for t in stage.session._threads)


def test_the_mirror_shows_each_cell_that_is_told_and_the_picture_elsewhere():
    import torch

    from msk.kit import Kit
    from msk.live.mirror import Mirror
    from msk.tracks import Tracks
    kit = Kit.random("toy")
    mirror = Mirror(kit, torch.full((1, 3, 32, 32), 0.5))
    first = mirror.frames_wanted
    assert first == 9
    quiet = mirror.step(None)
    assert quiet.shape == (1, 9, 3, 32, 32) and (quiet - 0.175).abs().max() < 0.01
    told = mirror.step(Tracks.drag([[4, 4], [4, 4]], mirror.frames_wanted))
    assert told.shape == (1, 12, 3, 32, 32)
    spoken = ((told[0, 0] - 0.175).abs() > 0.02).any(dim=0)
    assert spoken[:8, :8].all() and not spoken[16:, 16:].any()
    mirror.reset()
    assert mirror.frames_wanted == first
