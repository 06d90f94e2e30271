import io
import json

import numpy as np
import pytest
import torch

from msk.config import Geometry
from msk.tracks import Tracks

G = Geometry(64, 96)


def test_a_grid_stands_still_and_covers_the_frame_evenly():
    tracks = Tracks.grid(G, 16, frames=5)
    assert tracks.xy.shape == (1, 5, 24, 2) and tracks.visible.all()
    assert torch.equal(tracks.xy[0, 0], tracks.xy[0, -1])
    assert tracks.xy[0, 0].amin(0).tolist() == [8, 8] and tracks.xy[0, 0].amax(0).tolist() == [88, 56]
    assert tracks.ids.unique().numel() == 24


def test_a_drag_passes_through_its_path_at_even_pace():
    tracks = Tracks.drag([[0, 0], [10, 0], [10, 20]], frames=5)
    assert tracks.xy[0, :, 0].tolist() == [[0, 0], [5, 0], [10, 0], [10, 10], [10, 20]]


def test_a_handle_of_many_points_moves_as_one():
    tracks = Tracks.drag([[20, 20], [40, 30]], frames=3, spacing=4, size=3)
    offset = tracks.xy - tracks.xy[:, :, 4:5]
    assert tracks.xy.shape[2] == 9 and torch.equal(offset[0, 0], offset[0, 2])
    assert tracks.xy[0, :, 4].tolist() == [[20, 20], [30, 25], [40, 30]]


def test_resampling_keeps_ends_and_never_invents_visibility():
    xy = torch.rand(1, 5, 3, 2)
    visible = torch.tensor([True, True, False, True, True])[None, :, None].expand(1, 5, 3)
    tracks = Tracks(xy, visible, torch.arange(3)[None])
    finer = tracks.resample(9)
    assert torch.equal(finer.xy[:, ::2], xy) and torch.equal(finer.visible[:, ::2], visible)
    assert finer.visible[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert torch.equal(tracks.resample(5).xy, xy)


def test_a_hidden_point_may_be_nowhere_and_its_neighbours_in_time_stay_finite():
    xy = torch.tensor([[1.0, 1], [np.nan, np.nan], [3, 3]])[:, None]
    tracks = Tracks.of(xy)
    assert tracks.visible[0, :, 0].tolist() == [True, False, True]
    finer = tracks.resample(5)
    assert finer.visible[0, :, 0].tolist() == [True, False, False, False, True]
    assert finer.xy[0, [0, 4]].isfinite().all()


def test_hiding_slicing_joining():
    a = Tracks.grid(G, 32, frames=9)
    assert a.hide(slice(2, 5)).visible[0, :, 0].tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert a.hide(range(0, 9, 2)).visible[0, :, 0].int().sum() == 4
    assert a.hide(torch.arange(6) == 1).visible.sum((0, 1)).tolist() == [9, 0, 9, 9, 9, 9]
    assert torch.equal(torch.cat([a.frames(0, 4).xy, a.frames(4, 9).xy], 1), a.xy)
    both = a.concat(Tracks.drag([[1, 2]], 9), Tracks.empty(1, 9))
    assert both.xy.shape[2] == 7 and both.ids.shape == (1, 7)
    with pytest.raises(ValueError, match="resample them first"):
        a.concat(Tracks.empty(1, 5))


def test_scaling_is_by_picture_size():
    tracks = Tracks.of(torch.tensor([[[48.0, 16.0]]])).scaled((64, 96), (480, 832))
    assert tracks.xy[0, 0, 0].tolist() == [416, 120]


def test_nothing_is_a_track_set_too():
    empty = Tracks.empty(2, 9).check(frames=9, batch=2)
    assert empty.xy.shape == (2, 9, 0, 2) and empty.resample(4).xy.shape == (2, 4, 0, 2)
    assert Tracks.of(np.zeros((5, 0, 2))).xy.shape == (1, 5, 0, 2)


@pytest.mark.parametrize("broken, said", [
    (lambda: Tracks.of(torch.zeros(5, 2)), r"came as \[5, 2\]: give \[T, N, 2\]"),
    (lambda: Tracks.of(torch.zeros(5, 3, 3)), r"came as \[5, 3, 3\]"),
    (lambda: Tracks.of(torch.full((5, 3, 2), np.nan), torch.ones(5, 3)), "track 0 of clip 0 is visible in frame 0"),
    (lambda: Tracks.of(torch.zeros(5, 3, 2), torch.ones(5, 4)), r"visibility came as \[1, 5, 4\]"),
    (lambda: Tracks.of(torch.zeros(1, 5000, 2)), "5000 tracks are more than the 4096"),
    (lambda: Tracks.grid(G, 16, 5).check(frames=9), r"5 pixel frames came where 9 were wanted: resample\(9\)"),
    (lambda: Tracks.grid(G, 16, 5).check(batch=2), "tracks for 1 clips came where 2"),
    (lambda: Tracks.drag(torch.zeros(0, 2), 5), r"a path came as \[0, 2\]"),
])
def test_what_cannot_be_used_is_refused_in_one_sentence(broken, said):
    with pytest.raises(ValueError, match=said):
        broken()


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_file_brings_back_what_was_saved(tmp_path, suffix):
    tracks = Tracks.grid(G, 20, frames=4).hide(slice(1, 2))
    tracks.save(tmp_path / f"t{suffix}")
    again = Tracks.load(tmp_path / f"t{suffix}")
    torch.testing.assert_close(again.xy, tracks.xy, atol=1e-3, rtol=0)
    assert torch.equal(again.visible, tracks.visible) and torch.equal(again.ids, tracks.ids)


def test_hidden_points_nowhere_survive_json(tmp_path):
    Tracks.of(torch.tensor([[[np.nan, np.nan], [1.0, 2.0]]])).save(tmp_path / "t.json")
    assert "NaN" not in (tmp_path / "t.json").read_text()
    again = Tracks.load(tmp_path / "t.json")
    assert again.visible[0, 0].tolist() == [False, True] and again.xy[0, 0, 1].tolist() == [1, 2]


def ati(tmp_path, name="t.pth"):
    """A file as ATI's editor writes it: [N, T, 1, 3], eight times the pixels, in an npz, in bytes, in torch.save."""
    points = np.zeros((2, 4, 1, 3), np.float32)
    points[0, :, 0] = [[80, 160, 8], [88, 160, 8], [96, 160, 8], [104, 160, 0]]
    points[1, :, 0] = [8, 16, 8]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array=points)
    torch.save(buffer.getvalue(), tmp_path / name)
    return tmp_path / name


def test_atis_editor_is_understood(tmp_path):
    tracks = Tracks.load(ati(tmp_path))
    assert tracks.xy[0, :, 0].tolist() == [[10, 20], [11, 20], [12, 20], [13, 20]]
    assert tracks.visible[0].tolist() == [[1, 1], [1, 1], [1, 1], [0, 1]]
    assert tracks.xy[0, 0, 1].tolist() == [1, 2]


class Trap:
    def __reduce__(self):
        import os
        return os.mkdir, ("sprung",)


def test_a_file_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), "trap.pth")
    np.savez("trap.npz", tracks=np.array([Trap()], dtype=object))
    for name in ("trap.pth", "trap.npz"):
        with pytest.raises(ValueError, match="could not be read as tracks"):
            Tracks.load(name)
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_track_file_says_so(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"points": []}))
    (tmp_path / "b.npz").write_bytes(b"PK not really")
    (tmp_path / "c.txt").write_text("")
    for name in ("a.json", "b.npz"):
        with pytest.raises(ValueError, match="could not be read as tracks"):
            Tracks.load(tmp_path / name)
    with pytest.raises(ValueError, match="use .npz, .json"):
        Tracks.load(tmp_path / "c.txt")
    with pytest.raises(FileNotFoundError):
        Tracks.load(tmp_path / "d.npz")
