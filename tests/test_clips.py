"""Real clips at one geometry: the crop is centred, the pace is kept, and shards give back what went in."""
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from msk import clips, video
from msk.config import Geometry
from msk.tracks import Tracks


def counted(folder, fps, frames=20, size=(16, 16)):
    """A folder of pictures whose grey value is 10 times their number."""
    grey = (torch.arange(frames) * 10).to(torch.uint8)[:, None, None, None].expand(frames, 3, *size)
    return video.write(folder / f"count{fps}", grey, fps)


def numbers(frames):
    return (frames.float().mean((1, 2, 3)) / 10).round().int().tolist()


def test_the_crop_is_centred_and_as_large_as_can_be():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 28:72] = 255                                 # the middle square of a wide picture, and a little
    assert clips.fit(picture, Geometry(16, 16)).min() == 255
    assert clips.fit(picture.transpose(1, 0, 2), Geometry(16, 16)).min() == 255
    assert clips.fit(Image.fromarray(picture), Geometry(16, 40)).min() == 0     # nothing is cut from the right shape


@pytest.mark.parametrize("fps, expected", [(12, [0, 1, 2, 3, 4]), (24, [0, 2, 4, 6, 8]), (6, [0, 0, 1, 1, 2])])
def test_time_keeps_its_pace_whatever_the_source_counts_in(tmp_path, fps, expected):
    frames = clips.read(counted(tmp_path, fps), Geometry(16, 16, fps=12), frames=5)
    assert numbers(frames) == expected


def test_a_clip_can_start_anywhere_and_lasts_as_long_as_its_source(tmp_path):
    source = counted(tmp_path, 10)
    assert numbers(clips.read(source, Geometry(16, 16, fps=10), frames=3, start=0.5)) == [5, 6, 7]
    assert len(clips.read(source, Geometry(16, 16, fps=20))) == 40


def test_a_video_is_cut_without_overlap(tmp_path):
    cuts = list(clips.cut(counted(tmp_path, 10), Geometry(16, 16, fps=10), 9, "grey"))
    assert [numbers(c.frames) for c in cuts] == [list(range(9)), list(range(9, 18))]
    assert cuts[0].caption == "grey"


def test_an_mp4_comes_in_at_the_geometry(tmp_path):
    pytest.importorskip("av")
    path = video.write(tmp_path / "a.mp4", torch.rand(10, 3, 30, 50), 24)
    frames = clips.read(path, Geometry(16, 24, fps=24), frames=9)
    assert frames.shape == (9, 3, 16, 24) and frames.dtype == torch.uint8


def made(count, frames=5):
    generator = torch.Generator().manual_seed(1)
    for k in range(count):
        pixels = torch.randint(0, 256, (frames, 3, 8, 8), generator=generator, dtype=torch.uint8)
        tracks = Tracks(torch.rand(1, frames, 4, 2), torch.ones(1, frames, 4, dtype=torch.bool), torch.arange(4)[None])
        yield clips.RealClip(pixels, f"clip {k}", tracks if k % 2 else None)


def test_shards_give_back_what_went_in_and_stay_small(tmp_path):
    went_in = list(made(7))
    written = clips.write_shards(went_in, tmp_path, max_bytes=2 * 5 * 3 * 64)
    assert len(written) == 4 and not list(tmp_path.glob("*.part*"))
    came_out = list(clips.read_shards(tmp_path))
    for a, b in zip(went_in, came_out, strict=True):
        assert a.caption == b.caption and torch.equal(a.frames, b.frames)
        assert (a.tracks is None) == (b.tracks is None)
        if a.tracks:
            assert torch.equal(a.tracks.xy, b.tracks.xy) and torch.equal(a.tracks.visible, b.tracks.visible)
    clips.write_shards(made(1), tmp_path)
    assert len(list(clips.read_shards(tmp_path))) == 8


def test_batches_are_shuffled_by_the_seed_and_see_every_clip(tmp_path):
    clips.write_shards(made(6), tmp_path)
    epoch = list(itertools.islice(clips.batches(tmp_path, 3, seed=4), 2))
    assert sorted(sum((captions for _, captions in epoch), [])) == [f"clip {k}" for k in range(6)]
    again, _ = next(clips.batches(tmp_path, 3, seed=4))
    assert torch.equal(epoch[0][0], again) and again.shape == (3, 5, 3, 8, 8) and again.max() <= 1


def test_what_cannot_be_had_is_said_clearly(tmp_path):
    with pytest.raises(ValueError, match="gives 20 frames at 10 fps.*wanted 99"):
        clips.read(counted(tmp_path, 10), Geometry(16, 16, fps=10), frames=99)
    with pytest.raises(FileNotFoundError, match="no file"):
        clips.read(tmp_path / "none.mp4", Geometry(16, 16))
    with pytest.raises(FileNotFoundError, match="no clips-"):
        next(clips.read_shards(tmp_path))
    with pytest.raises(ValueError, match="float32.*wanted uint8"):
        clips.write_shards([clips.RealClip(torch.rand(2, 3, 8, 8))], tmp_path)
    (tmp_path / "clips-00000.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="cannot be read"):
        next(clips.read_shards(tmp_path))
