"""Where the motion is known, doing nothing reads as that motion and doing it right as none; what is broken is named."""
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from msk import real, trackers, video
from msk.config import PRESETS, Geometry
from msk.kit import Kit

SIZE, FRAMES, STEP = 96, 9, 1.0         # the kit's pixels; frames; pixels to the right from frame to frame
MEAN = STEP * sum(range(FRAMES)) / (FRAMES - 1)


@pytest.fixture(scope="module")
def canvas():
    """A textured picture, twice the kit's size and wider: [3, 192, 256]."""
    g = torch.Generator().manual_seed(0)
    made = sum(a * F.interpolate(torch.rand(1, 3, n, 4 * n // 3, generator=g), (192, 256), mode="bicubic")
               for n, a in ((12, .6), (36, .4)))
    return made[0].clamp(0, 1)


@pytest.fixture(scope="module")
def folder(canvas, tmp_path_factory):
    """A clip that slides, a broken clip, and a picture with tracks as ATI's editor writes them."""
    pytest.importorskip("av")
    pytest.importorskip("cv2")
    made = tmp_path_factory.mktemp("material")
    slides = torch.stack([canvas[:, :, 40 - round(2 * STEP * t):][:, :, :192] for t in range(FRAMES)])
    video.write(made / "slides.mp4", slides, fps=24)
    (made / "broken.mp4").write_bytes((made / "slides.mp4").read_bytes()[:400])
    Image.fromarray(video.to_bytes(canvas)[0]).save(made / "photo.png")
    points = np.zeros((2, FRAMES, 1, 3), np.float32)
    points[..., 2] = 1
    points[0, :, 0, :2] = np.stack([100 + 4 * np.arange(FRAMES), np.full(FRAMES, 90)], -1)      # pixels of the picture
    points[1, :, 0, :2] = 20, 20                                                                # beyond the crop
    points *= 8
    buffer = io.BytesIO()
    np.savez(buffer, points)
    torch.save(buffer.getvalue(), made / "photo.pth")
    return made


@pytest.fixture(scope="module")
def toy():
    return Kit.random(replace(PRESETS["toy"], geometry=Geometry(SIZE, SIZE)))


def measured(toy, folder, **more):
    return real.run(folder, toy, frames=FRAMES, points=8, quiet=True, **more)


def test_doing_nothing_reads_as_the_known_shift_and_the_truth_as_none(toy, folder, tmp_path, monkeypatch):
    truth = real.read_clip(folder / "slides.mp4", toy.geometry, FRAMES)[0]
    monkeypatch.setattr(real, "by_student", lambda *order: truth)
    report = measured(toy, folder, json_path=tmp_path / "new" / "r.json", strips=tmp_path / "strips")
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == json.loads(json.dumps(report)) and report["complete"]
    rows = report["clips"]["slides.mp4"]
    assert rows["first_frame"]["epe"] == pytest.approx(MEAN, rel=.1)
    assert rows["student"]["epe_still"] == pytest.approx(MEAN, rel=.05), "as the tracker finds it"
    assert rows["student"]["epe"] < .1 and rows["student_sparse"]["epe"] < .1 and rows["student"]["psnr"] > 99
    assert 1 < rows["chance"]["epe"] < 2 * MEAN + 16 * SIZE / 96, "something is found in anything, but not the point"
    assert rows["tracks"]["tracker"] == "dis" and rows["tracks"]["round_trip"] < .3 and rows["tracker"]["epe"] < .5
    assert set(report["means"]) == set(real.NAMES) and 1 <= rows["student_sparse"]["points"] <= rows["student"]["points"]

    assert set(report["skipped"]) == {"broken.mp4"} and "broken.mp4" not in report["clips"]
    said = real.table(report)
    assert "left out: broken.mp4" in said and "nothing but a drawn world" in said and "true points by dis" in said
    assert {p.name for p in (tmp_path / "strips").iterdir()} == {"slides.mp4.png", "photo.png, photo.pth.png"}


def test_a_track_file_drives_the_picture_of_its_stem(toy, folder, monkeypatch):
    told = []
    monkeypatch.setattr(real, "by_stream", lambda kit, prompt, first, tracks, frames, seed:
                        [told.append(tracks) or first.expand(frames, -1, -1, -1)])
    monkeypatch.setattr(real, "material", lambda _: [folder / "photo.png"])
    row, = measured(toy, folder)["stills"].values()
    torch.testing.assert_close(told[0].xy[0, :, 0], torch.stack([(100 - 32 + 4. * torch.arange(FRAMES)) / 2,
                                                                 torch.full((FRAMES,), 45.)], -1))
    assert row["points"] == 1 and row["epe_still"] == pytest.approx(2 * MEAN), "beyond the crop is nothing"
    assert row["epe"] == pytest.approx(row["epe_still"], rel=.1) and row["psnr_rest"] == pytest.approx(100)


def test_whole_things_are_dragged_and_the_rest_is_held(toy, folder, monkeypatch):
    told = []
    monkeypatch.setattr(real, "by_stream", lambda kit, prompt, first, tracks, frames, seed:
                        [told.append(tracks) or first.expand(frames, -1, -1, -1)])
    monkeypatch.setattr(real, "material", lambda _: [folder / "photo.png"])
    row, = measured(toy, folder, whole=True)["stills"].values()
    stays = (told[0].xy == told[0].xy[:, :1]).all(dim=-1).all(dim=1)[0]
    assert stays.sum() > 16 and row["points"] == 1, "the rest is told of, and is not measured"


@pytest.mark.parametrize("shift", [6, 12])
def test_a_patch_that_went_where_it_was_dragged_is_found_there(toy, canvas, shift):
    first = F.avg_pool2d(canvas, 2)[None, :, :, 16:112]
    told = real.drags(first, 5)["right"]
    told = replace(told, xy=torch.where(torch.arange(5)[:, None, None] > 0, told.xy[:, :1] + torch.tensor([shift, 0.]),
                                        told.xy[:, :1]))
    made = torch.cat([first[:, None], first.roll(shift, dims=-1)[:, None].expand(-1, 4, -1, -1, -1)], dim=1)
    row = real.still_row(toy, first, made, told)
    assert row["epe"] < .1 and row["epe_still"] == pytest.approx(shift, abs=1e-4)
    assert row["psnr_rest"] < 30, "but all the rest went too"


def test_every_picture_without_tracks_is_dragged_three_ways(toy, canvas):
    first = F.avg_pool2d(canvas, 2)[None, :, :, 16:112]
    asked = real.drags(first, FRAMES)
    way = {name: (tracks.xy[0, -1, 0] - tracks.xy[0, 0, 0]).tolist() for name, tracks in asked.items()}
    assert way == {"right": pytest.approx([.2 * SIZE, 0], abs=1e-4), "up": pytest.approx([0, -.2 * SIZE], abs=1e-4),
                   "pinned": pytest.approx([.2 * SIZE, 0], abs=1e-4)}
    pins = asked["pinned"].xy[0, :, 1:]
    assert pins.shape[1] and torch.equal(pins, pins[:1].expand_as(pins))


def test_a_broken_track_file_is_named_and_the_picture_dragged_by_hand(toy, folder, tmp_path, monkeypatch):
    (tmp_path / "photo.png").write_bytes((folder / "photo.png").read_bytes())
    (tmp_path / "photo.pth").write_bytes(b"nothing")
    monkeypatch.setattr(real, "by_stream", lambda kit, prompt, first, *rest: [first.expand(FRAMES, -1, -1, -1)])
    report = measured(toy, tmp_path)
    assert set(report["skipped"]) == {"photo.pth"}
    assert set(report["stills"]) == {f"photo.png, {name}" for name in ("right", "up", "pinned")}


def test_an_interrupt_keeps_what_was_measured(toy, folder, tmp_path, monkeypatch):
    def impatient(*order):
        raise KeyboardInterrupt

    monkeypatch.setattr(real, "by_student", impatient)
    monkeypatch.setattr(real, "material", lambda _: [folder / "slides.mp4"])
    measured(toy, folder, json_path=tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert set(written["clips"]["slides.mp4"]) == {"tracks", *real.NAMES[:4]} and not written["complete"]


def test_a_clip_is_read_no_further_than_is_wanted_and_in_whole_latent_frames(folder, monkeypatch):
    pictures, taken = list(video.pictures_of(folder / "slides.mp4")), []
    monkeypatch.setattr(video, "pictures_of", lambda _: (taken.append(1) or p for p in pictures))
    frames, wide = real.read_clip("x.mp4", Geometry(32, 32), 5)
    assert frames.shape == (1, 5, 3, 32, 32) and wide.shape == (1, 5, 3, 256, 256) and len(taken) == 5
    assert real.read_clip("x.mp4", Geometry(32, 32, fps=12), 9)[0].shape[1] == 5, "every second of 9 is 5"
    pictures = pictures[:7]
    assert real.read_clip("x.mp4", Geometry(32, 32), 9)[0].shape[1] == 5
    pictures = pictures[:3]
    with pytest.raises(ValueError, match="gives 3 frames: wanted 5 or more"):
        real.read_clip("x.mp4", Geometry(32, 32), 9)


def test_dense_flow_is_unsure_of_what_is_covered(canvas):
    pytest.importorskip("cv2")
    frames = torch.stack([canvas[:, :, 40:232].clone() for _ in range(6)])
    for t in range(6):
        frames[t, :, 60:130, 20 * t:20 * t + 40] = canvas[:, 100:170, :40].flip(-1)             # a patch passes by
    found = trackers.track(frames[None], torch.tensor([[[70., 95.], [150., 30.]]]), "dis")
    assert found.visible[0, :, 1].all() and (found.xy[0, :, 1] - found.xy[0, :1, 1]).norm(dim=-1).max() < .5
    assert not found.visible[0, -1, 0]


def test_what_holds_nothing_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="holds nothing to measure: wanted are videos"):
        real.run(tmp_path, toy)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        real.run(tmp_path / "nowhere", toy)
