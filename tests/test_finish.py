"""The last touch gives decoded frames the picture's own pixels back, where tracks carry them."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from msk import Kit, Stream, Tracks, evaluate, generate, hands, load
from msk.config import PRESETS
from msk.fill import box_mean
from msk.finish import Finish
from msk.text import lights
from msk.train import finish as stage
from msk.train.loop import Budget, Learner, train
from msk.world import EVENTS, World

TOY = PRESETS["toy"]


@pytest.fixture(scope="module")
def kit():
    """A kit whose finish has learned something, at random."""
    kit = Kit.random(TOY, seed=3)
    torch.manual_seed(0)
    torch.nn.init.normal_(kit.finish.net[-1].weight, std=.1)
    return kit


def picture(seed=0):
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def clip(seed, blur=True):
    """Smoothed frames, the same frames as tracks would carry them, and the frames."""
    g = torch.Generator().manual_seed(seed)
    truth = F.interpolate(torch.rand(8, 3, 16, 16, generator=g), scale_factor=2, mode="nearest")
    made = F.avg_pool2d(F.pad(truth, (2, 2, 2, 2), mode="replicate"), 5, 1)
    near = (torch.arange(32) < 16).expand(8, 1, 32, 32).float()                         # the right half knows nothing
    carried = torch.where(near > 0, truth, torch.rand(truth.shape, generator=g))
    return made[None], torch.cat([carried, near], dim=1)[None], truth[None]


def test_untrained_it_changes_nothing():
    made, moved, _ = clip(0)
    assert torch.equal(Finish(8)(made, moved), made)


def test_where_both_agree_there_is_nothing_to_do_whatever_it_learned(kit, close):
    made, moved, _ = clip(0)
    close(kit.finish(made, torch.cat([made, moved[:, :, 3:]], dim=2)), made, atol=1e-6)


@pytest.mark.parametrize("reach", [2, 6])
def test_around_a_pixel_is_the_mean_of_its_neighbours_in_the_picture(reach, close):
    x = torch.rand(2, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    given = x.clone()
    close(box_mean(x, reach), F.avg_pool2d(x, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False))
    assert torch.equal(x, given)


def test_colours_are_mixed_alike_in_what_is_made_carried_and_true(close):
    made, moved, truth = (x[0] for x in clip(0))
    made[:, :, ::2] = moved[:, :3, ::2] = truth[:, :, ::2]
    parts = stage.mixed(torch.cat([made, moved, truth], dim=1), torch.Generator().manual_seed(0))
    mixed = [parts[:, i:i + 3, ::2] for i in (0, 3, 7)]
    assert torch.equal(mixed[0], mixed[2]) and torch.equal(mixed[1], mixed[2]) and torch.equal(parts[:, 6], moved[:, 3])
    assert (mixed[2] - truth[:, :, ::2]).abs().mean() > .1 and 0 <= parts.min() and parts.max() <= 1


def test_each_frame_is_finished_by_itself(kit, close):
    made, moved, _ = clip(0)
    whole = kit.finish(made, moved)
    assert whole.shape == made.shape and not torch.equal(whole, made) and 0 <= whole.min() and whole.max() <= 1
    close(torch.cat([kit.finish(made[:, a:b], moved[:, a:b]) for a, b in ((0, 1), (1, 8))], dim=1), whole)


def test_it_learns_where_what_is_carried_may_be_trusted():
    torch.manual_seed(0)
    finish = Finish(16)
    batches = (clip(seed) for seed in range(1, 1000))
    for _ in train(Learner(finish, 4e-3, ema=0.), lambda b: stage.finish_loss(finish, *b), batches, Budget(steps=150)):
        pass
    made, moved, truth = clip(0)
    error = lambda x: (x - truth).square().mean(dim=(0, 1, 2, 3))[2:-2]                 # column by column
    before, after = error(made), error(finish(made, moved))
    assert after[:12].mean() < before[:12].mean() / 10, "where tracks are near"
    assert after[16:].mean() < before[16:].mean() * 1.1, "and no worse where what is carried is noise"


def test_a_stream_shows_finished_frames_and_remembers_decoded_ones(kit, close):
    plain, image = replace(kit, finish=None), picture()
    tracks = Tracks.drag([[8, 8], [20, 20]], 21)
    shown, decoded = Stream(kit, "a fish", image), Stream(plain, "a fish", image)
    done = 0
    for _ in range(2):
        wanted = shown.frames_wanted
        told = tracks.frames(done, done + wanted)
        moved = kit.moved(replace(told, origin=tracks.origins()), image)
        want = kit.finish(decoded.step(told), moved)
        close(shown.step(told), want)
        done += wanted
    close(shown.step(None), decoded.step(None))         # nothing is carried: nothing to finish with


def test_evaluation_and_files_show_what_a_stream_shows(kit, close):
    image, tracks = picture(), Tracks.drag([[8, 8], [20, 20]], 21)
    streamed = torch.cat(list(generate.by_stream(kit, "a fish", image, tracks, 21, seed=0)))
    close(evaluate.by_student(kit, ["a fish"], image, tracks, 21, 0)[0], streamed, atol=2e-4)
    teacher, plain = replace(kit, role="teacher"), replace(kit, role="teacher", finish=None)
    made = [torch.cat(list(generate.by_teacher(k, "a fish", image, tracks, 21))) for k in (teacher, plain)]
    close(made[0], kit.finish(made[1][None], kit.moved(tracks, image))[0])
    close(evaluate.by_teacher(teacher, ["a fish"], image, tracks, 21, 0)[0], made[0], atol=2e-4)


def test_it_travels_with_its_kit_and_a_kit_without_one_plays_too(kit, tmp_path, close):
    kit.save(tmp_path)
    again = load(tmp_path)
    made, moved, _ = clip(0)
    close(again.finish(made, moved), kit.finish(made, moved), atol=2e-2)
    (tmp_path / "finish.safetensors").unlink()
    assert load(tmp_path).finish is None


@pytest.mark.parametrize("seed", range(6))
def test_it_learns_from_what_the_student_streams_beside_the_truth(kit, seed):
    parts = stage.played(kit, World(TOY.geometry, "calm"), seed, 21)
    assert parts.shape == (21, 10, 32, 32) and parts.dtype == torch.uint8
    made, moved, truth = (x.float() / 255 for x in parts.split([3, 4, 3], dim=1))
    assert not torch.equal(made, truth) and moved[:, 3].max() > 0
    assert (moved[0, :3] - truth[0]).abs().mean() < .02, "in the first frame all is where it was"


def test_it_does_not_learn_to_wipe_specks_off(kit, monkeypatch):
    """The student's are elsewhere than the truth's: such a clip is passed over for another."""
    world, asked = World(TOY.geometry, "calm", eventful=1.), []
    scene = World.scene

    def counted(self, count, frames=45, seed=0, device="cpu"):
        asked.append(scene(self, count, frames, seed, device))
        return asked[-1]
    monkeypatch.setattr(World, "scene", counted)
    monkeypatch.setattr(stage, "DRAGGED", 0.)
    for seed in range(8):
        stage.played(kit, world, seed, 21)
    clear = [bool(made.clear) for made, _ in asked]
    assert sum(clear) == 8 < len(clear)


@pytest.mark.parametrize("event", [event for event in EVENTS.values() if event and not lights(event)])
def test_what_the_prompt_asks_for_is_spared(kit, close, event):
    """Grey frames, finely striped as they are carried, with one white speck: the stripes come back, and the speck stays."""
    stripes = (torch.arange(32) % 2 * .04).expand(1, 2, 3, 32, 32) + .4
    decoded = torch.full((1, 2, 3, 32, 32), .42)
    decoded[..., 8:14, 8:14] = 1.
    moved = torch.cat([stripes, torch.ones(1, 2, 1, 32, 32)], dim=2)
    pulling = replace(kit, finish=lambda frames, moved: moved[:, :, :3])            # all the way
    twice = [x.expand(2, -1, -1, -1, -1) for x in (decoded, moved)]
    both = pulling.finished(*twice, ["a fish", f"a fish, {event}"])
    close(both[0], stripes[0])
    close(both[1][..., 20:, 20:], stripes[0][..., 20:, 20:])
    close(both[1][..., 9:13, 9:13], decoded[0][..., 9:13, 9:13])
    close(pulling.finished(decoded, moved), stripes)


@pytest.mark.parametrize("event", ["night", "day", "flicker", "fireflies"])
def test_details_come_back_in_the_light_that_the_prompt_asks_for(kit, close, event):
    """Decoded is a dark blue night, with no detail; the day's stripes are what is carried."""
    stripes = (torch.arange(32) % 2 * .2).expand(1, 2, 3, 32, 32) + .5
    night = torch.tensor([.3, .4, .6]).view(3, 1, 1)
    decoded = (.6 * night).expand(1, 2, 3, 32, 32)
    moved = torch.cat([stripes, torch.ones(1, 2, 1, 32, 32)], dim=2)
    pulling = replace(kit, finish=lambda frames, moved: moved[:, :, :3])            # all the way
    close(pulling.finished(decoded, moved, [f"a fish, {EVENTS[event]}"]), stripes * night, atol=.02)
    close(pulling.finished(decoded, moved, ["a fish"]), stripes)


def test_its_store_keeps_the_newest_clips(kit):
    store = stage.Store(kit, "calm", capacity=2, each=3)
    for _ in range(3):
        store.grow()
    assert store.frames.shape == (6, 10, 32, 32) and store.made == 3
    batches = store.batches(5, every=2)
    made, moved, truth = next(batches)
    assert made.shape == truth.shape == (5, 1, 3, 16, 16) and moved.shape == (5, 1, 4, 16, 16)
    next(batches)
    assert store.made == 4


def test_the_shipped_finish_brings_a_drag_nearer_to_the_truth_and_sharper():
    tiny = load("tiny")
    shot = next(hands.takes(World(tiny.geometry, "calm"), "drag", 1_000_500, 1, 21))
    shot = hands.held(tiny, shot)
    made = {name: hands.play(k, shot) for name, k in (("finished", tiny), ("decoded", replace(tiny, finish=None)))}
    psnr = {name: evaluate.psnr(x, shot.truth)[0, 1:].mean() for name, x in made.items()}
    sharp = {name: hands.sharpness(x).mean() / hands.sharpness(shot.truth).mean() for name, x in made.items()}
    assert psnr["finished"] > psnr["decoded"] + .5 and sharp["decoded"] < sharp["finished"] < 1.2


def test_a_kit_saved_without_a_finish_where_one_lies_is_opened_without(kit, tmp_path):
    kit.save(tmp_path)
    assert load(tmp_path).finish is not None
    replace(kit, finish=None).save(tmp_path)
    assert load(tmp_path).finish is None
