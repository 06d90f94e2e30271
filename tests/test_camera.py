"""Camera moves against closed forms: where a pinhole camera puts a point, and what hides behind what."""
import math

import pytest
import torch

from msk import camera
from msk.config import Geometry

G = Geometry(64, 96)
CENTRE = torch.tensor([48.0, 32.0])
POINTS = torch.tensor([[48.0, 32.0], [58.0, 32.0], [48.0, 12.0], [20.0, 50.0]])


def test_a_pan_moves_every_point_by_the_same_amount_the_other_way():
    tracks = camera.pan(G, 5, right=8, down=-4, grid=POINTS)
    torch.testing.assert_close(tracks.xy[0, -1] - POINTS, torch.tensor([-8.0, 4.0]).expand(4, 2))
    torch.testing.assert_close(tracks.xy[0, 2] - POINTS, torch.tensor([-4.0, 2.0]).expand(4, 2))


def test_a_zoom_grows_at_an_even_rate_about_the_centre():
    tracks = camera.zoom(G, 3, scale=4, grid=POINTS)
    for frame, scale in enumerate((1, 2, 4)):
        torch.testing.assert_close(tracks.xy[0, frame], CENTRE + scale * (POINTS - CENTRE))


def test_a_quarter_roll_takes_right_to_below():
    tracks = camera.roll(G, 9, degrees=90, grid=POINTS)
    torch.testing.assert_close(tracks.xy[0, -1, 1], torch.tensor([48.0, 42.0]), atol=1e-4, rtol=0)
    distances = (tracks.xy - CENTRE).norm(dim=-1)
    torch.testing.assert_close(distances, distances[:, :1].expand_as(distances))


def test_before_a_wall_a_dolly_is_a_zoom():
    tracks = camera.dolly(G, 5, forward=1.0, depth=4.0, grid=POINTS)
    for frame, s in enumerate(torch.linspace(0, 1, 5)):
        torch.testing.assert_close(tracks.xy[0, frame], CENTRE + (POINTS - CENTRE) * 4 / (4 - s))


def test_beside_a_truck_near_things_move_more():
    depth = torch.full((64, 96), 4.0)
    depth[:, 48:] = 1.0
    points = torch.tensor([[10.0, 30.0], [70.0, 30.0]])
    moved = camera.truck(G, 2, right=0.1, depth=depth, grid=points).xy[0, -1] - points
    torch.testing.assert_close(moved[:, 0], torch.tensor([-0.1 * 96 / 4, -0.1 * 96 / 1]))
    torch.testing.assert_close(moved[:, 1], torch.zeros(2))


def test_an_orbit_holds_its_pivot_and_turns_the_wall_about_it():
    tracks = camera.orbit(G, 3, degrees=20, depth=2.0, grid=POINTS)
    torch.testing.assert_close(tracks.xy[0, :, 0], CENTRE.expand(3, 2))
    a, offset, focal = math.radians(20), 10 / 96 * 2, 96                # the point 10 pixels to the right, on the wall
    expected = 48 + focal * offset * math.cos(a) / (2 - offset * math.sin(a))
    assert tracks.xy[0, -1, 1, 0].item() == pytest.approx(expected, abs=1e-3)


def test_the_first_frame_of_every_move_is_the_grid_itself():
    depth = 2 + torch.rand(64, 96, generator=torch.Generator().manual_seed(0))
    for tracks in (camera.pan(G, 4, right=9), camera.zoom(G, 4, 1.5), camera.roll(G, 4, 30),
                   camera.truck(G, 4, 1, depth=depth), camera.dolly(G, 4, 0.5, depth=depth),
                   camera.orbit(G, 4, 10, depth=depth)):
        assert tracks.xy.shape == (1, 4, 144, 2) and tracks.visible.dtype == torch.bool
        torch.testing.assert_close(tracks.xy[0, 0], camera.pan(G, 1).xy[0, 0])
        assert tracks.visible[0, 0].all() and len(tracks.ids.unique()) == 144


def test_what_leaves_the_picture_or_is_passed_is_hidden():
    assert not camera.pan(G, 2, right=60, grid=POINTS).visible[0, -1, 0]
    assert not camera.dolly(G, 2, forward=3.0, depth=2.0, grid=POINTS).visible[0, -1].any()


def test_a_near_thing_hides_the_wall_it_moves_over():
    depth = torch.full((64, 96), 4.0)
    depth[20:44, 40:56] = 1.0                                           # a near block in the middle
    wall = torch.tensor([[36.0, 32.0], [36.0, 5.0], [48.0, 32.0]])      # left of the block, above it, on it
    seen = camera.truck(G, 2, right=0.15, depth=depth, grid=wall).visible[0]
    assert seen.tolist() == [[True, True, True], [False, True, True]]   # the block goes 14 pixels left, the wall 4


def test_easing_starts_and_ends_at_rest():
    xy = camera.pan(G, 9, right=-8, grid=POINTS[:1], ease=True).xy[0, :, 0, 0]
    steps = xy.diff()
    assert steps[0] < steps[3] and steps[-1] < steps[3]
    assert xy[-1].item() == pytest.approx(56)


@pytest.mark.parametrize("call, words", [
    (lambda: camera.zoom(G, 4, scale=0), "above 0"),
    (lambda: camera.pan(G, 0), "at least 1"),
    (lambda: camera.dolly(G, 4, 1, depth=torch.ones(10, 10)), r"\[10, 10\].*64x96"),
    (lambda: camera.dolly(G, 4, 1, depth=torch.zeros(64, 96)), "not disparity"),
    (lambda: camera.path(G, torch.eye(4)[None]), r"\[1, 4, 4\].*\[T, 3, 4\]"),
    (lambda: camera.pan(G, 4, grid=torch.ones(4, 3)), r"\[4, 3\].*\[N, 2\]"),
])
def test_what_is_asked_wrongly_is_said_clearly(call, words):
    with pytest.raises(ValueError, match=words):
        call()
