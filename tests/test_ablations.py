"""One thing is changed and all else stays; what the paper found is held against what was measured, not against a wish."""
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from msk import ablations, cache, viz
from msk.ablations import CASES, Claim, Job
from msk.config import PRESETS
from msk.kit import Kit
from msk.tracks import Tracks
from msk.world import HELD_OUT

FRAMES = 21
SMALL = dict(frames=FRAMES, long=45, updates=2, quiet=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two chunks timed, and no tracker: made videos are found one pixel astray."""
    monkeypatch.setattr(ablations, "TIMED", 2)
    monkeypatch.setattr(ablations.trackers, "register", lambda made, truth, xy: xy + 1.)


def job(kit, **changes) -> Job:
    return Job(**(dict(student=kit, teacher=lambda: replace(kit, role="teacher"), clips=1, frames=FRAMES, long=45, updates=2,
                       seed=HELD_OUT, level="calm") | changes))


def without_times(report: dict) -> dict:
    """All that does not hang on the clock."""
    rows = report["cases"]["chunk"]["settings"]
    return {name: {what: row["each"][what] for what in ("psnr", "epe_rel", "sharpness")} for name, row in rows.items()}


# -- claims --------------------------------------------------------------------------------------------------------------

def rows(**each):
    return {name: {"each": {"epe_rel": values}} for name, values in each.items()}


@pytest.mark.parametrize("worse, agrees", [([.3, .5, .4, .6], True), ([.1, .1, .1, .1], False), ([.1, .5, .2, .4], None)])
def test_a_claim_is_judged_clip_by_clip_by_two_standard_errors(worse, agrees):
    judged = Claim("one is worse", "epe_rel", "one", "three").judged(rows(one=worse, three=[.2, .4, .3, .3]))
    assert judged["agrees"] is agrees and "epe_rel" in judged["ours"]


def test_a_difference_in_every_clip_is_told_apart_however_much_clips_differ():
    three = [.1, 1., 10., 100.]
    judge = Claim("one is worse", "epe_rel", "one", "three").judged
    assert judge(rows(one=[x + .01 for x in three], three=three))["agrees"] is True
    assert judge(rows(one=[.11, None, None, None], three=three))["agrees"] is None, "one clip is too few"
    assert judge({})["agrees"] is None and Claim("nothing was compared").judged(rows(one=three))["agrees"] is None


@pytest.mark.parametrize("name", CASES)
def test_every_claim_speaks_of_settings_and_measures_that_there_are(name):
    for claim in CASES[name].claims:
        if claim.measure:
            assert claim.measure in ablations.MEASURES and {claim.more, claim.less} <= set(CASES[name].settings)


# -- what is changed -----------------------------------------------------------------------------------------------------

def first_shots(kit, name, **changes):
    """The measurements of one case, not yet made, and the rows they will fill."""
    found = {}
    return CASES[name].plan(job(kit, **changes), CASES[name].settings, found, lambda strip: None), found


def test_as_many_evaluations_of_the_network_as_steps(kit, monkeypatch):
    calls, forward = [], type(kit.dit).forward
    monkeypatch.setattr(type(kit.dit), "forward", lambda self, *a, **how: calls.append(1) or forward(self, *a, **how))
    plan, found = first_shots(kit, "steps")
    chunks = 2                                                      # 21 frames are six latent frames, two chunks of three
    for steps, measure in zip((1, 2, 3, 4), plan):
        calls.clear()
        measure()
        assert len(calls) == chunks * steps
    assert len({row["psnr"] for row in found.values()}) == 4, "and they make different videos"


def test_without_a_sink_none_is_kept_and_with_one_the_first_chunk_is(kit, monkeypatch):
    caches, make = [], cache.ChunkCache.__init__
    monkeypatch.setattr(cache.ChunkCache, "__init__", lambda self, *a, **how: caches.append(self) or make(self, *a, **how))
    plan, found = first_shots(kit, "memory", frames=33)
    held = {}
    for (name, how), measure in zip(CASES["memory"].settings.items(), plan):
        caches.clear()
        measure()
        held[name] = len(caches[-1]._sinks), len(caches[-1]._recent)
        assert held[name] == (how["sink"], how["window"])
    assert found["sink 0, window 1"]["psnr_first"] == pytest.approx(found["sink 1, window 1"]["psnr_first"], abs=.05)
    assert found["sink 0, window 1"]["lines"]["psnr"][0][:2] == found["sink 1, window 1"]["lines"]["psnr"][0][:2], (
        "until something is forgotten the sink does nothing")
    assert found["sink 0, window 1"]["lines"]["psnr"][0] != found["sink 1, window 1"]["lines"]["psnr"][0]


def test_weights_that_sum_to_one_are_no_guidance(kit):
    plan, found = first_shots(kit, "guidance")
    for measure in plan:
        measure()
    assert found["text 0, motion 0"] == found["text 1, motion 0"] != found["text 3, motion 0"]


@pytest.mark.parametrize("way, channels", [("drawn", 4), ("ids", 8), ("carried", 8), ("carried + ids", 16)])
def test_each_way_of_telling_hands_the_transformer_its_own_channels(kit, way, channels):
    preset, head = ablations.told(PRESETS["toy"], kit.vae, way)
    assert preset.dit.motion_channels == channels and preset.dit.pull == -1
    mapped = replace(kit, preset=preset, track_head=head or Kit.random(preset).track_head)
    tracks, picture = Tracks.grid(kit.geometry, 4, 9), torch.rand(1, 3, 32, 32)
    motion = mapped.motion(tracks, mapped.moved(tracks, picture))
    assert motion.shape == (1, 3, channels, 4, 4)
    again = mapped.motion(tracks.with_ids(tracks.ids + 40), mapped.moved(tracks, picture))
    assert torch.equal(motion, again) == (way == "carried"), "only what is carried does not hang on the ids"


def test_the_pull_is_towards_what_is_carried(kit):
    preset, _ = ablations.told(PRESETS["toy"], kit.vae, "carried + ids + pull")
    assert preset.dit.pull == preset.tracks.channels
    Kit.random(preset)                                              # refuses sizes that do not fit together


def test_a_bilinear_stamp_still_knows_the_place_and_the_others_know_the_cell(kit):
    plan, found = first_shots(kit, "splat")
    for measure in plan[:3]:
        measure()
    assert found["bilinear"]["place"] < 1e-4
    assert found["floor"]["place"] == pytest.approx(.3826, abs=.01), "the mean distance in a square from its middle"
    assert found["round"]["place"] >= found["floor"]["place"]


def test_the_two_ways_of_learning_start_from_one_student_and_part(kit):
    preset = replace(PRESETS["toy"], stream=replace(PRESETS["toy"].stream, time_shift=3.))
    plan, found = first_shots(replace(kit, preset=preset), "rollout", updates=8)
    for measure in plan:
        measure()
    values = [row["psnr"] for row in found.values()]
    assert len(values) == 3 and len(set(values)) == 3 and max(values) - min(values) < 1


def test_small_students_see_the_picture_once_and_play_with_the_memory_they_learned_with(kit, monkeypatch):
    preset = replace(PRESETS["toy"], stream=replace(PRESETS["toy"].stream, time_shift=3.))
    plan, found = first_shots(replace(kit, preset=preset), "once", updates=4)
    played, play = [], ablations.hands.play
    monkeypatch.setattr(ablations.hands, "play", lambda kit, shot: played.append(kit) or play(kit, shot))
    for measure in plan:
        measure()
    memory = [(kit.preset.stream.sink, kit.preset.stream.window) for kit in played]
    assert memory == [(1, 1), (0, 1), (0, 2)] and all(kit.dit.config.image_frames == "first" for kit in played)
    assert len({id(kit.dit) for kit in played}) == 3 and len({row["psnr_last"] for row in found.values()}) == 3


def test_the_whole_thing_is_told_in_a_long_play_and_each_point_by_an_id_of_its_own(kit):
    from msk import hands
    from msk.world import World
    shot = next(hands.takes(World(kit.geometry), "long", HELD_OUT, 1, FRAMES, kit.preset.tracks.max_id))
    told = ablations.by_all(shot, kit.preset.tracks.max_id).told
    assert told.xy.shape[2] == sum(t.xy.shape[2] for t in (shot.dragged, shot.thing, shot.rest)) > shot.told.xy.shape[2]
    assert len(told.ids.unique()) == told.ids.numel() and torch.equal(told.origin, told.xy[:, 0])


# -- the suite -----------------------------------------------------------------------------------------------------------

def test_the_same_seeds_give_the_same_report_and_a_chart_that_is_not_blank(kit, tmp_path):
    path = tmp_path / "new" / "a.json"
    report = ablations.run(kit, 1, path, cases=("chunk",), charts=tmp_path, **SMALL)
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(report)) and written["complete"] and written["cases"]["chunk"]["complete"]
    assert {"machine", "threads", "revision", "rule", "asked"} <= set(written)
    assert without_times(ablations.run(kit, 1, cases=("chunk",), **SMALL)) == without_times(written)
    assert all(row["latency_ms"] > 0 and row["frame_ms"] > 0 for row in written["cases"]["chunk"]["settings"].values())
    chart = Image.open(tmp_path / "chunk.png").convert("RGB")
    assert chart.width > 600 and len(chart.getcolors(10 ** 6)) > 20
    assert chart.tobytes() == ablations.chart(written, "chunk").tobytes(), "and the file alone gives it again"
    assert "\nchunk: latent frames made at once\n" in ablations.table(written) and "  paper: " in ablations.table(written)


def test_settings_take_turns_on_the_clock(kit, monkeypatch):
    turns, stepper = [], ablations.bench.stepper

    def watched(kit, seed):
        step = stepper(kit, seed)
        return lambda: turns.append(kit.preset.stream.steps) or step()

    monkeypatch.setattr(ablations.bench, "stepper", watched)
    found = {}
    ablations.timed(found, {str(n): ablations.changed(kit, steps=n) for n in (1, 2)}, 0)
    assert turns == [1, 2] * (len(turns) // 2) and len(turns) > 4
    assert all(len(row["each"]["latency_ms"]) == 2 for row in found.values()), "only what comes after the cache is full"


def test_a_long_play_leaves_its_strip(kit, tmp_path):
    report = ablations.run(kit, 1, cases=("drift",), charts=tmp_path, **SMALL)
    with_sink, without = (report["cases"]["drift"]["settings"][name] for name in ("sink 1", "no sink"))
    assert with_sink["chunk_ends"][-1] == 45 and with_sink["lines"]["psnr"] != without["lines"]["psnr"]
    assert Image.open(tmp_path / "drift_strip.png").height > 3 * 32 and (tmp_path / "drift.png").exists()


def test_an_interrupt_keeps_what_was_measured_and_what_was_finished_is_not_measured_again(kit, tmp_path, monkeypatch):
    path, made, play = tmp_path / "a.json", [], ablations.by_student
    asked = dict(json_path=path, cases=("chunk", "steps"), **SMALL)

    def impatient(kit, *rest):
        made.append(kit.preset.stream)
        if len(made) == 6:
            raise KeyboardInterrupt
        return play(kit, *rest)

    monkeypatch.setattr(ablations, "by_student", impatient)
    ablations.run(kit, 1, **asked)
    written = json.loads(path.read_text())
    assert not written["complete"] and written["cases"]["chunk"]["complete"] and not written["cases"]["steps"]["complete"]
    assert list(written["cases"]["steps"]["settings"]) == ["1"], "the one that was made before"
    ablations.run(kit, 1, **asked)
    again = json.loads(path.read_text())
    assert len(made) == 6 + 4 and again["complete"] and again["cases"]["chunk"] == written["cases"]["chunk"]
    with pytest.raises(ValueError, match="a.json holds a report with another asked: name another file"):
        ablations.run(kit, 2, **asked)
    assert json.loads(path.read_text()) == again, "hours of work are not written over"


def test_what_cannot_be_measured_is_one_sentence(kit):
    with pytest.raises(ValueError, match="no case called luck: use some of chunk, steps, memory"):
        ablations.run(kit, cases=("luck",))
    with pytest.raises(ValueError, match="held-out clips begin at"):
        ablations.run(kit, cases=("chunk",), seed=3)
    with pytest.raises(ValueError, match="hand in teacher="):
        ablations.run(kit, cases=("guidance",))
    bare = replace(kit, preset=replace(kit.preset, tracks=replace(kit.preset.tracks, carry=0)))
    with pytest.raises(ValueError, match="no sizes for small models, which splat would train"):
        ablations.run(bare, cases=("splat", "chunk"))


def test_whiskers_draw_every_measure_that_was_made():
    few = viz.whiskers({"a": {"x": (1., .1), "y": (2., .1)}})
    more = viz.whiskers({"a": {"x": (1., .1), "y": (2., .1)}, "b": {"y": (3., 0.)}})
    assert more.width > few.width and len(few.convert("RGB").getcolors(10 ** 6)) > 10
