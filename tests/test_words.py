"""Detectors tell the world's events from their absence, and a word that changes nothing scores one half."""
import json

import pytest
import torch

from msk import words
from msk.config import PRESETS
from msk.kit import Kit
from msk.world import EVENTS, HELD_OUT, World

WORLD = World(PRESETS["toy"].geometry)
FRAMES, SCENES = 21, 4


def test_every_event_of_the_world_has_its_detector():
    assert set(words.DETECTORS) == set(EVENTS) - {""}


@pytest.mark.parametrize("event", words.DETECTORS)
def test_a_detector_fires_on_the_true_event_and_not_without_it(event):
    true = words.pair(WORLD, event, list(range(HELD_OUT, HELD_OUT + SCENES)), FRAMES, 64).true
    present, absent = (words.DETECTORS[event](true[key]) for key in ("with", "without"))
    assert (present > absent).all() and present.mean() > 1.5 * absent.mean()


@pytest.mark.parametrize("event, other", [("snow", "bubbles"), ("rain", "bubbles"), ("night", "day")])
def test_detectors_know_up_from_down_and_dusk_from_dawn(event, other):
    true = words.pair(WORLD, event, list(range(HELD_OUT, HELD_OUT + SCENES)), FRAMES, 64).true
    assert words.DETECTORS[event](true["with"]).mean() > 0 > words.DETECTORS[other](true["with"]).mean()


def test_a_falling_speck_is_found_at_its_speed():
    frames = torch.zeros(2, 12, 3, 40, 8)
    for t in range(12):
        frames[0, t, :, 3 * t, 4] = frames[1, t, :, 39 - 3 * t, 4] = 1      # one falls, one rises
    down, up = words.falling(3 / 40)(frames)
    assert down == pytest.approx(1 / (37 * 8)) and up == -down
    assert (words.falling(1 / 40)(frames) == 0).all(), "at another speed there is nothing"


def test_the_pair_shares_all_but_the_event():
    asked = words.pair(WORLD, "rain", [HELD_OUT, HELD_OUT + 1], FRAMES, 64)
    assert [a + ", rain falling" for a in asked.captions["without"]] == asked.captions["with"]
    assert torch.equal(asked.picture, asked.true["without"][:, 0]), "no drop is in the given picture"
    dark = words.pair(WORLD, "day", [HELD_OUT], FRAMES, 64)
    assert torch.equal(dark.picture, dark.true["with"][:, 0]), "day can only break where it is dark"
    assert dark.picture.mean() < .7 * dark.true["without"].mean()


def test_equal_videos_score_one_half():
    assert words.share([1., 2., 3., 3.], [1., 1., 5., 3.]) == (.5 + 1 + 0 + .5) / 4
    assert words.share([2.] * 3, [2.] * 3) == .5


@pytest.mark.parametrize("hears", [True, False])
def test_the_suite_tells_a_student_that_hears_from_one_that_does_not(hears, tmp_path, monkeypatch):
    def student(kit, captions, picture, tracks, frames, seed):
        fade = torch.linspace(1, .5, frames) if hears and "night" in captions[0] else torch.ones(frames)
        return picture[:, None] * fade[:, None, None, None]

    monkeypatch.setattr(words, "by_student", student)
    report = words.run(Kit.random("toy"), 3, tmp_path / "t.json", events=("night", "grass"), frames=5, batch=2, quiet=True,
                       strips=tmp_path)
    assert report["rows"]["night"]["share"] == (1. if hears else .5) and report["rows"]["grass"]["share"] == .5
    assert report["rows"]["night"]["true_share"] == 1 and report["rows"]["night"]["n"] == 3
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["complete"] and written["rows"] == report["rows"] and written["suite"] == "text"
    assert "\nnight" in words.table(report) and (tmp_path / "grass.png").stat().st_size > 0


def test_with_and_without_start_from_the_same_noise(kit):
    words_mean_nothing = kit
    for p in words_mean_nothing.text.parameters():
        p.zero_()
    report = words.run(words_mean_nothing, 2, events=("snow",), frames=9, quiet=True)
    assert report["rows"]["snow"]["with"] == report["rows"]["snow"]["without"] and report["rows"]["snow"]["share"] == .5


def test_what_cannot_be_asked_is_one_sentence():
    with pytest.raises(ValueError, match="no event called hail: use some of snow"):
        words.run(Kit.random("toy"), events=("hail",))
