"""What a hand asks for is drawn exactly; who does it well is measured as doing it well, and who does nothing as that."""
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from msk import hands
from msk.config import Geometry
from msk.kit import Kit
from msk.tracks import Tracks
from msk.world import HELD_OUT, World

WIDTH, FRAMES = 64, 21
WORLD = World(Geometry(WIDTH, WIDTH))


@pytest.fixture(scope="module")
def take():
    """The first take of a case, each played once."""
    played = {}

    def first(name):
        if name not in played:
            played[name] = next(hands.takes(WORLD, name, HELD_OUT, 1, FRAMES))
        return played[name]
    return first


@pytest.fixture(scope="module")
def toy():
    return Kit.random("toy")


def scored(made, take, chunks=((0, 9), (9, 21))) -> dict:
    score = hands.Score(WIDTH, list(chunks), chunks[-1][1])
    score.add(made, take)
    return score.summary()


# -- what is asked ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, way", [("drag", (.6, 0)), ("flick", (.6, 0)), ("reversal", (0, 0)), ("off", (0, 0))])
def test_the_thing_goes_where_the_hand_takes_it(take, name, way):
    path = take(name).dragged.xy[0, :, 0]
    assert (path[-1] - path[0]).norm() == pytest.approx(math.hypot(*way) * WIDTH / 2, abs=.01)


def test_a_point_of_the_truth_is_where_the_picture_shows_it(take):
    shot = take("drag")
    first, last = (F.grid_sample(shot.truth[:, t], shot.thing.xy[:, t, None] * 2 / WIDTH - 1, align_corners=False)
                   for t in (0, -1))
    assert (first - last).abs().mean() < .03


def test_all_but_the_dragged_thing_stays_and_the_thing_is_stiff(take):
    shot = take("drag")
    torch.testing.assert_close(shot.rest.xy, shot.rest.xy[:, :1].expand_as(shot.rest.xy), atol=1e-3, rtol=0)
    way = shot.thing.xy - shot.thing.xy[:, :1]
    torch.testing.assert_close(way, way[:, :, :1].expand_as(way), atol=1e-3, rtol=0)


def test_a_thing_that_is_turned_turns_about_its_middle_and_grows_and_so_do_the_two_points_that_hold_it(take):
    shot, (angle, grown) = take("turned"), (x[-1].item() for x in hands.CASES["turned"].turns(torch.ones(2)))
    assert angle == pytest.approx(.8) and grown == pytest.approx(4 / 3) and shot.dragged.xy.shape[2] == 2
    turn = grown * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = torch.tensor([WIDTH / 2, WIDTH / 2])
    for points in (shot.dragged, shot.told, shot.thing):
        want = (points.xy[0, 0] - middle) @ turn.T + middle
        torch.testing.assert_close(points.xy[0, -1], want, atol=.05, rtol=0)
    torch.testing.assert_close(shot.rest.xy, shot.rest.xy[:, :1].expand_as(shot.rest.xy), atol=1e-3, rtol=0)


def test_two_things_go_opposite_ways(take):
    first, second = (take("opposite").dragged.xy[0, -1] - take("opposite").dragged.xy[0, 0])
    torch.testing.assert_close(first, -second, atol=1e-3, rtol=0)


def test_pins_stay_on_the_background_of_the_very_same_scene(take):
    drag, pinned = take("drag"), take("pinned")
    assert torch.equal(drag.truth, pinned.truth)
    pins = pinned.told.xy[0, :, 1:]
    assert pins.shape[1] > 0 and torch.equal(pins, pins[:1].expand_as(pins)) and pinned.told.visible[0, :, 1:].all()


def test_hands_tell_only_while_they_hold(take):
    time = torch.arange(FRAMES) / (FRAMES - 1)
    assert take("drag").told.visible.all()
    assert torch.equal(take("release").told.visible[0, :, 0], time < .55)
    assert torch.equal(take("added").told.visible[0, :, 1], time >= .5) and take("added").told.visible[0, :, 0].all()
    off = take("off").told
    outside = ((off.xy < 0) | (off.xy >= WIDTH)).any(dim=-1)
    assert outside.any() and not outside[:, [0, -1]].any() and torch.equal(off.visible, ~outside)
    for name in hands.CASES:
        assert torch.equal(take(name).told.origin, take(name).told.xy[:, 0]), "what is held lies there in the picture"


def test_the_released_thing_stays_and_the_added_one_waits(take):
    released, added = take("release").dragged.xy[0, :, 0], take("added").dragged.xy[0]
    torch.testing.assert_close(released[FRAMES // 2:], released[-1:].expand_as(released[FRAMES // 2:]), atol=1e-3, rtol=0)
    torch.testing.assert_close(added[:FRAMES // 2, 1], added[:1, 1].expand(FRAMES // 2, -1), atol=1e-3, rtol=0)


def test_a_long_play_ends_where_it_began():
    s = torch.linspace(0, 1, 117)
    path, = hands.CASES["long"].paths(s, s * 116 / 24)
    torch.testing.assert_close(path[0], path[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(path.norm(dim=-1), torch.full((117,), .3))


# -- what is measured ----------------------------------------------------------------------------------------------------

def test_the_truth_itself_is_followed_to_the_tracker_s_floor(take):
    row = scored(take("off").truth, take("off"))
    assert max(row["epe_rel"], row["epe_rel_thing"], row["epe_rel_rest"]) < .002 and row["psnr"] == pytest.approx(100)
    assert row["drift"]["sharpness"] == row["drift"]["saturation"] == pytest.approx(1)


def test_a_still_image_is_wrong_by_how_far_the_thing_went(take):
    shot = take("drag")
    went = (shot.dragged.xy - shot.dragged.xy[:, :1]).norm(dim=-1)[:, 1:][shot.dragged.visible[:, 1:]].mean()
    row = scored(shot.truth[:, :1].expand_as(shot.truth).contiguous(), shot)
    assert row["epe_rel_still"] == pytest.approx(went.item() / WIDTH, rel=1e-5)
    assert row["epe"] == pytest.approx(went.item(), rel=.15) and row["psnr"] == pytest.approx(row["psnr_still"])
    assert row["epe_rel_rest"] < .002 and row["psnr_rest"] > 50, "and what stays it gets right"


def test_a_picture_that_slides_away_whole_fails_at_what_should_stay(take):
    shot, shift = take("drag"), 3
    row = scored(shot.truth.roll(shift, dims=-1), shot)
    for name in ("epe_rel", "epe_rel_thing", "epe_rel_rest"):
        assert row[name] == pytest.approx(shift / WIDTH, rel=.15)


def test_errors_stand_in_the_chunk_that_made_them_and_drift_compares_the_ends(take):
    shot = take("drag")
    made = shot.truth.clone()
    made[:, 9:] = made[:, 9:].roll(2, dims=-1)
    grey = made[:, 9:].mean(dim=2, keepdim=True)
    made[:, 9:] = grey + .5 * (made[:, 9:] - grey)
    row = scored(made, shot)
    assert row["epe_rel_chunks"][0] < .002 and row["epe_rel_chunks"][1] == pytest.approx(2 / WIDTH, rel=.2)
    assert row["drift"]["saturation"] == pytest.approx(.5, abs=1e-3) and row["drift"]["sharpness"] < 1
    assert row["drift"]["epe"] == pytest.approx(row["epe_rel_chunks"][1] / row["epe_rel_chunks"][0])


def test_of_a_long_play_both_ends_are_measured_and_even_steps_between(toy):
    chunks = [(0, 9)] + [(9 + 12 * i, 21 + 12 * i) for i in range(9)]
    assert hands.looked_at(chunks) == (list(range(117)), chunks)
    seen, spans = hands.looked_at(chunks, most=20)
    assert seen == [*range(9), *range(12, 105, 6), *range(105, 117)]
    assert spans[0] == (0, 9) and spans[1] == (9, 11) and spans[-1] == (len(seen) - 12, len(seen)) and len(spans) == 10
    sparse = hands.looked_at([(0, 9), (9, 21), (21, 33), (33, 45)], most=1)
    assert sparse[0] == [*range(9), *range(33, 45)] and sparse[1] == [(0, 9), (9, 21)], "a chunk of which nothing is seen"


def test_a_play_that_is_measured_in_part_is_the_same_play(toy):
    seen = [0, 1, 2, 8, 14, 20]
    world, most = World(toy.geometry), toy.preset.tracks.max_id
    whole, part = (next(hands.takes(world, "long", HELD_OUT, 1, FRAMES, most, only)) for only in (None, seen))
    way = lambda tracks: tracks.xy[0, :, 0] - tracks.xy[0, 0, 0]
    assert torch.allclose(way(part.told), way(whole.told), atol=1e-3), "the hand tells all of it"
    assert torch.allclose(part.truth, whole.truth[:, seen], atol=1e-6)
    again = replace(whole, seen=seen)
    assert torch.equal(hands.play(toy, again), hands.play(toy, whole)[:, seen])


def test_the_ceiling_is_what_the_vae_leaves_of_the_truth(toy, monkeypatch):
    shot = next(hands.takes(World(toy.geometry), "drag", HELD_OUT, 1, FRAMES, toy.preset.tracks.max_id))
    score = hands.Score(toy.geometry.width, [(0, FRAMES)], FRAMES)
    monkeypatch.setattr(hands, "through_vae", lambda kit, truth: truth + .1)
    score.reach(toy, shot)
    assert score.ceiling == [pytest.approx(20, abs=1e-3)]
    score.reach(toy, replace(shot, seen=shot.seen[::2]))
    assert len(score.ceiling) == 1, "of a truth with gaps a VAE makes nothing"


def test_the_rest_is_where_the_truth_never_changes():
    truth = torch.zeros(1, 5, 3, 8, 8)
    truth[:, 2:, :, :4] = 1
    made = truth + .1
    assert hands.psnr_rest(made, truth) == pytest.approx(20, abs=1e-3)
    made[:, :, :, :4], made[:, 0] = .5, 9
    assert hands.psnr_rest(made, truth) == pytest.approx(20, abs=1e-3), "neither the half that changes nor the given frame"
    assert hands.psnr_rest(made[..., :4, :], truth[..., :4, :]) is None


def test_sharpness_and_saturation_are_what_they_say():
    steps = torch.zeros(1, 3, 8, 9)
    steps[..., 1::2] = .5
    assert hands.sharpness(steps).item() == pytest.approx(.5) and hands.saturation(steps).item() == 0
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = .8
    assert hands.saturation(red).item() == pytest.approx(.8) and hands.sharpness(red).item() == 0


# -- the suite -----------------------------------------------------------------------------------------------------------

def test_the_suite_reports_every_case_and_draws_its_strip(toy, tmp_path, monkeypatch):
    from PIL import Image
    monkeypatch.setattr(hands, "play", lambda kit, shot: shot.truth)
    path = tmp_path / "new" / "h.json"
    report = hands.run(toy, 1, path, cases=("pinned", "long"), frames=FRAMES, long=33, strips=tmp_path, quiet=True)
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(report)) and written["complete"] and written["suite"] == "hands"
    assert {"command", "device", "dtype", "revision", "model", "level"} <= set(written)
    assert [row["frames"] for row in report["rows"].values()] == [FRAMES, 33]
    assert len(report["rows"]["long"]["epe_rel_chunks"]) == 3
    assert all(row["n"] == 1 and row["epe"] < .3 and row["seeds"][0] >= HELD_OUT for row in report["rows"].values())
    for name in ("pinned", "long"):
        assert f"\n{name:<10}" in hands.table(report)
        assert Image.open(tmp_path / f"{name}.png").width >= 9 * 64 + 8 * 2


def test_the_player_s_stream_is_what_is_measured(kit):
    from msk.generate import by_stream
    shot = next(hands.takes(World(kit.geometry), "drag", HELD_OUT, 1, FRAMES, kit.preset.tracks.max_id))
    made = hands.play(kit, shot)
    assert made.shape == shot.truth.shape
    silent = torch.cat(list(by_stream(kit, shot.caption, shot.truth[:, 0], Tracks.empty(1, FRAMES), FRAMES, shot.seed)))
    assert (made[0] - silent).abs().max() > 1e-3, "the tracks are told"


def test_an_interrupt_keeps_what_was_measured(toy, tmp_path, monkeypatch):
    played = []

    def impatient(kit, shot):
        played.append(shot.seed)
        if len(played) > 1:
            raise KeyboardInterrupt
        return shot.truth

    monkeypatch.setattr(hands, "play", impatient)
    hands.run(toy, 2, tmp_path / "h.json", cases=("drag",), frames=5, quiet=True)
    written = json.loads((tmp_path / "h.json").read_text())
    assert written["rows"]["drag"]["seeds"] == played[:1] and not written["complete"]


def test_what_cannot_be_played_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ValueError, match="no case called juggle: use some of drag"):
        hands.run(toy, cases=("juggle",))
    with pytest.raises(ValueError, match="held-out clips begin at"):
        hands.run(toy, seed=3)
    monkeypatch.setattr(hands, "take", lambda *order: None)
    with pytest.raises(ValueError, match="0 of 40 scenes can play 'added', 2 are wanted"):
        hands.run(toy, 2, cases=("added",), frames=5, quiet=True)


def test_a_very_long_clip_is_looked_at_now_and_then_and_its_points_are_still_true():
    shot_of = lambda most: hands.measurable(clip, 16, torch.Generator().manual_seed(0), most)
    scene, captions = WORLD.scene(1, FRAMES, HELD_OUT)
    scene = hands.staged(scene, [0], hands.circle(torch.linspace(0, 1, FRAMES))[:, None])
    clip = hands.Clip(scene.render(), captions, scene)
    sparse = shot_of(8)
    assert sparse.xy.shape[:3] == (1, FRAMES, 16)
    true = clip.track(sparse.xy[:, 0])
    torch.testing.assert_close(sparse.xy, true.xy)
    assert not (sparse.visible & ~true.visible).any() and sparse.visible.any()
