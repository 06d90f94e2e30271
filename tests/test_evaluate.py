"""The measures agree with closed forms and with an outside library; the suite says what frames its figures."""
import json
import math

import pytest
import torch

from msk import evaluate
from msk.kit import Kit
from msk.tracks import Tracks
from msk.world import HELD_OUT

FRAMES = 5
SMALL = dict(clips=2, batch=1, frames=FRAMES, grid=4, quiet=True)


@pytest.fixture(scope="module")
def pair():
    return Kit.random("toy"), Kit.random("toy", role="teacher")


def test_psnr_of_known_noise():
    truth = torch.full((4, 3, 64, 64), 0.5)
    noise = 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert evaluate.psnr(truth + noise, truth).mean().item() == pytest.approx(20, abs=0.1)
    assert evaluate.psnr(truth + 0.01, truth)[0].item() == pytest.approx(40, abs=1e-3)
    assert evaluate.psnr(truth, truth)[0].item() == pytest.approx(100)


def test_ssim_and_psnr_are_those_of_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    g = torch.Generator().manual_seed(1)
    truth = torch.rand(3, 3, 48, 40, generator=g)
    made = (truth + 0.2 * torch.randn(truth.shape, generator=g)).clamp(0, 1)
    theirs = image.structural_similarity_index_measure(made, truth, data_range=1.0, reduction="none")
    torch.testing.assert_close(evaluate.ssim(made, truth), theirs, atol=1e-4, rtol=1e-4)
    theirs = image.peak_signal_noise_ratio(made, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(evaluate.psnr(made, truth), theirs)


def test_epe_of_a_constant_shift_is_the_shift_and_hidden_points_and_frame_0_say_nothing():
    tracks = Tracks.of(torch.rand(2, 6, 5, 2) * 30)
    hidden = tracks.visible.clone()
    hidden[:, 3] = False
    found = tracks.xy + torch.tensor([3.0, 4.0])
    found[:, 0], found[:, 3] = 1e6, math.nan
    distances = evaluate.epe(found, Tracks(tracks.xy, hidden, tracks.ids))
    assert len(distances) == 2 * 4 * 5
    torch.testing.assert_close(distances, torch.full_like(distances, 5.0), atol=1e-4, rtol=0)


def test_points_are_followed_where_there_is_texture_and_nowhere_else():
    """A textured picture with a flat left half, rolled to the right by two pixels a frame."""
    from msk.trackers import smooth
    picture = 2 * smooth(torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)), 1.0) - 0.5
    picture[..., :40] = 0.5
    made = torch.stack([picture.roll(2 * t, dims=-1) for t in range(5)], dim=1)
    start = torch.tensor([[20.5, 48.5], [60.5, 30.5], [60.5, 60.5]])
    asked = Tracks.of(start + 2 * torch.arange(5)[:, None, None] * torch.tensor([1.0, 0.0]))
    found, measured = evaluate.followed(made, asked)
    assert measured.ids.tolist() == [[1, 2]] and evaluate.epe(found, measured).max() < 0.1
    assert evaluate.followed(torch.full_like(made, 0.5), asked)[0].shape == (1, 5, 0, 2)            # nothing to hold on to


def test_a_row_weighs_clips_by_frames_for_psnr_and_by_points_for_epe():
    row = evaluate.Row(width=50, psnr=[10.0, 20.0], ssim=[0.2, 0.4], distance=[30.0, 10.0], seen=[30, 10])
    summary = row.summary()
    assert summary["psnr"] == 15 and summary["epe"] == 1 and summary["epe_rel"] == 0.02 and summary["n"] == 2


def test_clips_without_specks_have_figures_of_their_own_where_there_are_others():
    row = evaluate.Row(width=50, psnr=[10., 20., 60.], ssim=[.2, .4, .9], distance=[30., 10., 5.], seen=[30, 10, 10])
    told = evaluate.summaries({"student": row}, [True, False, True])["student"]
    assert told["n"] == 3 and told["psnr"] == 30 and told["clear"] == {
        "psnr": 35, "ssim": .55, "epe": 35 / 40, "epe_rel": 35 / 40 / 50, "n": 2}
    report = dict(model="m", suite="world", level="calm", clip_seeds=[1, 2, 3], frames=9, width=50, height=50,
                  dtype="float32", device="cpu", rows={"student": told})
    assert [line.split()[0] for line in evaluate.table(report).splitlines()[2:]] == ["student", "without"]
    for clear in ([True] * 3, [False] * 3):
        assert "clear" not in evaluate.summaries({"student": row}, clear)["student"]


def test_the_displaced_truth_is_displaced_by_the_field_it_names():
    size, at = 96, torch.tensor([40, 52])
    frames = torch.zeros(1, 1, 3, size, size)
    frames[..., at[1] - 1:at[1] + 2, at[0] - 1:at[0] + 2] = 1.0                 # a dot
    made, field = evaluate.displaced(frames, seed=3)
    light = (made[0, 0, 0] - 0.1).clamp_min(0)
    axis = torch.arange(size).float()
    found = torch.stack([(light.sum(0) * axis).sum(), (light.sum(1) * axis).sum()]) / light.sum()
    wanted = field[0, 0, :, at[1], at[0]]
    assert wanted.norm() > 0.3
    torch.testing.assert_close(found - at, wanted, atol=0.15, rtol=0)


def test_the_suite_writes_every_role_by_its_names(pair, tmp_path):
    student, teacher = pair
    path = tmp_path / "new" / "e.json"
    report = evaluate.run(model=student, teacher=teacher, json_path=path, **SMALL)
    written = json.loads(path.read_text())
    assert written["rows"] == report["rows"]
    assert set(report["rows"]) == {*evaluate.ROLES, "student_sparse"}
    for row in report["rows"].values():
        assert {"psnr", "ssim", "epe", "epe_rel", "n"} <= set(row) and row["n"] == 2
        assert row["epe_rel"] == pytest.approx(row["epe"] / 32)
    assert report["clip_seeds"] == [HELD_OUT, HELD_OUT + 1] and report["complete"]
    assert {"command", "device", "dtype", "revision", "model", "level"} <= set(written)
    assert report["rows"]["first_frame"]["psnr"] > report["rows"]["student"]["psnr"]    # untrained: worse than nothing
    assert "held-out clips" in evaluate.table(report)


def test_a_clip_is_measured_the_same_in_any_batch(pair):
    wide = evaluate.run(model=pair[0], roles=("first_frame",), **SMALL | dict(batch=2))
    narrow = evaluate.run(model=pair[0], roles=("first_frame",), **SMALL)
    for name in ("psnr", "ssim"):
        assert wide["rows"]["first_frame"][name] == pytest.approx(narrow["rows"]["first_frame"][name], rel=1e-5)


def test_an_interrupt_keeps_what_was_measured(pair, tmp_path, monkeypatch):
    measure = evaluate._batch

    def impatient(world, seeds, *rest):
        if seeds[0] > HELD_OUT:
            raise KeyboardInterrupt
        return measure(world, seeds, *rest)

    monkeypatch.setattr(evaluate, "_batch", impatient)
    evaluate.run(model=pair[0], roles=("first_frame",), json_path=tmp_path / "e.json", **SMALL)
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["rows"]["first_frame"]["n"] == 1 and written["clip_seeds"] == [HELD_OUT] and not written["complete"]


def test_what_stands_in_the_file_is_gone_on_with(pair, tmp_path, monkeypatch):
    """Three clips in batches of two, then six: the second batch was cut short, and is made whole."""
    measure, asked = evaluate._batch, []

    def noted(world, seeds, *rest):
        asked.append([seed - HELD_OUT for seed in seeds])
        return measure(world, seeds, *rest)

    monkeypatch.setattr(evaluate, "_batch", noted)
    path, settings = tmp_path / "e.json", SMALL | dict(roles=("student", "first_frame"), batch=2)
    at_once = evaluate.run(model=pair[0], **settings | dict(clips=6))
    evaluate.run(model=pair[0], json_path=path, **settings | dict(clips=3))
    parts = evaluate.run(model=pair[0], json_path=path, **settings | dict(clips=6))
    assert asked == [[0, 1], [2, 3], [4, 5]] + [[0, 1], [2]] + [[2, 3], [4, 5]]
    assert parts["rows"] == at_once["rows"] and parts["clip_seeds"] == at_once["clip_seeds"] and parts["complete"]
    fewer = evaluate.run(model=pair[0], json_path=path, **settings | dict(clips=2))
    assert len(asked) == 7 and fewer["rows"] == parts["rows"], "what was measured is not thrown away"
    with pytest.raises(ValueError, match="e.json holds a report with another frames, asked: name another file, or take it"):
        evaluate.run(model=pair[0], json_path=path, **settings | dict(frames=9, batch=1))
    assert json.loads(path.read_text())["rows"] == parts["rows"]


def test_a_student_clip_is_the_stream_that_the_canvas_plays(kit):
    from msk.stream import Stream
    g = torch.Generator().manual_seed(4)
    first, tracks = torch.rand(1, 3, 32, 32, generator=g), Tracks.of(4 + 20 * torch.rand(1, 21, 3, 2, generator=g))
    made = evaluate.by_student(kit, ["a red fish"], first, tracks, 21, seed=7)
    assert made.shape == (1, 21, 3, 32, 32)
    stream = Stream(kit, "a red fish", first[0], seed=7)
    torch.testing.assert_close(made[:, :9], stream.step(tracks.frames(0, 9)), atol=2e-3, rtol=0)


def test_what_cannot_be_measured_is_one_sentence(pair):
    with pytest.raises(ValueError, match="use 'world'"):
        evaluate.run("davis", pair[0])
    with pytest.raises(ValueError, match="held-out clips begin at"):
        evaluate.run(model=pair[0], seed=5)
    with pytest.raises(ValueError, match="plays the role of critic"):
        evaluate.run(model=pair[0], roles=("critic",))
    with pytest.raises(ValueError, match="hand in teacher="):
        evaluate.run(model=pair[0])
