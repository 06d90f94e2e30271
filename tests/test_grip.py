"""What a hand takes hold of goes along whole, and the rest stays."""
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from msk import grip
from msk.carry import moved as moved_picture
from msk.cutter import cut
from msk.live.hold import Hold
from msk.live.points import MOVE
from msk.live.protocol import Sample
from msk.live.record import _fits, parse_session, read_session
from msk.live.replay import tracks_of
from msk.live.session import Session
from msk.tracks import Tracks
from tests.pages import exact
from tests.pages.exact import disc
from tests.test_live import until

cv2 = pytest.importorskip("cv2")
PICTURE, BALL = np.asarray(exact.picture()), complex(*exact.BALL_AT)
FRAME, W = torch.from_numpy(PICTURE.copy()).permute(2, 0, 1) / 255, exact.GEOMETRY.width


# -- where a thing ends ------------------------------------------------------------------------------------------------

def test_points_along_an_outline_lie_on_it_and_leave_no_wide_gap():
    places = grip.thinned(grip.outline(disc()), 4.)
    off = np.abs(places - BALL)
    assert (off < exact.RADIUS + .8).all() and (off > exact.RADIUS - 1.6).all()
    around = np.sort(np.angle(places - BALL))
    gaps = np.diff([*around, around[0] + 2 * np.pi]) * exact.RADIUS
    assert gaps.max() < 2.5 * 4 and len(places) < 2 * np.pi * exact.RADIUS / 4 * 1.6
    everything = np.ones((40, 40), bool)
    assert not grip.outline(everything).any(), "at the picture's rim nothing ends"


def test_a_thread_has_points_all_along_it():
    mask = np.zeros((96, 96), bool)
    mask[20:40, 20:40], mask[40:80, 29:31] = True, True
    thing = grip.Thing.at(np.zeros((96, 96, 3), np.uint8), 30 + 30j, 8, cut=lambda *_: mask)
    on_thread = np.sort(thing.origins.imag[thing.origins.imag > 41])
    assert np.diff([41, *on_thread, 80]).max() < 2.5 * grip.APART * 96


def test_what_a_nearer_thing_has_cut_in_two_is_one_and_what_lies_farther_apart_is_not():
    mask = np.zeros((96, 96), bool)
    mask[20:60, 20:40], mask[20:60, 43:60], mask[20:60, 66:80] = True, True, True       # gaps of three and six pixels
    thing = grip.Thing.at(np.zeros((96, 96, 3), np.uint8), 30 + 30j, 8, cut=lambda *_: mask)
    assert np.array_equal(thing.mask, mask & (np.arange(96) < 60)) and len(thing.outlines()) == 2
    assert all(thing.covers(thing.origins, wide=False)) and max(thing.origins.real) > 43
    thing.lead([30 + 30j], [34 + 31j])
    middles = np.array([line.mean() for line in thing.outlines()])
    assert np.allclose(sorted(middles.real), [34, 55.5], atol=1) and np.allclose(middles.imag, 41, atol=1)


def test_some_points_say_where_a_thing_ends_from_within_and_some_from_outside():
    thing, side = ball(), min(PICTURE.shape[:2])
    within, beside = np.abs(thing.origins - BALL), np.abs(thing.beside.origins - BALL)
    assert within.max() < exact.RADIUS + 1 and (within > exact.RADIUS - 3).sum() >= 8
    assert not thing.covers(thing.beside.origins).any() and beside.max() < exact.RADIUS + 2 * grip.BESIDE * side + 1
    edge = np.zeros((96, 96), bool)
    edge[30:60, :20] = True                             # it leaves the picture on the left
    thing = grip.Thing.at(np.zeros((96, 96, 3), np.uint8), 10 + 45j, 8, cut=lambda *_: edge)
    beside = thing.beside.origins
    assert grip.inside(beside, (96, 96)).all() and beside.real.max() > 20 and not thing.covers(beside).any()


def test_what_touches_a_thing_and_looks_like_it_stays():
    """Two boxes of one colour side by side: no edge tells them apart, the points beside the one that goes do."""
    picture = torch.full((3, 96, 96), .2)
    picture[0, 30:60, 20:60] = .9
    mask = np.zeros((96, 96), bool)
    mask[30:60, 20:40] = True
    told = grip.whole(hand([30 + 45j + 3 * min(i, 8) * -1j for i in range(9)]), picture, 8, cut=lambda *_: mask)
    geometry = exact.GEOMETRY
    frames = moved_picture(told, picture[None], geometry)[0, -1, :3]
    assert (frames[:, 40:58, 45:58] - picture[:, 40:58, 45:58]).abs().mean() < .02
    assert (frames[0, 8:34, 22:38] > .7).float().mean() > .95, "and the box has gone up"
    things = told.xy[0, -1] - told.origin[0]
    went = things.norm(dim=-1) > 1
    few = Tracks(told.xy[:, :, went], told.visible[:, :, went], told.ids[:, went], told.origin[:, went])
    alone = moved_picture(few, picture[None], geometry)[0, -1, :3]
    assert (alone[:, 40:58, 45:58] - picture[:, 40:58, 45:58]).abs().mean() > .04, "which they would not, without"


# -- moving ------------------------------------------------------------------------------------------------------------

def ball():
    return grip.Thing.at(PICTURE, BALL, 4)


def test_one_point_shifts_a_thing_and_leaves_its_turn():
    thing = ball()
    thing.lead([28 + 45j, 33 + 50j], [28 + 45j, 28 + 45j + (5 + 5j) * 1j])          # a quarter turn about the first
    turned = thing.turn
    assert abs(turned - 1j) < 1e-9
    before = thing.here()
    thing.lead([28 + 45j], [40 + 47j])
    assert thing.turn == turned and np.allclose(thing.here() - before, 12 + 2j)


def test_two_points_turn_and_size_it_and_both_arrive():
    thing, origins = ball(), np.array([24 + 44j, 36 + 52j])
    wanted = 1.5 * np.exp(0.7j) * (origins - BALL) + 50 + 30j
    turn, shift = thing.lead(origins, wanted)
    assert np.allclose(turn * origins + shift, wanted) and abs(abs(turn) - 1.5) < 1e-9
    assert np.allclose([thing.origin(z) for z in thing.here()], thing.origins)


def test_three_points_that_disagree_are_met_as_nearly_as_a_similarity_can():
    thing, origins = ball(), np.array([24 + 44j, 36 + 52j, 30 + 40j])
    wanted = np.array([30 + 40j, 48 + 50j, 33 + 38j])
    thing.lead(origins, wanted)
    ones = np.stack([origins, np.ones(3)], axis=1)
    expected = np.linalg.lstsq(ones, wanted, rcond=None)[0]
    assert np.allclose([thing.turn, thing.shift], expected)


def test_points_pushed_together_do_not_shrink_it_to_nothing():
    thing = ball()
    thing.lead([24 + 44j, 36 + 52j], [50 + 50j, 50.01 + 50j])
    assert abs(thing.turn) == pytest.approx(0.5)


def test_under_a_nearer_thing_nothing_speaks():
    near, far = ball(), ball()
    far.shift = 6 + 0j
    speaks = grip.speaking([near, far], [(1, 0), (1, 6 + 0j)], np.array([BALL, 80 + 80j, 200 + 0j]), [], (W, W))
    assert speaks[0].all() and 0 < speaks[1].sum() < len(speaks[1]) and speaks[2].tolist() == [False, True, False]
    assert (np.abs(far.here() - BALL)[speaks[1]] > exact.RADIUS).all()


# -- whole tracks --------------------------------------------------------------------------------------------------------

def hand(path, lit=None):
    xy = torch.tensor([[z.real, z.imag] for z in path]).view(1, -1, 1, 2)
    tracks = Tracks(xy, torch.ones(1, len(path), 1, dtype=torch.bool), torch.tensor([[7]]), xy[:, 0])
    if lit is not None:
        tracks.visible[0, :, 0] = torch.tensor(lit)
    return tracks


def test_the_whole_thing_goes_with_a_track_and_the_rest_stays():
    path = [BALL + 2 * i for i in range(9)]
    told = grip.whole(hand(path), FRAME, 8, max_id=400)
    assert len(set(told.ids[0].tolist())) == told.ids.shape[1] and told.ids[0, 0] == 7 and told.ids.max() < 400
    way = told.xy[0] - told.origin
    moves = way[-1].norm(dim=-1) > 1
    on_ball = torch.tensor([abs(complex(*o) - BALL) <= exact.RADIUS + 1 for o in told.origin[0].tolist()])
    assert torch.equal(moves, on_ball) and moves.sum() > 3 and (~moves).sum() > 40
    assert torch.allclose(way[:, moves], hand(path).xy[0] - torch.tensor([BALL.real, BALL.imag]), atol=1e-3)
    covered = (told.xy[0, -1] - told.xy[0, -1, 0]).norm(dim=-1) < exact.RADIUS - 1
    assert not told.visible[0, -1, covered & ~moves].any()


def test_what_is_let_go_stays_where_it_was_left():
    told = grip.whole(hand([BALL + 3 * min(i, 5) for i in range(9)], [i <= 5 for i in range(9)]), FRAME, 8)
    moves = (told.xy[0, 5] - told.origin[0]).norm(dim=-1) > 1
    assert not told.visible[0, -1, 0] and torch.equal(told.xy[0, -1, moves], told.xy[0, 5, moves])
    assert told.visible[0, -1, moves][1:].all()


def test_a_track_that_is_hidden_outside_the_picture_leads_on():
    path = [BALL + 11 * i for i in range(9)]                            # out of the picture on its right
    told = grip.whole(hand(path, [z.real < W for z in path]), FRAME, 8)
    moves = (told.xy[0, -1] - told.origin[0]).norm(dim=-1) > 1
    assert torch.allclose(told.xy[0, -1, moves] - told.origin[0, moves], torch.tensor([88.0, 0.0]), atol=1e-3)
    assert path[-1].real - exact.RADIUS > W and not told.visible[0, -1, moves].any()


def test_a_track_on_the_ground_moves_its_spot_alone():
    told = grip.whole(hand([70 + 80j + i for i in range(5)]), torch.full((3, 96, 96), 0.4), 8)
    assert ((told.xy[0, -1] - told.origin[0]).norm(dim=-1) > 0).sum() == 1


# -- in a session --------------------------------------------------------------------------------------------------------

@pytest.fixture
def play(tmp_path):
    sessions = []

    def begin(rest=True, picture=None, **options):
        kit, streams = exact.exact_kit(), []

        def open_stream(prompt, image, seed):
            streams.append(exact.ExactStream(kit, prompt, image, seed=seed, cost=0.01))
            return streams[-1]

        session = Session(open_stream, kit.geometry, name="exact", folder=tmp_path, cut=cut, rest=rest, **options)
        session.streams, session.events = streams, []
        session.on_event = session.events.append
        session.open(picture or exact.picture(), "a red ball", 3)
        sessions.append(session)
        return session

    yield begin
    for session in sessions:
        session.close()


def share(place):
    return place.real / W, place.imag / W


def asked(session):
    """The tracks of the latest chunk."""
    return session.streams[-1].asked[-1]


def drag(session, to, id=1):
    session.grab([id])
    session.move([Sample(0.0, id, *share(to))])
    session.release([id])
    until(lambda: abs(session.points[id].follower.at - to) < 0.5)


def moved(tracks):
    """How far each point stands from its origin at the end, where both are known: [N] complex."""
    way = (tracks.xy[0, -1] - tracks.origin[0]).nan_to_num(0).double().numpy()
    return way @ np.array([1, 1j])


def test_a_dragged_point_takes_its_thing_along_and_the_rest_stays(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    assert len(session.describe()["things"]) == 1 and len(session.describe()["things"][0]) >= 6
    session.start()
    drag(session, BALL + 24 + 6j)
    until(lambda: np.abs(moved(asked(session)) - (24 + 6j)).min() < 0.6)
    way = moved(asked(session))
    assert (np.abs(way - (24 + 6j)) < 0.6).sum() > 3 and (np.abs(way) < 1e-3).sum() > 40
    assert (np.abs(way - (24 + 6j)) < 0.6).sum() + (np.abs(way) < 1e-3).sum() == len(way)


def test_a_point_that_takes_nothing_says_so_once_and_a_box_of_them_does_not(play):
    session = play()
    notes = lambda: [e["message"] for e in session.events if e["type"] == "note"]
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.add(2, 0.9, 0.9)
    until(lambda: session.points[2].looked and notes())
    session.grid(3, (0.7, 0.7, 0.98, 0.98), 0.1)
    until(lambda: len(session.points) > 4 and all(p.looked for p in session.points.values()))
    assert len(notes()) == 1 and notes()[0].startswith("Nothing whole")


def test_a_hand_leads_a_thing_out_of_the_picture_and_back(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    goes = lambda tracks: torch.from_numpy(np.abs(moved(tracks)) > 1)
    edge = complex(W + 1, BALL.imag)
    drag(session, edge)
    until(lambda: abs(moved(asked(session))[0] - (edge - BALL)) < 0.6)
    tracks = asked(session)
    speaks = tracks.visible[0, -1] & goes(tracks)
    assert not tracks.visible[0, -1, 0]                                 # the hand's own point says nothing out there,
    assert speaks.any() and torch.equal(speaks, goes(tracks) & (tracks.xy[0, -1, :, 0] < W))     # its thing does, within
    drag(session, BALL + 10)
    until(lambda: abs(moved(asked(session))[0] - 10) < 0.6)
    tracks = asked(session)
    assert goes(tracks).sum() > 3 and tracks.visible[0, -1, goes(tracks)].all()


def test_before_the_first_frame_a_point_stays_in_the_picture_and_so_does_what_a_path_holds(play):
    session = play()
    session.add(1, 0.97, 0.5)
    session.grab([1])
    session.move([Sample(0.0, 1, 1.07, 0.5)])
    session.release([1])
    assert 0 <= session.points[1].target.real < W and session.points[1].origin == session.points[1].target
    session.path(2, [(0, 1.2, 0.5), (1, 0.5, 0.5), (1, 0.5, 0.6)], "once", 1.0, 0.0)
    point = session.points[2]
    assert point.way.start.real > W and 0 <= point.origin.real < W
    other = play()
    assert other.go_on_from(session) == 0
    assert len(other.points[2].way.nodes) == 3                          # two nodes of one moment, too


def test_a_thing_whose_point_is_taken_away_stays_where_it_is_left_and_reset_brings_it_back(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 24)
    session.remove([1])
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 2)
    assert (np.abs(moved(asked(session)) - 24) < 0.6).sum() > 3
    session.undo()                                                      # the point comes back, and holds the same thing
    assert session.points[1].thing is session.hold.things[0]
    session.reset()
    until(lambda: session.state == "ready")
    assert np.allclose(session.hold.things[0].here(), session.hold.things[0].origins)


def test_if_the_rest_is_free_only_things_in_a_hand_are_told(play):
    session = play(rest=False)
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    until(lambda: len(session.streams[-1].asked) > 1)
    assert all(abs(complex(*o) - BALL) <= exact.RADIUS + 1 for o in asked(session).origin[0].tolist())
    session.remove([1])
    until(lambda: asked(session) is None)


def test_a_pin_on_a_held_thing_is_its_hinge(play):
    session = play()
    session.add(1, *share(BALL + 6))
    until(lambda: session.points[1].thing is not None)
    session.add(2, *share(BALL - 6), kind="pin")
    assert session.points[2].thing is session.points[1].thing
    session.start()
    drag(session, BALL + 6 + 12j)                                       # 45 degrees about the pin
    thing = session.points[1].thing
    until(lambda: abs(np.angle(thing.turn) - np.pi / 4) < 0.1)
    assert abs(thing.turn * (BALL - 6) + thing.shift - (BALL - 6)) < 1


def test_points_alone_move_their_spots_when_grips_are_off(play):
    session = play(rest=False)
    session.grip(False)
    session.add(1, *share(BALL))
    until(lambda: session.state == "ready")
    session.start()
    until(lambda: len(session.streams[-1].asked) > 1)
    assert asked(session).ids.shape[1] == 1
    session.grip(True)
    until(lambda: asked(session).ids.shape[1] > 3)


def test_the_camera_takes_along_what_no_hand_holds(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 10)
    session.remove([1])
    thing = session.hold.things[0]
    before = thing.here().mean()
    session.camera(right=-0.2, down=0.0, zoom=0.0, roll=0.0, orbit=0.0, dolly=0.0)
    until(lambda: not session.hold.flight.flies)
    assert abs(thing.here().mean() - before - 0.2 * W) < 1 and abs(thing.turn - 1) < 0.01


def about_it(session):
    """Ids of the points beside the first thing."""
    return set(session.hold.things[0].beside.ids)


def where(session, ids):
    """How far those of the latest chunk that have these ids stand from their origins, at its end."""
    tracks = asked(session)
    return moved(tracks)[[i in ids for i in tracks.ids[0].tolist()]]


def test_points_beside_a_thing_stay_as_it_goes_and_go_with_the_camera(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 24)
    until(lambda: (np.abs(moved(asked(session)) - 24) < 0.6).sum() > 3)
    ids = about_it(session)
    assert len(ids) == len(session.hold.things[0].beside.origins) > 8 and ids <= session.hold.ids
    assert len(where(session, ids)) == len(ids) and np.abs(where(session, ids)).max() < 1e-6
    session.camera(right=-0.1, down=0.0, zoom=0.0, roll=0.0, orbit=0.0, dolly=0.0)
    until(lambda: not session.hold.flight.flies)
    assert np.abs(where(session, ids) - 0.1 * W).max() < 1
    session.rest(False)
    until(lambda: len(where(session, ids)) == 0)
    session.reset()
    until(lambda: session.state == "ready")
    beside = session.hold.things[0].beside
    assert (beside.turn, beside.shift) == (1, 0) and about_it(session) == ids


def test_no_point_of_the_rest_holds_back_a_part_of_a_thing(play):
    """Points that lie on it say nothing, hidden ones neither: they would own pixels of it, which stayed where they were."""
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 30)
    until(lambda: (np.abs(moved(asked(session)) - 30) < 0.6).sum() > 3)
    tracks, thing = asked(session), session.hold.things[0]
    origins = tracks.origin[0].double().numpy() @ np.array([1, 1j])
    assert thing.covers(origins[np.abs(moved(tracks)) < 1], (1, 0)).sum() == 0
    made = moved_picture(tracks, FRAME[None], exact.GEOMETRY)[0, -1, :3].movedim(0, -1)
    there = torch.from_numpy(disc(centre=BALL + 30, radius=exact.RADIUS - 2))
    assert (made[there] - torch.tensor(exact.BALL) / 255).abs().max() < .1, "no hole in it"


@pytest.mark.parametrize("move", [{"dolly": .4}, {"orbit": 25.}, {"dolly": -.5, "orbit": -15., "zoom": .4, "roll": 20.}])
def test_points_beside_a_held_thing_go_as_the_ground_there_however_far_the_camera_flies(move):
    names = iter(range(1, 10_000))
    hold = Hold(W, W, lambda: next(names), cut=cut, rest=True)
    point = SimpleNamespace(id=1, track_id=next(names), origin=BALL, thing=None, looked=False)
    hold.join(point, hold.find(PICTURE, BALL, []))
    beside, flown, frames = point.thing.beside, [], hold.flight.frames
    hold.flight.frames = lambda *how, **more: (flown.append(frames(*how, **more)), flown[-1])[1]
    began = beside.here().mean()
    hold.flight.ask(move)
    for k in range(12):
        hold.frames(12, k == 0, [point], [[BALL] * 12])
    place, z = began, hold.flight.depth(began)
    for go in (go for _, moves in flown for go in moves if go is not None):
        place, z = go(place, z)
    assert abs(place - began) > 1 or "zoom" in move
    assert abs(beside.here().mean() - place) < .5 and point.thing.here().mean() == pytest.approx(BALL, abs=1)


def test_a_thing_found_in_a_picture_that_has_moved_has_no_points_beside_it(play):
    """What is beside it now is not known: the camera's guess of depth has bent it."""
    session = play()
    until(lambda: session.state == "ready")
    session.start()
    session.camera(right=-0.05, down=0.0, zoom=0.0, roll=0.0, orbit=0.0, dolly=0.0)
    until(lambda: not session.hold.flight.flies and session.hold.flight.moved)
    session.add(1, *share(BALL + 0.05 * W))
    until(lambda: session.points[1].thing is not None)
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 1)
    assert not about_it(session) and len(where(session, set(session.points[1].thing.ids))) > 3


def test_what_was_told_is_in_the_session_file_and_can_be_told_again(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 20 + 4j)
    session.remove([1])
    session.camera(right=0.1, down=0.0, zoom=0.3, roll=0.0, orbit=0.0, dolly=0.0)
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 6)
    take, told = session.take, session.streams[-1].asked
    session.stop()
    until(lambda: take.closed)
    chunks = read_session(take.file())["chunks"]
    assert len(take.file().read_bytes()) < 12_000 * len(chunks) + 30_000
    for chunk, tracks in zip(chunks, told):
        again = tracks_of(chunk)
        assert torch.equal(again.xy, tracks.xy) and torch.equal(again.visible, tracks.visible)
        assert torch.equal(again.ids, tracks.ids) and torch.equal(again.origin.isnan(), tracks.origin.isnan())


def test_a_kept_session_goes_on_with_what_was_held(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 20)
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 1)           # so that it has come into the file
    take = session.take
    session.stop()
    until(lambda: take.closed)
    other = play()
    other.load(read_session(take.file()))
    other.start()
    until(lambda: other.state == "paused" and not other.script.chunks)
    thing = other.points[1].thing
    assert thing is other.hold.things[0] and abs(thing.here().mean() - thing.origins.mean() - 20) < 1
    other.resume()
    count = len(other.streams[-1].asked)
    until(lambda: len(other.streams[-1].asked) > count + 1)
    assert (np.abs(moved(asked(other)) - 20) < 0.6).sum() > 3
    assert about_it(other) == about_it(session) and np.abs(where(other, about_it(other))).max() < 1e-6


@pytest.mark.parametrize("damage", [
    {"ids": [1, 2], "origin": [[1, 2]]}, {"ids": [1], "origin": [[1, 2]], "way": [[1, 0, 0, 0]]},
    {"ids": [1], "origin": [[1, 2]], "unseen": {"4": [0]}}, {"ids": [1], "origin": [[1, 2]], "at": [[1]]},
    {"ids": [1], "origin": [[1, 2]], "unseen": []}, {"ids": [1], "origin": [[1, 1e9]]}, {"ids": [], "origin": []},
    {"ids": ["x"], "origin": [[1, 2]]}, {"ids": [1], "origin": [[1, 2]], "way": [[0, 0, 1, 1]] * 9},
    {"ids": [1], "origin": [[1, 2]], "way": [[1, 0, 0, 0]] * 9, "seed": [float("inf"), 0]},
    {"ids": [1], "origin": [[1, 2]], "way": None, "seed": [1, 2]},
    {"ids": [1], "origin": [[1, 2]], "way": [], "seed": [1, 2]},
    {"ids": [1], "origin": [[1, 2]], "beside": 0, "way": [[1, 0, 0, 0]] * 9},
    {"ids": [1], "origin": [[1, 2]], "beside": "0", "way": [[1, 0, 0, 0]] * 9}])
def test_damaged_groups_are_told_of(play, damage):
    chunk = {"chunk": 0, "frames": 9, "ids": [], "who": [], "xy": [], "origin": [], "held": [damage]}
    head = {"format": "msk session 1", "model": "exact", "prompt": "", "picture": "", "seed": 1, "width": W, "height": W,
            "frames_per_second": 24}
    with pytest.raises(ValueError, match="does not hold together"):
        parse_session("\n".join(map(json.dumps, (head, chunk))).encode())


def test_a_point_that_joins_a_moved_thing_knows_which_part_of_the_picture_it_holds():
    names = iter(range(1000))
    hold = Hold(W, W, lambda: next(names), cut=cut, rest=True)
    thing = hold.find(PICTURE, BALL, [])
    hold.join(SimpleNamespace(), thing)
    thing.lead([BALL], [BALL + 30])
    assert hold.under(BALL) is None and hold.under(BALL + 32) is thing and thing.origin(BALL + 32) == BALL + 2
    assert len(set(thing.ids)) == len(thing.origins)


def a_hold(seed=0, held=()):
    """A Hold whose names are drawn as a session draws them, beside those of its points."""
    dice = random.Random(seed)

    def name():
        taken = {p.track_id for p in held} | hold.ids
        return next(i for i in iter(lambda: dice.randrange(2048), None) if i not in taken)
    hold = Hold(W, W, name, cut=cut, rest=True)
    return hold


def test_no_two_points_have_one_name():
    for seed in range(30):
        hold = a_hold(seed)
        thing = hold.find(PICTURE, BALL, [])
        hold.join(SimpleNamespace(), thing)
        hold.frames(1, True, [], [])
        names = [*thing.ids, *thing.beside.ids, *(p[0] for p in hold.flight.points)]
        assert len(set(names)) == len(names) > 64
    groups = hold.frames(12, False, [], [])[1]
    groups[0]["ids"], groups[0]["origin"] = groups[0]["ids"][:-2], groups[0]["origin"][:-2]     # as an older msk laid them
    for seed in range(30):
        other = a_hold(seed)
        again = other.find(PICTURE, BALL, [])
        other.again(groups[:1] + groups[2:], [], {}, [again, None])
        names = [*again.ids, *again.beside.ids, *(p[0] for p in other.flight.points)]
        assert len(set(names)) == len(names) and len(again.ids) == len(again.origins)
        assert len(again.beside.ids) == len(again.beside.origins), "it goes on as what is new does"


@pytest.mark.parametrize("move", [{"zoom": -2.0}, {"zoom": 2.0}, {"dolly": 1.5}, {"orbit": 60.0}, {"right": 2.0}])
def test_a_camera_that_flies_on_while_a_hand_holds_a_thing_leaves_a_session_whole(move):
    point = SimpleNamespace(id=1, track_id=5, origin=BALL, thing=None, looked=False)
    hold = a_hold(held=[point])
    hold.join(point, hold.find(PICTURE, BALL, []))
    for k in range(60):                                                                 # half a minute
        hold.flight.ask(dict.fromkeys(MOVE, 0.0) | move)
        _, groups = hold.frames(12, k == 0, [point], [[BALL] * 12])
        groups = json.loads(json.dumps(groups))
        assert all(_fits(group, 12, groups) for group in groups)
    assert point.thing is hold.things[0] and abs(point.thing.turn - 1) < 1e-6
    hold.reset([point])
    assert len(point.thing.beside.ids) == len(point.thing.beside.origins) and point.thing.beside.turn == 1


def test_a_thing_that_was_moved_is_known_where_it_is_though_nothing_holds_it(play):
    session = play(rest=False)
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    drag(session, BALL + 24)
    session.remove([1])
    session.add(2, *share(BALL + 26))
    assert session.points[2].thing is session.hold.things[0] and abs(session.points[2].origin - (BALL + 2)) < 0.6
    session.remove([2])
    session.rest(True)
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 1)
    assert (np.abs(moved(asked(session)) - 24) < 0.6).sum() > 3         # it is held there, not carried back


def test_a_pin_that_was_there_before_is_a_hinge_too(play):
    session = play()
    session.add(1, *share(BALL - 6), kind="pin")
    session.add(2, *share(BALL + 6))
    until(lambda: session.points[2].thing is not None)
    assert session.points[1].thing is session.points[2].thing


def test_a_pin_on_the_ground_under_a_moved_thing_stays_a_pin(play):
    session = play()
    session.add(1, *share(BALL + 24), kind="pin")
    session.add(2, *share(BALL))
    until(lambda: session.points[2].thing is not None)
    session.start()
    drag(session, BALL + 24, id=2)
    session.grip(False)
    session.grip(True)
    until(lambda: session.points[2].thing is not None)
    assert session.points[1].thing is None


def test_many_new_points_do_not_stop_the_video(play):
    session = play()
    until(lambda: session.state == "ready")
    session.start()
    until(lambda: len(session.streams[-1].asked) > 1)
    session.grid(1, (0, 0, 1, 1), 0.12)
    count = len(session.streams[-1].asked)
    until(lambda: len(session.streams[-1].asked) > count + 3)
    assert sum(not p.looked for p in session.points.values()) > 20


def test_a_cut_that_fails_leaves_the_point_its_spot(play):
    session = play()

    def cut(picture, place):
        raise RuntimeError("no memory")
    session.hold.cut = cut
    session.add(1, *share(BALL))
    until(lambda: session.points[1].looked)
    session.start()
    until(lambda: len(session.streams[-1].asked) > 1)
    assert session.points[1].thing is None
    assert sum("could not be found" in e.get("message", "") for e in session.events) == 1


def test_a_thing_goes_no_faster_than_the_model_can_follow():
    thing = ball()
    was = thing.here()
    thing.lead([24 + 44j, 36 + 52j], [80 + 80j, 70 + 95j], longest=4.0)
    assert abs(thing.here().mean() - was.mean()) < 4.001 and np.abs(thing.here() - was).max() < 8.1


def test_what_stays_the_same_is_written_once(play):
    session = play()
    session.add(1, *share(BALL))
    until(lambda: session.points[1].thing is not None)
    session.start()
    until(lambda: len(session.streams[-1].asked) > 6)
    take = session.take
    session.stop()
    until(lambda: take.closed)
    kept = json.loads(take.file().read_text())["chunks"]
    assert [c["held"] == "again" for c in kept[2:]] == [True] * (len(kept) - 2) and kept[1]["held"] != "again"
    assert read_session(take.file())["chunks"][-1]["held"] == kept[1]["held"]
