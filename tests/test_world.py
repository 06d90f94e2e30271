"""The procedural world: exact tracks, the same clips from the same seed, and words for what no track can say."""
import pytest
import torch
import torch.nn.functional as F

from msk.config import Geometry
from msk.text import unknown_words
from msk.world import EVENTS, HELD_OUT, KINDS, World, grid_points

GEOMETRY = Geometry(64, 64)


def scene(level="calm", seed=3, count=4, frames=21, event=0):
    drawn, _ = World(GEOMETRY, level).scene(count, frames, seed)
    drawn.event.fill_(event)                        # no weather: what is seen at a point is the point's own colour
    return drawn


def look(frames, xy):
    """Colours of frames [B, T, 3, H, W] at pixels xy [B, T, N, 2] -> [B, T, N, 3]."""
    grid = xy / torch.tensor([frames.shape[-1], frames.shape[-2]]) * 2 - 1
    seen = F.grid_sample(frames.flatten(0, 1), grid.flatten(0, 1)[:, None], align_corners=False)
    return seen[:, :, 0].transpose(1, 2).unflatten(0, frames.shape[:2])


@pytest.mark.parametrize("level", ["calm", "full"])
def test_a_tracked_point_keeps_its_colour(level):
    s = scene(level)
    frames = s.render()
    points = grid_points(GEOMETRY, 16, 16, 4)
    xy, visible, _ = s.track(points)
    colours = look(frames, xy)
    change = (colours - colours[:, :1]).abs().mean(-1)[visible].mean()
    stays = look(frames, points[:, None].expand(-1, frames.shape[1], -1, -1))
    naive = (stays - stays[:, :1]).abs().mean(-1)[visible].mean()
    assert change < 0.025 and change < 0.5 * naive       # what is left is resampling and the edges of things


def test_tracks_begin_where_they_were_asked_for():
    s, points = scene(), grid_points(GEOMETRY, 9, 9, 4)
    for at in (0, 7):
        xy, visible, _ = s.track(points, at)
        torch.testing.assert_close(xy[:, at], points, rtol=0, atol=2e-3)
        assert visible[:, at].all()


def test_tracking_forth_and_back_returns_to_the_same_pixel():
    s, points = scene("full", seed=11), grid_points(GEOMETRY, 9, 9, 4)
    xy, visible, layer = s.track(points)
    back, _, again = s.track(xy[:, 12], at=12)
    sure = visible[:, 12] & (layer == again)
    assert sure.float().mean() > 0.6
    assert (back[:, 0] - points).norm(dim=-1)[sure].max() < 0.02


def test_a_bent_thing_is_unbent_exactly():
    s = scene("full", seed=5)
    places = s._places()
    u = torch.linspace(-.9, .9, 7).expand(4, -1)
    layer = torch.full((4, 7), 2)
    x, y = s._to_screen(u, u.flip(1), layer, places)
    back_u, back_v = s._to_canonical(x, y, 2, places)
    torch.testing.assert_close(back_u, u[:, None].expand_as(back_u), rtol=0, atol=1e-4)
    torch.testing.assert_close(back_v, u.flip(1)[:, None].expand_as(back_v), rtol=0, atol=1e-4)


def test_a_nearer_thing_hides_what_is_behind():
    s = scene("calm", seed=1, count=2, frames=5)
    s.there.fill_(True)
    s.centre[:, :, 1] = s.centre[:, :, 0]               # the second thing right behind the first
    s.depth[:, 2] = s.depth[:, 1]
    points = grid_points(GEOMETRY, 24, 24, 2)
    _, _, both = s.track(points)
    s.there[:, 1] = False
    _, _, alone = s.track(points)
    assert (alone == 1).any() and ((alone == 1) & (both == 2)).any()    # the later slot is the nearer one
    assert not ((alone == 0) & (both == 1)).any()


def test_the_same_seed_gives_the_same_clip_and_another_another():
    world = World(GEOMETRY)
    a, b, c = world.sample(2, 5, seed=8), world.sample(2, 5, seed=8), world.sample(2, 5, seed=9)
    assert torch.equal(a.frames, b.frames) and a.captions == b.captions
    assert not torch.equal(a.frames, c.frames)
    assert 0 <= a.frames.min() and a.frames.max() <= 1


def test_captions_speak_words_the_text_encoder_knows():
    for level in ("calm", "full"):
        for caption in World(GEOMETRY, level).scene(64, 2, seed=HELD_OUT)[1]:
            assert not unknown_words(caption), caption


def test_every_event_changes_the_picture_and_moves_no_track():
    still = scene(frames=13)
    plain, points = still.render(), grid_points(GEOMETRY, 6, 6, 4)
    for i, name in enumerate(EVENTS):
        s = scene(frames=13, event=i)
        if name:
            assert (s.render() - plain).abs().mean() > 2e-3, name
        assert torch.equal(s.track(points)[0], still.track(points)[0])


def test_so_many_clips_have_an_event_and_specks_are_in_the_air_of_some():
    for share, world in ((.2, World(GEOMETRY)), (.65, World(GEOMETRY, "full")), (0., World(GEOMETRY, eventful=0.)),
                         (.9, World(GEOMETRY, "full", eventful=.9))):
        drawn, captions = world.scene(400, 2, 5)
        assert ((drawn.event > 0).float().mean() - share).abs() < .07
        said = torch.tensor([any(EVENTS[s] in caption for s in ("snow", "rain", "bubbles", "fireflies"))
                             for caption in captions])
        assert torch.equal(drawn.clear, ~said) and (said.any() or not share)


def test_every_kind_of_thing_is_drawn_and_is_not_convex():
    from msk.world import SPRITE, _sprites
    n = len(KINDS)
    p = torch.rand(n, 9, generator=torch.Generator().manual_seed(0))
    pictures = _sprites(torch.arange(n), torch.rand(n, 2, 3), torch.zeros(n, dtype=torch.long), torch.zeros(n, 2),
                        torch.zeros(n, 2), p)
    solid = pictures[:, 4] > .5                                                                     # [n, S, S]
    assert (solid.float().mean(dim=(1, 2)) > .05).all()
    line = torch.arange(SPRITE)
    first, last = solid.float().argmax(-1), SPRITE - 1 - solid.flip(-1).float().argmax(-1)
    hull = (line >= first[..., None]) & (line <= last[..., None]) & solid.any(-1, keepdim=True)
    gaps = (hull & ~solid).float().mean(dim=(1, 2))
    assert (gaps > 0).float().mean() > .6, dict(zip(KINDS, gaps.tolist()))


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match="'wild'.*'calm' or 'full'"):
        World(GEOMETRY, "wild")


def test_hurried_things_go_straight_at_their_own_speed_through_where_they_were():
    scene, _ = World(Geometry(64, 64)).scene(6, 9, seed=2)
    fast = scene.hurried(torch.Generator().manual_seed(0), fastest=.2)
    step = fast.centre.diff(dim=1)
    assert torch.allclose(step, step[:, :1].expand_as(step), atol=1e-6)
    assert torch.allclose(fast.centre[:, 4], scene.centre[:, 4])
    speed = step[:, 0].norm(dim=-1)
    assert speed.max() <= .2 and speed.max() > .1 and len(speed.flatten().unique()) == speed.numel()
