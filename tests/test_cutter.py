"""What lies under a point: learned where every pixel's layer is known, sure or not, and cut out for the hand."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from msk import Kit, cuts, load
from msk.config import PRESETS, Geometry
from msk.cutter import Cutter, by_colours, can_cut, cut, overlap
from msk.evaluate import header
from msk.grip import Thing
from msk.live.replay import fingerprint
from msk.train import cutter as stage
from msk.train import main
from msk.train.loop import Budget, Learner, train
from msk.world import HELD_OUT, World
from tests.pages import exact

TOY = PRESETS["toy"]
PICTURE, BALL = np.asarray(exact.picture()), complex(*exact.BALL_AT)


@pytest.fixture(scope="module")
def cutter():
    torch.manual_seed(0)
    return Cutter(8).eval().requires_grad_(False)


def discs(seed, count=6, side=32):
    """Pictures of two discs of one colour that may touch, the second above; places on both and beside, and what is there."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.rand(*size, generator=g)
    y, x = torch.meshgrid(*[torch.arange(side) + .5] * 2, indexing="ij")
    centre, radius = 6 + 20 * rand(count, 2, 2), 4 + 3 * rand(count, 2)
    on = ((x - centre[..., 0, None, None]) ** 2 + (y - centre[..., 1, None, None]) ** 2) < radius[..., None, None] ** 2
    layer = torch.where(on[:, 1], 2, on[:, 0].long())
    colour = rand(count, 2, 3, 1, 1)
    pictures = torch.where(on.any(dim=1)[:, None], colour[:, 0], colour[:, 1])
    edge = on[:, 1] & ~((x - centre[:, 1, 0, None, None]) ** 2 + (y - centre[:, 1, 1, None, None]) ** 2
                        < (radius[:, 1, None, None] - 1.5) ** 2)
    pictures = torch.where(edge[:, None], torch.zeros(()), pictures)                    # it has an outline
    return pictures, *stage.asked(layer, 4, g)


# -- the network -------------------------------------------------------------------------------------------------------

def test_many_points_are_asked_at_once_and_each_by_itself(cutter, close):
    pictures, places, _ = discs(0)
    together = cutter(pictures, places)
    assert together.shape == (6, 4, 32, 32)
    for b, k in ((0, 0), (2, 3), (5, 1)):
        close(together[b, k], cutter(pictures[b:b + 1], places[b:b + 1, k:k + 1])[0, 0], atol=1e-5)


def test_a_question_by_plain_loops(cutter, close):
    """Three small layers at one pixel, with the weights that the point has made."""
    pictures, places, _ = discs(1, count=1)
    seen = cutter.look(pictures)[0]                                                             # [C, 16, 16]
    places = torch.tensor([[[7., 11.]]])                                                # the middle of a block: no mixing
    weights = cutter.asks(seen[:, 5, 3])
    row, column, got = 9, 4, cutter(pictures, places)[0, 0]
    dx, dy = (2 * column + 1 - 7.) / 16, (2 * row + 1 - 11.) / 16
    x, at = [*seen[:, row, column].tolist(), dx, dy, (dx * dx + dy * dy) ** .5], 0
    for layer, (a, b) in enumerate(cutter.sizes):
        w, bias = weights[at:at + a * b].view(b, a), weights[at + a * b:at + a * b + b]
        scale = [len(x[:-3]) ** -.5] * (a - 3) + [1.] * 3 if layer == 0 else [a ** -.5] * a
        x = [z / (1 + np.exp(-z)) for z in x] if layer else x
        x = [sum(float(w[o, i]) * scale[i] * x[i] for i in range(a)) + float(bias[o]) for o in range(b)]
        at += a * b + b
    close(got[2 * row:2 * row + 2, 2 * column:2 * column + 2].flatten(), torch.tensor(x).float(), atol=1e-4)


def asked_in_mirrors(cutter, picture, places):
    """By hand: logits [K, H, W] of a picture [3, H, W] at places [K, 2], the mean of four mirrors."""
    width, height, made = picture.shape[2], picture.shape[1], 0
    for dims in ((), (2,), (1,), (1, 2)):
        at = [[width - x if 2 in dims else x, height - y if 1 in dims else y] for x, y in places.tolist()]
        made = made + cutter(picture.flip(dims)[None], torch.tensor([at]))[0].flip(dims) / 4
    return made


def test_a_picture_is_asked_in_its_mirrors_and_at_more_places_of_what_was_found(cutter, close):
    picture = (np.random.default_rng(0).random((128, 144, 3)) * 255).astype(np.uint8)
    frame, place = torch.from_numpy(picture).permute(2, 0, 1) / 255, torch.tensor([[61., 35.]])
    first = asked_in_mirrors(cutter, frame, place)
    close(torch.from_numpy(cutter.likely(picture, 61 + 35j, more=0)), first[0].sigmoid(), atol=1e-5)
    y, x = (first[0] > 0).nonzero()[[0, -1]].unbind(dim=1)
    others = asked_in_mirrors(cutter, frame, torch.stack([x, y], dim=1) + .5)
    answers = torch.cat([first, others]).sigmoid()
    weights = [float(torch.minimum(a, answers[0]).sum() / torch.maximum(a, answers[0]).sum()) ** 2 for a in answers]
    want = sum(w * a for w, a in zip(weights, answers)) / sum(weights)
    assert weights[0] == 1 and max(weights[1:]) < .99, "who says otherwise counts less"
    close(torch.from_numpy(cutter.likely(picture, 61 + 35j, more=2)), want, atol=1e-5)


def test_a_picture_of_any_size_is_looked_at_in_its_own(cutter):
    picture = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
    small = np.kron(picture, np.ones((2, 2, 1), np.uint8))                                      # 128 x 128: as it is
    large = np.kron(small, np.ones((3, 3, 1), np.uint8))
    of_large = lambda place: cutter.likely(large, place, more=0)[1::3, 1::3]
    want = cutter.likely(small, np.complex128(61 + 35j), more=0)                                # whatever complex it is
    alike = lambda likely: np.corrcoef(likely.ravel(), want.ravel())[0, 1]
    assert alike(of_large(183 + 105j)) > .9 > alike(of_large(61 + 35j)) and alike(of_large(183 + 105j)[::-1]) < .9
    assert cutter.likely(picture[:30, :50], 20 + 10j).shape == (30, 50)
    assert cutter.size(128, 128) == [128, 128] and cutter.size(480, 832) == [128, 224] and cutter.size(32, 32) == [128, 128]


def test_it_learns_to_tell_things_apart_that_touch_and_have_one_colour():
    torch.manual_seed(0)
    cutter = Cutter(8)
    learner = Learner(cutter, 3e-3, ema=.98, muon=lambda name, p: p.ndim == 4, muon_lr=6e-3)
    batches = (discs(seed) for seed in range(1, 10_000))
    for _ in train(learner, lambda drawn: stage.cutter_loss(cutter, *drawn), batches, Budget(steps=300)):
        pass
    cutter.load_state_dict(learner.averaged())
    pictures, places, masks = discs(100_000, count=64)
    x, y = places.long().unbind(dim=-1)
    colours = torch.stack([pictures[b][:, y[b], x[b]] for b in range(64)]).mT[..., None, None]          # [B, K, 3, 1, 1]
    alike = 20. * ((pictures[:, None] - colours).abs().sum(dim=2) < .01) - 10.
    by_colour = stage.cutter_loss(lambda *_: alike, None, None, masks)[1]["overlap"]
    found = stage.cutter_loss(cutter, pictures, places, masks)[1]
    assert found["overlap"] > by_colour + .1 and found["ground"] > .8


# -- what it learns from -----------------------------------------------------------------------------------------------

def test_a_layer_is_what_the_scene_says_of_each_pixel():
    scene, _ = World(Geometry(64, 48), "full").scene(3, 1, 5)
    layer = scene.layers()
    assert layer.shape == (3, 64, 48) and len(layer.unique()) > 2
    for y, x in ((3, 40), (33, 20), (60, 7)):
        assert torch.equal(scene.track(torch.tensor([[[x + .5, y + .5]]]).expand(3, -1, -1))[2][:, 0], layer[:, y, x])


def test_of_twice_as_many_scenes_those_are_kept_in_which_things_touch():
    layer = torch.zeros(3, 8, 8, dtype=torch.uint8)
    layer[:, 2:4, 2:4] = 1
    layer[1, 4:6, 3:7], layer[2, 2:4, 5:7] = 2, 2                                       # below it, and apart
    assert stage.touching(layer).tolist() == [0, 1, 0]
    store = stage.Store(Geometry(64, 64), capacity=16, seed=3)
    for _ in range(4):
        store.grow(4)
    kept = (stage.touching(store.drawn[:, 3]) > 0).float().mean()
    drawn = [stage.touching(world.scene(64, 1, 7)[0].layers()) > 0 for world in store.worlds]
    assert kept > torch.cat(drawn).float().mean() + .15


def test_pictures_and_layers_are_turned_about_together():
    """Each layer in a grey of its own: afterwards two places are of one layer just if they are of one colour."""
    layer = torch.zeros(16, 32, 32, dtype=torch.uint8)
    layer[:, 4:20, 6:14], layer[:, 18:30, 16:31] = 1, 2
    drawn = torch.cat([(layer * 90 + 30)[:, None].expand(-1, 3, -1, -1), layer[:, None]], dim=1)
    pictures, after = stage.varied(drawn, torch.Generator().manual_seed(0))
    assert 0 <= pictures.min() and pictures.max() <= 1
    shapes = set()
    for picture, where in zip(pictures, after):             # at the rim, what is just outside is mixed in
        shapes.add(tuple((where == 1).sum(dim=0).tolist()))
        for k in (0, 1, 2):
            inside = torch.nn.functional.max_pool2d((where != k).float()[None], 5, 1, 2)[0] == 0
            inside[0] = inside[-1] = inside[:, 0] = inside[:, -1] = False
            if inside.sum() > 1:
                assert picture[:, inside].std(dim=1).max() < .01
    assert len(shapes) > 8, "they are not all turned the same way"
    assert any(len(picture[:, 0, 0].unique()) > 1 or picture.mean() > .9 for picture in pictures), "some in other colours"


def test_of_the_ground_a_mask_is_empty_and_of_a_thing_it_is_the_thing():
    layer = torch.zeros(32, 32)
    layer[5:12, 5:12], layer[20, 20] = 1, 2                                             # the second is too small to be asked
    (_, places), (nothing, masks) = stage.asked(torch.stack([0 * layer, layer]), 600, torch.Generator().manual_seed(0))
    assert not nothing.any()
    on = torch.stack([layer[int(y), int(x)] for x, y in places.tolist()])
    assert set(on.tolist()) == {0, 1}
    assert all(torch.equal(mask, (layer == 1) & (k == 1)) for mask, k in zip(masks, on))
    assert .1 < (on == 0).float().mean() < .2
    assert len({tuple(place) for place, k in zip(places.tolist(), on) if k}) == 49, "anywhere on it"


def test_a_full_answer_costs_nothing_and_is_counted_so():
    _, _, masks = discs(3)
    right = lambda pictures, places: (masks.float() - .5) * 40
    loss, logs = stage.cutter_loss(right, None, None, masks)
    assert loss < 1e-4 and logs == {"overlap": 1., "whole": 1., "ground": 1.}
    loss, logs = stage.cutter_loss(lambda *_: -right(*_), None, None, masks)
    assert loss > 10 and logs["overlap"] == logs["whole"] == logs["ground"] == 0


def test_its_store_keeps_the_newest_pictures_of_both_worlds():
    store = stage.Store(TOY.geometry, capacity=12, seed=3)
    for _ in range(4):
        store.grow(4)
    assert store.made == 16 and len({int(x.float().sum()) for x in store.drawn}) == 12
    pictures, places, masks = next(store.batches(5, 4))
    assert pictures.shape == (5, 3, 32, 32) and places.shape == (5, stage.POINTS, 2) and store.made == 20
    assert masks.shape == (5, stage.POINTS, 32, 32) and masks.dtype == torch.bool


# -- by colours alone ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("beside", [0, 3 + 4j, -6j])
def test_the_thing_under_a_point_is_cut_out_wherever_it_is_touched(beside):
    pytest.importorskip("cv2")
    assert overlap(cut(PICTURE, BALL + beside), exact.disc()) > 0.9


def test_a_large_picture_is_cut_as_well_as_a_small_one():
    cv2 = pytest.importorskip("cv2")
    large = cv2.resize(PICTURE, None, fx=8, fy=5, interpolation=cv2.INTER_CUBIC)
    truth = cv2.resize(exact.disc().astype(np.uint8), None, fx=8, fy=5) > 0
    assert overlap(cut(large, complex(30 * 8, 48 * 5)), truth) > 0.75


def test_half_of_all_drawn_things_are_cut_out_nearly_whole():
    pytest.importorskip("cv2")
    world, found = World(exact.GEOMETRY, "calm"), []
    for seed in range(1_500_000, 1_500_024):
        scene, _ = world.scene(1, 1, seed)
        layer = scene.layers()[0].numpy()
        thing = layer == layer.max()
        if layer.max() and thing.sum() > 60:
            picture = (scene.render()[0, 0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            found.append(overlap(cut(picture, cuts.middle(thing)), thing))
    assert len(found) >= 16 and np.median(found) > .7


def test_on_the_ground_there_is_no_thing():
    pytest.importorskip("cv2")
    for place in (70 + 20j, 80 + 80j, 12 + 85j):
        assert cut(PICTURE, place) is None
    halves = np.zeros((96, 96, 3), np.uint8)
    halves[:, 40:] = 200
    assert cut(halves, 70 + 50j) is None and Thing.at(halves, 70 + 50j, 8) is None


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    assert not can_cut()
    with pytest.raises(ImportError, match=r"msk\[demo\]"):
        cut(PICTURE, BALL)


# -- what hands take hold of ---------------------------------------------------------------------------------------------

class Says(torch.nn.Module):
    """A cutter that answers as it is told."""

    def __init__(self, likely):
        super().__init__()
        self.answer = likely

    def likely(self, picture, place):
        return self.answer


def test_where_it_is_sure_it_is_believed_and_else_colours_decide():
    pytest.importorskip("cv2")
    box = np.zeros(PICTURE.shape[:2], np.float32)
    box[10:80, 20:90] = .97
    assert np.array_equal(cut(PICTURE, BALL, Says(box)), box > .5)
    unsure = np.where(box > 0, .55, .45).astype(np.float32)
    beside = np.where(np.arange(box.shape[1]) > 60, .97, 0.) * np.ones(box.shape)       # sure, but of something else
    for answer in (unsure, beside, 0 * box):
        assert np.array_equal(cut(PICTURE, BALL, Says(answer)), by_colours(PICTURE, BALL))


def test_where_it_is_unsure_colours_draw_the_line():
    pytest.importorskip("cv2")
    y, x = np.mgrid[:PICTURE.shape[0], :PICTURE.shape[1]]
    away = np.abs(x + 1j * y - BALL)
    likely = np.select([away < exact.RADIUS - 3, away < exact.RADIUS + 3], [.97, .55], 0.)    # it might be a bit larger
    mask = cut(PICTURE, BALL, Says(likely.astype(np.float32)))
    assert overlap(mask, away <= exact.RADIUS) > .9 > overlap(likely > .5, away <= exact.RADIUS) + .2


def test_a_touch_a_pixel_beside_a_thing_is_of_it():
    pytest.importorskip("cv2")
    box = np.zeros((96, 96), np.float32)
    box[60:80, 60:80] = .97
    assert cut(PICTURE, 59.5 + 70j, Says(box)).sum() >= 400 and cut(PICTURE, 58.5 + 70j, Says(box)) is None


def test_it_travels_with_its_kit_and_a_kit_without_one_goes_by_colours(tmp_path, close):
    pytest.importorskip("cv2")
    kit = Kit.random(TOY, seed=2)
    kit.save(tmp_path)
    again = load(tmp_path)
    pictures, places, _ = discs(4)
    close(again.cutter(pictures, places), kit.cutter(pictures, places), atol=3e-2)
    replace(kit, cutter=None).save(tmp_path)
    without = load(tmp_path)
    assert without.cutter is None and without.preset.cutter == 0 and without.preset.finish == TOY.finish
    picture = np.asarray(exact.picture())
    ball = complex(*exact.BALL_AT)
    assert np.array_equal(without.cut(picture, ball), by_colours(picture, ball))


def test_the_shipped_one_cuts_out_most_of_a_thing_wherever_it_is_touched_and_nothing_on_the_ground(tmp_path):
    pytest.importorskip("cv2")
    report = cuts.run(clips=24, seed=HELD_OUT + 9_000, json_path=tmp_path / "cut.json", strips=tmp_path, quiet=True)
    kit, colours = report["rows"]["kit"], report["rows"]["colours"]
    assert kit["things"] >= 24 and kit["anywhere"] > colours["anywhere"] + .04 and kit["middle_median"] > .85
    assert kit["ground"] > .85 and kit["grounds"] == report["pictures"] == 24
    assert json.loads((tmp_path / "cut.json").read_text())["rows"] == report["rows"] and (tmp_path / "cut.png").exists()
    assert [line.split()[0] for line in cuts.table(report).splitlines()[-2:]] == ["kit", "colours"]


def test_what_is_told_of_touches():
    told = cuts.Hits([.95, .4], [1., .92, .6, .2], [True, False]).summary()
    assert (told["middle_whole"], told["middle_lost"], told["anywhere_whole"], told["anywhere_lost"]) == (.5, .5, .5, .25)
    assert told["anywhere"] == pytest.approx(.68) and told["anywhere_median"] == pytest.approx(.76) and told["ground"] == .5
    assert cuts.Hits().summary() == {"things": 0, "grounds": 0, "middle": None, "anywhere": None, "ground": None}


def test_overlap_and_middle_by_hand():
    pytest.importorskip("cv2")
    a, b = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    a[2:7, 2:7], b[2:7, 4:9] = True, True
    assert cuts.overlap(a, b) == 15 / 35 and cuts.overlap(None, a) == 0 and cuts.middle(a) == 4.5 + 4.5j
    rim = np.zeros((9, 9), bool)
    rim[:, :3] = True
    assert cuts.middle(rim).real == 1.5, "what leaves the picture ends there"


def test_the_cutter_is_no_part_of_what_a_video_is_made_with():
    kit = Kit.random(TOY, seed=2)
    other = replace(kit, cutter=Kit.random(TOY, seed=3).cutter)
    assert fingerprint(kit) == fingerprint(other)
    revision = lambda suite, kit: header(suite, kit)["revision"]
    assert revision("world", kit) == revision("world", other) and revision("hands", kit) != revision("hands", other)


def test_its_stage_alone_goes_on_from_a_kit_and_leaves_one(tmp_path):
    for role in ("teacher", "student"):
        Kit.random(TOY, seed=4, role=role).save(tmp_path / "kit")
    out = main("cutter", TOY, 1., tmp_path / "run", init=tmp_path / "kit", threads=1)
    before, after = load(tmp_path / "kit"), load(out)
    assert not torch.equal(after.cutter.first.weight, before.cutter.first.weight)
    assert all(torch.equal(x, after.dit.state_dict()[name]) for name, x in before.dit.state_dict().items())
    with pytest.raises(ValueError, match="toy has no cutter to be trained: leave this stage out"):
        main("cutter", replace(TOY, cutter=0), 1., tmp_path / "none", threads=1)
