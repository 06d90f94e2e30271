"""What is beneath what moves: a picture in two layers, learned on scenes that can be drawn again without their things."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from msk import Kit, Stream, Tracks, load
from msk.carry import HIDES, inpaint
from msk.config import PRESETS, Geometry
from msk.fill import box_mean, dilate
from msk.host import Memo, empty
from msk.live.replay import fingerprint
from msk.plate import Plate
from msk.train import main
from msk.train import plate as stage
from msk.train.loop import Budget, Learner, train
from msk.world import World

TOY = PRESETS["toy"]
SIZE = Geometry(64, 64)


@pytest.fixture(scope="module")
def lesson():
    store = stage.Store(SIZE, capacity=64, seed=1)
    for _ in range(4):
        store.grow(16)
    return store


def led(frames, step=8.):
    """Points all over a toy's picture, of which two next to each other go to the right."""
    tracks = Tracks.grid(TOY.geometry, 4, frames=frames)
    tracks.xy[0, 1:, 27:29, 0] += step
    return replace(tracks, origin=tracks.xy[:, 0].clone())


def fresh(width=8, seed=0):
    torch.manual_seed(seed)
    return Plate(width)


# -- the network -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(32, 32), (48, 80), (34, 50)])
def test_untrained_it_says_what_is_said_by_hand_and_far_from_what_moves_nothing_at_all(size, close):
    pictures = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    moving = torch.zeros(2, 1, *size, dtype=torch.bool)
    moving[0, 0, 10:18, 12:20] = True
    made, hides = fresh()(pictures, moving)
    plain, hidden = inpaint(pictures, moving)
    assert made.shape == pictures.shape and hides.shape == moving.shape
    close(made.where(moving, 0.), plain.where(moving, 0.), atol=.02)
    close(hides, hidden, atol=.02)
    far = ~dilate(moving, 3 * min(size) // 32 + 1)
    assert torch.equal(made.where(far, 0.), pictures.where(far, 0.)) and not hides[far].any()
    assert torch.equal(made[1], pictures[1]) and not hides[1].any()


def test_where_all_moves_it_answers_too():
    made, hides = fresh()(torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool))
    assert made.isfinite().all() and hides.min() > .9


# -- the lessons -------------------------------------------------------------------------------------------------------

def test_a_scene_is_its_layers_laid_upon_each_other(close):
    """Where one thing alone hides the ground, what is seen is its colour and the ground's; elsewhere nothing differs."""
    for level in ("calm", "full"):
        scene, _ = World(SIZE, level).scene(6, 1, 3)
        picture, ground, hides, seen = stage.taken_out(scene, torch.Generator().manual_seed(0))
        assert picture.shape == ground.shape == (6, 3, 64, 64) and hides.shape == seen.shape == (6, 1, 64, 64)
        close(picture.where(hides == 0, 0.), ground.where(hides == 0, 0.), atol=1e-5)
        front = picture - (1 - hides) * ground
        assert (front > -1e-3).float().mean() > .99
        assert ((front > 1e-2).any(dim=1, keepdim=True) & (hides < .01)).float().mean() < 1e-3
        assert seen.flatten(1).any(dim=1).any() and (hides[seen] > .45).float().mean() > .97


def test_a_shadow_hides_some_and_has_no_colour(close):
    scene, _ = World(SIZE, "calm").scene(8, 1, 5)
    scene = scene.quiet()
    picture, ground, hides, seen = stage.taken_out(scene, torch.Generator().manual_seed(0))
    shadow = (hides > .05) & (hides < .3) & ~dilate(seen, 2)
    assert shadow.sum() > 100
    front = (picture - (1 - hides) * ground).abs().amax(dim=1, keepdim=True)
    assert front[shadow].max() < .01


def test_what_hides_what_by_plain_loops(close):
    """Thing after thing, the nearest last: those that are taken out hide the rest, the others hide them."""
    scene, _ = World(SIZE, "full").scene(3, 1, 8)
    which = torch.tensor([[True, False, True, False]] * 3) & scene.there
    plain = torch.zeros(3, 1, 64, 64)
    for b in range(3):
        for k in range(4):
            if scene.there[b, k]:
                one = torch.zeros(1, 4, dtype=torch.bool)
                one[0, k] = True
                alone = scene.part([b]).without(torch.arange(4)[None] > k).opacity(one)[0]     # nothing before it
                plain[b] = 1 - (1 - plain[b]) * (1 - alone) if which[b, k] else plain[b] * (1 - alone)
    close(scene.opacity(which), plain, atol=1e-6)


def test_lessons_fit_together_in_whatever_colours_and_on_whatever_ground(lesson, close):
    drawn = lesson.drawn[:32]
    pictures, moving, grounds, hides = stage.varied(drawn, torch.Generator().manual_seed(0))
    assert pictures.shape == grounds.shape == (32, 3, 64, 64) and moving.dtype == torch.bool
    none = dilate(hides > .003, 1).logical_not()
    assert ((pictures - grounds).abs() * none).max() < .02
    for x in (pictures, grounds, hides):
        assert x.min() > -1e-5 and x.max() < 1 + 1e-5
    again = stage.varied(drawn, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(again, (pictures, moving, grounds, hides)))
    overlap = ((hides > .5) & moving).sum() / ((hides > .5) | moving).sum()
    assert .6 < overlap < .95, "misjudged, but not by much"


def test_a_lesson_said_over_and_over_is_learned(lesson):
    plate = fresh(16)
    learner = Learner(plate, 5e-3, muon=lambda name, p: p.ndim == 4, muon_lr=1e-2)
    held = next(lesson.batches(4, fresh=1, seed=9))
    steps = list(train(learner, lambda drawn: stage.plate_loss(plate, *drawn), iter(lambda: held, 0), Budget(steps=80)))
    assert steps[-1].loss < .8 * steps[0].loss and steps[-1].logs["plate"] > steps[0].logs["plate"] + 4


# -- in a kit ----------------------------------------------------------------------------------------------------------

def test_a_kit_asks_its_plate_and_one_without_goes_by_what_is_around():
    kit = Kit.random(TOY)
    g = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(kit.plate.last.weight, std=.3, generator=g)
    picture, tracks = torch.rand(1, 3, 32, 32, generator=g), led(5)
    learned, plain = kit.moved(tracks, picture), replace(kit, plate=None).moved(tracks, picture)
    differs = (learned - plain).abs().amax(dim=(0, 1, 2)) > 1e-3
    assert differs.any() and (learned[:, 0, :3] - picture).abs().max() < .05, "but where it was it lies as it lay"
    still = Tracks.grid(TOY.geometry, 4, frames=5)
    assert torch.equal(kit.moved(still, picture), replace(kit, plate=None).moved(still, picture))


def test_a_stream_reads_a_picture_once_and_plays_what_one_that_always_does_plays(monkeypatch, close):
    kit = Kit.random(TOY)
    picture = torch.rand(1, 3, 32, 32)
    asked, forward = [], Plate.forward
    monkeypatch.setattr(Plate, "forward", lambda self, *a: (asked.append(1), forward(self, *a))[1])

    def play(chunks=4):
        stream = Stream(kit, "", picture, seed=3)
        made = []
        for k in range(chunks):
            told = led(stream.frames_wanted)
            told.xy[:] = told.xy if k == 0 else told.xy[:, -1:]                 # there they stay
            made.append(stream.step(told))
        return torch.cat(made, dim=1)

    once = play()
    assert len(asked) == 1
    monkeypatch.setattr("msk.stream.Memo", lambda: Memo(0))
    always = play()
    assert len(asked) == 1 + 4 and torch.equal(once, always)


def test_what_was_asked_before_is_not_asked_again_and_what_is_written_into_is():
    calls = []
    function, memo = lambda x, n: calls.append(n) or x.sum() * n, Memo(2)
    x = torch.arange(3.)
    assert memo(function, x, 2) == memo(function, x.clone(), 2) == 6 and calls == [2]
    x += 1
    assert memo(function, x, 2) == 12 and calls == [2, 2]
    assert memo(function, x, 3) == 18 and memo(function, torch.arange(3.), 2) == 6 and calls == [2, 2, 3, 2]
    other = lambda x, n: 0
    assert memo(other, x, 3) == 0 and memo(function, x.to("meta"), 3).device.type == "meta" and len(memo.kept) == 2
    assert empty(torch.zeros(3, dtype=torch.bool)) and not empty(torch.zeros(3, dtype=torch.bool, device="meta"))


def test_a_video_is_of_its_plate_as_of_all_its_weights():
    kit = Kit.random(TOY)
    before = fingerprint(kit)
    kit.plate.last.bias.data += 1
    assert fingerprint(kit) != before


def test_the_stage_trains_goes_on_and_needs_nothing_that_came_before(tmp_path):
    main("plate", TOY, 3., tmp_path / "run", threads=1)
    assert (tmp_path / "run" / "plate.safetensors").exists() and (tmp_path / "run" / "plate.done").exists()
    Kit.random(TOY).save(tmp_path / "kit")
    main("plate", TOY, 2., tmp_path / "more", init=tmp_path / "kit", threads=1)
    kit = load(tmp_path / "more")
    assert kit.plate is not None and not torch.equal(kit.plate.last.bias, torch.zeros_like(kit.plate.last.bias))
    with pytest.raises(ValueError, match="has no plate to be trained"):
        main("plate", replace(TOY, plate=0), 1., tmp_path / "none")


def test_the_shipped_one_finds_ground_and_shadow_that_an_even_patch_does_not():
    """On held-out scenes: what it lifts lies better elsewhere, and what it uncovers is nearer to the truth."""
    kit = load("tiny", dtype=torch.float32)
    scene, _ = World(kit.geometry, "calm").scene(12, 1, 1_000_500)
    picture, ground, hides, seen = stage.taken_out(scene, torch.Generator().manual_seed(0))
    near, error = dilate(hides > HIDES, 2), {}
    other = ground.roll(1, dims=0)
    for name, split in (("kit", kit.plate), ("by hand", inpaint)):
        with torch.no_grad():
            made, found = split(picture, seen)
        laid = (1 - found) * (other - made) - (1 - hides) * (other - ground)
        error[name] = [F.mse_loss(x * near, 0 * x).item() for x in (made - ground, laid)]
    assert error["kit"][0] < .7 * error["by hand"][0] and error["kit"][1] < .4 * error["by hand"][1]


def test_no_thin_line_is_left_along_the_rim_of_what_went():
    """What differs from pixel to pixel, three pixels outside of what moves, where a shadow may lie."""
    kit = load("tiny", dtype=torch.float32)
    scene, _ = World(kit.geometry, "calm").scene(12, 1, 1_000_500)
    picture, ground, hides, seen = stage.taken_out(scene, torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = kit.plate(picture, seen)[0] - ground
    rim = (dilate(seen, 4) & ~dilate(seen, 1)).expand_as(error)
    thin = (error - box_mean(error, 1))[rim].square().mean().sqrt()
    assert thin < .006
