"""Motion transfer: what a video does, the things of another picture do; and what cannot be used is refused in a sentence."""
import socket
from dataclasses import replace

import pytest
import torch
from PIL import Image

import msk
from demos import motion_transfer
from msk import cli, generate, video, viz
from msk.config import Geometry
from msk.real import still_row
from msk.tracks import Tracks
from msk.world import HELD_OUT, World, grid_points
from tests.pages.browser import open_browser

FRAMES = 33


@pytest.fixture(scope="module")
def kit():
    return msk.load("tiny")


@pytest.fixture(scope="module")
def scene(kit, tmp_path_factory):
    """(folder with clip.mp4 and picture.png, the clip): the picture is the first frame in other colours, with margins that
    its crop takes away."""
    pytest.importorskip("av")
    pytest.importorskip("cv2")
    folder, clip = tmp_path_factory.mktemp("scene"), World(kit.geometry).sample(1, FRAMES, seed=HELD_OUT + 13)
    video.write(folder / "clip.mp4", clip.frames[0], kit.geometry.fps)
    wide = Image.new("RGB", (2 * kit.geometry.width + 100, 2 * kit.geometry.height))
    wide.paste(viz.image(clip.frames[0, 0].roll(1, 0)).resize((2 * kit.geometry.width,) * 2), (50, 0))
    wide.save(folder / "picture.png")
    return folder, clip


def test_the_motion_of_a_video_is_followed_by_another_picture(kit, scene, tmp_path, capsys):
    """Judged by the world's own truth of the video's points, which the command has never seen."""
    folder, clip = scene
    out = tmp_path / "moved.mp4"
    motion_transfer.main(["--video", str(folder / "clip.mp4"), "--image", str(folder / "picture.png"), "--out", str(out),
                          "--grid", "16"])
    made, _ = video.read(out)
    first = kit.pixels(folder / "picture.png")
    xy, visible, layer = clip.scene.track(grid_points(kit.geometry, 16, 16))
    thing = layer[0] > 0                                                        # on a thing, not on the ground
    row = still_row(kit, first, made[None], Tracks.of(xy[0, :, thing], visible[0, :, thing]))
    assert len(made) == FRAMES and row["points"] > 20 and row["epe_still"] > 5
    assert row["epe"] < 0.35 * row["epe_still"], row
    assert "would be" in capsys.readouterr().out and video.read(tmp_path / "moved-tracks.mp4")[0].shape[-2] == 256


def test_the_saved_tracks_are_the_picture_s_and_give_the_same_clip_again(kit, scene, tmp_path):
    folder, _ = scene
    moved = motion_transfer.transfer(kit, folder / "clip.mp4", folder / "picture.png", frames=9, grid=6, seed=3)
    motion_transfer.write(moved, tmp_path / "moved.webp", 24, {})
    back = generate.onto_model(generate.read_tracks(tmp_path / "moved.npz"), (356, 256), kit, 3)
    torch.testing.assert_close(back.xy, moved.told.xy)
    assert torch.equal(back.ids, moved.told.ids) and torch.equal(back.visible, moved.told.visible)
    assert cli.main(["generate", "--image", str(folder / "picture.png"), "--tracks", str(tmp_path / "moved.npz"),
                     "--seed", "3", "--out", str(tmp_path / "again")]) == 0
    assert (video.read(tmp_path / "again")[0] - moved.made).abs().max() < 0.6 / 255


def test_the_picture_s_middle_is_where_the_model_s_pixels_are():
    kit = type("Any", (), {"geometry": Geometry(64, 64)})
    tracks = motion_transfer.onto_picture(Tracks.of([[[0., 0.], [64., 32.]]]), (300, 100), kit)
    torch.testing.assert_close(tracks.xy[0, 0], torch.tensor([[100., 0.], [200., 50.]]))


def test_a_teacher_moves_it_too(scene, tmp_path):
    folder, _ = scene
    kit = msk.Kit.random("toy", role="teacher")
    kit.preset = replace(kit.preset, sample_steps=2)
    assert motion_transfer.transfer(kit, folder / "clip.mp4", folder / "picture.png", frames=9, grid=4).made.shape[0] == 9


@pytest.mark.parametrize("change, said", [
    ({"--video": "nowhere.mp4"}, "no file nowhere.mp4"), ({"--video": __file__}, "not a video that can be read"),
    ({"--image": "nowhere.png"}, "no picture at nowhere.png"), ({"--image": __file__}, "could not be read as a picture"),
    ({"--frames": "2"}, "2 frames were asked for: give 5 to 241"), ({"--frames": "9999"}, "give 5 to 241"),
    ({"--grid": "100"}, "100 points a side were asked for"), ({"--out": "clip.exe"}, "name an .mp4"),
    ({"--model": "nothing"}, "no kit called 'nothing'"), ({"--video": None}, "go together")])
def test_what_cannot_be_used_is_refused_in_one_sentence(scene, tmp_path, capsys, change, said):
    folder, _ = scene
    words = {"--video": str(folder / "clip.mp4"), "--image": str(folder / "picture.png"), "--out": str(tmp_path / "x.mp4")}
    words = [w for pair in (words | change).items() if pair[1] is not None for w in pair]
    with pytest.raises(SystemExit) as stop:
        motion_transfer.main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_video_that_is_too_big_is_not_opened(kit, scene, tmp_path):
    with open(tmp_path / "big.mp4", "wb") as file:
        file.truncate(motion_transfer.MAX_VIDEO + 1)
    with pytest.raises(ValueError, match="210 MB: give a video of at most 210 MB"):
        motion_transfer.transfer(kit, tmp_path / "big.mp4", scene[0] / "picture.png")


def test_the_page_moves_its_example_and_says_how_well(kit, tmp_path):
    pytest.importorskip("gradio")
    pytest.importorskip("cv2")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server, url = motion_transfer.serve({"student": kit}, port=port, block=False, frames=21, grid=8)
    try:
        with open_browser() as browser:
            page = browser.new_page(viewport={"width": 1200, "height": 1400})
            complaints = []
            page.on("pageerror", lambda e: complaints.append(str(e)))
            page.goto(url)
            page.get_by_role("button", name="Move it").click()
            page.get_by_text("would be").wait_for(timeout=120_000)
            page.wait_for_function("() => document.querySelector('#msk-drawn video')?.videoWidth > 500", timeout=60_000)
            with page.expect_download() as download:
                page.locator("a[download='moved.npz']").first.click()
            assert generate.read_tracks(download.value.path().rename(tmp_path / "moved.npz")).ids.shape[1] == 64
            broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG not at all"}
            page.locator("input[type=file]:not([accept*=video])").first.set_input_files(broken)
            page.get_by_text("could not be read as a picture").first.wait_for(timeout=60_000)
            page.close()
            assert complaints == []
    finally:
        server.close(verbose=False)
