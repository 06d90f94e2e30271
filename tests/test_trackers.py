"""The measuring tape itself is measured: against motions that are known exactly."""
import math

import pytest
import torch
import torch.nn.functional as F

from msk import trackers
from msk.config import Geometry
from msk.world import World

SIZE = 96


@pytest.fixture(scope="module")
def scene():
    """A world clip [3, 13, 3, 96, 96] and points in it that can be measured."""
    clip = World(Geometry(SIZE, SIZE), "full", eventful=0.).sample(3, 13, seed=1_000_007)
    return clip, trackers.trackable(clip.frames, clip.track, 16, torch.Generator().manual_seed(0))


def moved(frames, dx, dy):
    """Frames shown (dx, dy) pixels further to the right and down, mirrored at the edge."""
    centre = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(centre - dy, centre - dx, indexing="ij")
    grid = (torch.stack([x, y], dim=-1) * 2 / SIZE - 1).expand(frames.shape[0] * frames.shape[1], -1, -1, -1)
    return F.grid_sample(frames.flatten(0, 1), grid, mode="bicubic", padding_mode="reflection",
                         align_corners=False).view_as(frames).clamp(0, 1)


def as_a_model_would(frames, seed=0):
    """Blurred and noisy."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return (trackers.smooth(frames.flatten(0, 1), 1.0).view_as(frames) + 0.03 * noise).clamp(0, 1)


def epe(xy, tracks):
    seen = tracks.visible[:, 1:]
    return (xy - tracks.xy).norm(dim=-1)[:, 1:][seen].mean().item()


def test_its_own_error_is_a_fifth_of_a_pixel_or_less(scene):
    clip, tracks = scene
    assert epe(trackers.register(as_a_model_would(clip.frames), clip.frames, tracks.xy), tracks) < 0.25


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0, 4.0, 8.0, 12.0])
def test_a_clip_shifted_by_d_reads_d(scene, d):
    clip, tracks = scene
    shifted = as_a_model_would(moved(clip.frames, d * math.cos(0.6), d * math.sin(0.6)))
    found = trackers.register(shifted, clip.frames, tracks.xy)
    assert epe(found, tracks) == pytest.approx(d, rel=0.1)


def test_a_still_picture_reads_the_true_displacement(scene):
    clip, tracks = scene
    still = clip.frames[:, :1].expand_as(clip.frames)
    truth = epe(tracks.xy[:, :1].expand_as(tracks.xy), tracks)
    assert truth > 1.5
    assert epe(trackers.register(still, clip.frames, tracks.xy), tracks) == pytest.approx(truth, rel=0.1)


def test_a_video_of_nothing_reads_as_a_failure_and_not_as_good(scene):
    clip, tracks = scene
    grey = torch.full_like(clip.frames, 0.5)
    grey[:, 0] = clip.frames[:, 0]
    still = epe(tracks.xy[:, :1].expand_as(tracks.xy), tracks)
    assert epe(trackers.register(grey, clip.frames, tracks.xy), tracks) > 0.8 * still


def test_brightness_and_contrast_do_not_move_anything(scene):
    clip, tracks = scene
    assert epe(trackers.register(0.2 + 0.5 * clip.frames, clip.frames, tracks.xy), tracks) < 0.05


def test_measured_points_never_lie_on_plain_ground_or_hidden(scene):
    clip, tracks = scene
    assert tracks.visible.any(dim=1).sum(dim=1).min() >= 4                      # each clip has something to measure
    assert not (tracks.visible & ~clip.track(tracks.xy[:, 0]).visible).any()
    maps = torch.stack([trackers.texture(frames, 5) for frames in clip.frames.unbind(1)], dim=1)
    x, y = tracks.xy.long().clamp(0, SIZE - 1).unbind(-1)
    contrast = maps.flatten(2).gather(2, y * SIZE + x)
    assert (contrast[tracks.visible] >= trackers.TEXTURE).all()


def test_tracking_a_texture_that_pans_and_turns_gives_the_motion_it_was_drawn_with():
    g = torch.Generator().manual_seed(3)
    canvas = sum(a * F.interpolate(torch.rand(1, 3, n, n, generator=g), (2 * SIZE, 2 * SIZE), mode="bicubic")
                 for n, a in ((16, 1.0), (48, 0.6)))
    canvas = (canvas / canvas.max()).clamp(0, 1)
    axis = torch.linspace(30, SIZE - 30, 5)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, -1, 2)
    centre = torch.tensor([SIZE / 2, SIZE / 2])
    frames, truth = [], []
    for t in range(13):
        angle, pan = 0.03 * t, torch.tensor([0.8 * t, -0.5 * t])
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        truth.append((points[0] - centre) @ turn.T + centre + pan)
        pixel = torch.arange(SIZE) + 0.5
        grid = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), dim=-1)
        source = (grid - centre - pan) @ turn                                   # back to frame 0, about the centre
        frames.append(F.grid_sample(canvas, source[None] / SIZE, mode="bicubic", align_corners=False))
    found = trackers.track(torch.stack(frames, dim=1), points, method="flow")
    error = (found.xy[0] - torch.stack(truth)).norm(dim=-1)
    assert error.mean() < 0.15 and error.max() < 0.6
    assert found.visible.float().mean() > 0.95


def test_wide_videos_are_followed_at_a_smaller_width(scene):
    clip, tracks = scene
    frames, queries = clip.frames[:1, :5], tracks.xy[:1, 0]
    small = trackers.track(frames, queries, method="flow")
    wide = trackers.track(frames.repeat_interleave(5, -1).repeat_interleave(5, -2), queries * 5, method="flow")
    seen = tracks.visible[:1, :5]
    assert (wide.xy / 5 - small.xy).norm(dim=-1)[seen].median() < 0.3


def test_bad_input_is_one_sentence():
    frames = torch.rand(1, 2, 3, 32, 32)
    with pytest.raises(ValueError, match="use 'auto', 'cotracker', 'flow' or 'dis'"):
        trackers.track(frames, torch.zeros(1, 1, 2), method="raft")
    with pytest.raises(ValueError, match="wanted \\[B, T, 3, H, W\\]"):
        trackers.track(frames[0], torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="NaN"):
        trackers.track(frames, torch.full((1, 1, 2), math.nan))
    with pytest.raises(ValueError, match="same batch, frames and size"):
        trackers.register(frames, frames[:, :1], torch.zeros(1, 2, 1, 2))


def test_cotracker_is_never_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not trackers.cotracker_cached()
    with pytest.raises(FileNotFoundError, match="fetch it once"):
        trackers.track(torch.rand(1, 2, 3, 32, 32), torch.zeros(1, 1, 2), method="cotracker")
