"""Videos in and out: what is written can be read, says where it came from, and is never seen half made."""
import numpy as np
import pytest
import torch

from msk import video


@pytest.fixture
def clip():
    """Smooth colours that move: [12, 3, 24, 32]."""
    t, y, x = torch.meshgrid(torch.arange(12.0), torch.linspace(0, 1, 24), torch.linspace(0, 1, 32), indexing="ij")
    return torch.stack([x, y, (x + t / 12) % 1 * 0.2 + 0.4], 1)


def psnr(a, b):
    return -10 * torch.log10((a - b).square().mean()).item()


@pytest.mark.parametrize("name, least", [("a.mp4", 28), ("a.webp", 28), ("a.gif", 24), ("a", 50)])
def test_what_is_written_can_be_read(tmp_path, clip, name, least):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    path = video.write(tmp_path / name, clip, fps=24, metadata={"seed": 7, "model": "tiny"})
    frames, fps = video.read(path)
    assert frames.shape == clip.shape and fps == pytest.approx(24, abs=0.01)
    assert psnr(frames, clip) > least
    found = video.read_metadata(path)
    assert (found["seed"], found["model"], found["fps"]) == (7, "tiny", 24)


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a.gif"])
def test_the_file_says_that_it_is_generated(tmp_path, clip, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    path = video.write(tmp_path / name, clip, fps=10)
    assert b"AI-generated" in path.read_bytes()


@pytest.mark.parametrize("height, width", [(23, 32), (24, 31), (23, 31)])
def test_odd_sizes_come_back_as_they_went(tmp_path, clip, height, width):
    pytest.importorskip("av")
    odd = clip[:, :, :height, :width]
    frames, _ = video.read(video.write(tmp_path / "odd.mp4", odd, fps=24))
    assert frames.shape == odd.shape
    assert psnr(frames, odd) > 26


def test_frames_that_do_not_change_are_still_frames(tmp_path):
    still = torch.full((9, 3, 16, 16), 0.5)
    for name in ("still.gif", "still.webp"):
        frames, _ = video.read(video.write(tmp_path / name, still, fps=24))
        assert len(frames) == 9


def test_a_video_can_grow_frame_by_frame_and_appears_only_when_whole(tmp_path, clip):
    pytest.importorskip("av")
    writer = video.Writer(tmp_path / "live.mp4", 24)
    for frame in clip:
        writer.add(frame)
    assert not (tmp_path / "live.mp4").exists()
    writer.close()
    assert len(video.read(tmp_path / "live.mp4")[0]) == 12
    assert [p.name for p in tmp_path.iterdir()] == ["live.mp4"]


def test_what_was_made_before_an_error_is_kept(tmp_path, clip):
    pytest.importorskip("av")
    with pytest.raises(KeyboardInterrupt), video.Writer(tmp_path / "cut.mp4", 24) as writer:
        writer.add(clip[:5])
        raise KeyboardInterrupt
    assert len(video.read(tmp_path / "cut.mp4")[0]) == 5


def test_bytes_and_floats_say_the_same(clip):
    from_float = video.to_bytes(clip)
    assert np.array_equal(from_float, video.to_bytes((clip * 255).round().to(torch.uint8)))
    assert video.to_bytes(torch.full((1, 3, 2, 2), float("nan"))).max() == 0


def test_reading_stops_where_asked(tmp_path, clip):
    assert len(video.read(video.write(tmp_path / "a.webp", clip, 24), frames=3)[0]) == 3


@pytest.mark.parametrize("name", ["broken.mp4", "broken.webp", "broken.gif"])
def test_a_corrupt_file_is_one_clear_sentence(tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    (tmp_path / name).write_bytes(b"this is no video at all" * 100)
    with pytest.raises(ValueError, match="can be read"):
        video.read(tmp_path / name)


def test_a_truncated_mp4_does_not_crash(tmp_path, clip):
    pytest.importorskip("av")
    whole = video.write(tmp_path / "whole.mp4", clip, 24).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[:len(whole) // 2])
    try:
        assert len(video.read(tmp_path / "half.mp4")[0]) <= 12
    except ValueError as error:
        assert "is it whole" in str(error) or "can be read" in str(error)


def test_a_folder_of_other_things_is_never_overwritten(tmp_path, clip):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="other things"):
        video.write(tmp_path / "home", clip, 24)
    for _ in range(2):                                      # but a clip of ours may be made anew
        video.write(tmp_path / "clip", clip[:4], 24)
    assert len(video.read(tmp_path / "clip")[0]) == 4


def test_the_wrong_shape_the_wrong_kind_and_nothing_at_all_are_refused(tmp_path, clip):
    with pytest.raises(ValueError, match=r"wanted \[T, 3, H, W\]"):
        video.write(tmp_path / "a.webp", clip[:, :2], 24)
    with pytest.raises(ValueError, match="cannot write .txt"):
        video.write(tmp_path / "a.txt", clip, 24)
    with pytest.raises(ValueError, match="no frames"):
        video.write(tmp_path / "a.webp", clip[:0], 24)
    with pytest.raises(ValueError, match="one size"):
        with video.Writer(tmp_path / "b.webp", 24) as writer:
            writer.add(clip)
            writer.add(clip[:, :, :10])
