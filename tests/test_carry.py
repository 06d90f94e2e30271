"""What tracks carry of the given picture is where they are, whole, and in front of what stays."""
import heapq
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from msk.carry import EDGE, HIDDEN, NOBODYS, SEEN, carry, inpaint, owners, rasterize, warp
from msk.config import Geometry, TrackConfig
from msk.fill import dilate, pull_push
from msk.motion import TrackHead, draw_ids
from msk.similarity import backward_linear, enclosed, median
from msk.tracks import Tracks

G = Geometry(32, 48)                # 4 x 6 cells
REACH = 24.


def at(*points, frames=1):
    return Tracks.of(torch.tensor(points, dtype=torch.float32).expand(frames, -1, -1).clone())


def some(frames, count=9, batch=2, seed=0):
    """Points that wander over the edge, some hidden."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(batch, frames, count, 2, generator=g) * torch.tensor([60.0, 44.0]) - 6
    return Tracks(xy, torch.rand(batch, frames, count, generator=g) < 0.7, draw_ids(batch, count, 500, g))


def noise_picture(batch=1, seed=1):
    return torch.rand(batch, 3, G.height, G.width, generator=torch.Generator().manual_seed(seed))


def inside(y, x):
    return 0 <= y < G.height and 0 <= x < G.width


# -- whose is a pixel? ---------------------------------------------------------------------------------------------------

def plain_costs(picture, began):
    """Dijkstra from each track by itself: [N, H, W]."""
    colours, costs = picture.permute(1, 2, 0).tolist(), []
    for x, y in began.tolist():
        row, column = min(max(int(y), 0), G.height - 1), min(max(int(x), 0), G.width - 1)
        cheapest, queue = {}, [(max(0., math.hypot(x - column - .5, y - row - .5) - .71), row, column)]
        while queue:
            cost, y, x = heapq.heappop(queue)
            if (y, x) not in cheapest:
                cheapest[y, x] = cost
                for dy, dx in itertools.product((-1, 0, 1), repeat=2):
                    if inside(y + dy, x + dx):
                        unlike = sum(abs(p - q) for p, q in zip(colours[y + dy][x + dx], colours[y][x]))
                        heapq.heappush(queue, (cost + (dy * dy + dx * dx) ** .5 + EDGE * unlike, y + dy, x + dx))
        costs.append([[cheapest.get((y, x), float("inf")) for x in range(G.width)] for y in range(G.height)])
    return torch.tensor(costs)


def test_a_pixel_goes_with_the_track_that_the_cheapest_way_leads_to(close):
    picture = F.avg_pool2d(noise_picture(), 5, 1, 2)[0]
    began = torch.tensor([[5.5, 6.5], [40.2, 3.9], [20., 25.], [44., 30.], [60., 10.], [7., 7.]])
    whose, cost = owners(picture, began, torch.tensor([True] * 5 + [False]), 200.)
    costs = plain_costs(picture, began[:5]).flatten(1)
    plain, best = costs.min(dim=0)
    close(cost, plain, atol=1.)                                                     # it counts in sixteenths
    sure = costs.sort(dim=0).values[1] - plain > 2
    assert torch.equal(whose[sure], best[sure]) and sure.float().mean() > .8


def test_borders_between_tracks_lie_where_the_colours_change():
    picture = torch.zeros(3, 32, 48)
    picture[:, :, 9:] = .8
    whose, _ = owners(picture, torch.tensor([[2., 16.], [40., 16.]]), torch.ones(2, dtype=torch.bool), 48.)
    assert torch.equal(whose.view(32, 48), (torch.arange(48) >= 9).long().expand(32, 48))


def test_a_way_has_so_many_steps_and_beyond_a_pixel_is_nobodys():
    whose, _ = owners(torch.zeros(3, 32, 48), torch.tensor([[24., 16.]]), torch.ones(1, dtype=torch.bool), 5.)
    rows, columns = torch.arange(32)[:, None], torch.arange(48)
    assert torch.equal(whose.view(32, 48) == 0, ((rows - 16).abs() <= 5) & ((columns - 24).abs() <= 5))
    assert (owners(torch.zeros(3, 32, 48), torch.zeros(0, 2), torch.ones(0, dtype=torch.bool), 5.)[0] == 0).all()   # N is 0


# -- what comes to a place -----------------------------------------------------------------------------------------------

def test_of_those_that_come_to_a_place_the_first_kind_is_seen_and_of_these_the_nearest():
    g = torch.Generator().manual_seed(0)
    h, w, t = 6, 9, 3
    to = torch.rand(2, t, h * w, generator=g) * torch.tensor([w + 6., h + 6.]).view(2, 1, 1) - 3
    kind = torch.randint(4, (t, h * w), generator=g).int()
    cost, foot = torch.rand(h * w, generator=g), torch.rand(t, h * w, generator=g) * .6 + .5
    source = rasterize(to[:, None], foot[None], kind[None], cost[None], (h, w))[0]
    plain = torch.empty(t, h, w, 3)
    for f in range(t):
        for place in range(h * w):
            y, x = place // w + .5, place % w + .5
            covers = ((to[0, f] - x).abs() <= foot[f]) & ((to[1, f] - y).abs() <= foot[f])
            covers &= ((to[0, f] - x).abs() < 1) & ((to[1, f] - y).abs() < 1)
            come = sorted((kind[f, k].item(), cost[k].item(), k) for k in covers.nonzero().flatten().tolist())
            plain[f, place // w, place % w] = torch.tensor(come[0] if come else (3, 9, h * w))
    for axis in (0, 1):
        was = plain.clone()
        for f, y, x in itertools.product(range(t), range(h), range(w)):
            a, b = ((y - 1 + axis, x - axis), (y + 1 - axis, x + axis))
            if min(a) >= 0 and b[0] < h and b[1] < w and max(was[f, *a, 0], was[f, *b, 0]) < was[f, y, x, 0]:
                plain[f, y, x] = min(was[f, *a], was[f, *b], key=lambda z: (z[0], z[1]))
    assert torch.equal(source.view(t, h, w), plain[..., 2].long())
    assert SEEN < NOBODYS < HIDDEN


def test_the_middle_counts_each_as_often_as_it_weighs():
    x, weight = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)), torch.arange(11.)
    for row, middle in zip(x, median(x, weight)):
        assert middle == row.repeat_interleave(weight.long()).median()


def test_what_is_widened_reaches_as_many_rows_and_columns_on():
    mask = torch.rand(2, 9, 14, generator=torch.Generator().manual_seed(0)) < .05
    assert torch.equal(dilate(mask, 2), F.max_pool2d(mask.float(), 5, 1, 2) > 0) and mask.float().mean() < .1


def test_a_hole_is_filled_from_its_rim_and_what_is_known_stays(close):
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    known = torch.ones(2, 1, 9, 14, dtype=torch.bool)
    close(pull_push(x, known), x)
    known[0, :, 2:8, 3:9] = False
    filled = pull_push(x, known)
    assert torch.equal(filled.where(known, x), x) and torch.equal(filled[1], x[1])
    assert filled.min() >= x.min() and filled.max() <= x.max()
    even = torch.full_like(x, .3).where(known, torch.tensor(9.))
    close(pull_push(even, known), torch.full_like(x, .3))


# -- the moved picture ---------------------------------------------------------------------------------------------------

def landed(come, pixels):
    """Of (rank, cost, pixel, ...) that have come to places, [place] -> list, the least; and what closes cracks."""
    shown = {place: min(candidates) for place, candidates in come.items()}
    for across in ((1, 0), (0, 1)):
        was = dict(shown)
        for y, x in pixels:
            a, b = (was.get((y + k * across[0], x + k * across[1])) for k in (-1, 1))
            if a and b and max(a[0], b[0]) < was.get((y, x), (3,))[0]:
                shown[y, x] = min(a, b)
    return shown


def plain_warp(tracks, picture, reach):
    """Pixel by pixel, for tracks that go whole pixels and turn nothing; NaN: to be filled from around."""
    b, t, n, _ = tracks.xy.shape
    frames, near = torch.full((b, t, 3, G.height, G.width), float("nan")), torch.zeros(b, t, G.height, G.width)
    pixels = [(y, x) for y in range(G.height) for x in range(G.width)]
    for i in range(b):
        began, knows = tracks.xy[i, 0], tracks.visible[i, 0]

        def owned(which, shown=picture[i], began=began):
            whose, cost = owners(shown, began, which, reach)
            far = [((x + .5 - began[k][0]) ** 2 + (y + .5 - began[k][1]) ** 2).sqrt().item() / reach if k < n else 1.
                   for (y, x), k in zip(pixels, whose.tolist())]
            return [k if away < 1 else n for k, away in zip(whose.tolist(), far)], cost.tolist(), far

        whose, cost, _ = owned(knows)
        ways, shows, lifted = [], [], torch.zeros(n + 2, dtype=torch.bool)
        for f in range(t):
            now = [*((tracks.xy[i, f] - began).round().int().tolist()), [0, 0]]
            ground = [sorted(now[k][axis] for k in whose)[(len(whose) - 1) // 2] for axis in (0, 1)]
            apart = [sum((p - q) ** 2 for p, q in zip(way, ground)) ** .5 for way in now]
            level = max(3, 3 * sorted(apart[k] for k in whose)[(len(whose) - 1) // 2])
            left = ((tracks.xy[i, f] < 0) | (tracks.xy[i, f] >= torch.tensor([48, 32]))).any(dim=-1)
            lifted[:n] |= torch.tensor([away > level for away in apart[:n]]) & (tracks.visible[i, f] | left) & knows
            shows.append(tracks.visible[i, f] | left)
            ways.append([*now, ground])
        of_ground, of_front = (owned(knows & which) for which in (~lifted[:n], lifted[:n]))
        moving = torch.tensor([bool(lifted[k]) and (c <= reach or other == n)
                               for k, c, other in zip(whose, cost, of_ground[0])])
        plate = inpaint(picture[i:i + 1], moving.view(1, 1, G.height, G.width))[0][0]
        below = [n + 1 if k == n and goes else k for k, goes in zip(of_ground[0], moving)]
        for f in range(t):
            come, above = {}, {}
            for m, (y, x) in enumerate(pixels):
                k = below[m]
                kind = NOBODYS if k >= n or not knows[k] else SEEN if tracks.visible[i, f, k] else HIDDEN
                place = y + ways[f][k][1], x + ways[f][k][0]
                if inside(*place):
                    come.setdefault(place, []).append((kind, min(1, of_ground[1][m] / (4 * reach)), m))
                k = of_front[0][m]
                if moving[m] and k < n and shows[f][k]:
                    place = y + ways[f][k][1], x + ways[f][k][0]
                    if inside(*place):
                        above.setdefault(place, []).append((SEEN, min(1, of_front[1][m] / (4 * reach)), m))
            shown = landed(come, pixels)
            empty = {place for place in pixels if place not in shown}
            deep = [(y, x) for y, x in empty if all((y + dy, x + dx) in empty or not inside(y + dy, x + dx)
                                                    for dy in (-1, 0, 1) for dx in (-1, 0, 1))]
            for place, (kind, _, m) in shown.items():
                trust = {SEEN: 1, NOBODYS: 0, HIDDEN: .25}[kind] * (.25 if moving[m] else 1)
                near[i, f][place] = trust * (1 - of_ground[2][m])
                y, x = (z - way for z, way in zip(place, reversed(ways[f][below[m]])))
                if inside(y, x) and not any(abs(place[0] - r) <= 3 and abs(place[1] - c) <= 3 for r, c in deep):
                    frames[i, f, :, place[0], place[1]] = plate[:, y, x]
            for place, (_, _, m) in landed(above, pixels).items():
                y, x = (z - way for z, way in zip(place, reversed(ways[f][of_front[0][m]])))
                here = moving.view(G.height, G.width)[min(max(y, 0), G.height - 1), min(max(x, 0), G.width - 1)]
                if here and inside(y, x):
                    near[i, f][place], frames[i, f, :, place[0], place[1]] = 1 - of_front[2][m], picture[i, :, y, x]
                elif here:
                    frames[i, f, :, place[0], place[1]] = math.nan
    return frames, near


def test_each_pixel_goes_with_the_track_that_owns_it(close):
    tracks, picture = some(frames=3, count=12, seed=1), F.avg_pool2d(noise_picture(2), 3, 1, 1)
    start = tracks.xy[:, :1]
    tracks = Tracks(start + (tracks.xy - start).round(), tracks.visible, tracks.ids)
    (got, near), (plain, plainly_near) = warp(tracks, picture, REACH), plain_warp(tracks, picture, REACH)
    gone = plain.isnan()
    close(torch.where(gone, 0., got), torch.where(gone, 0., plain), atol=1e-4)
    gone = gone[:, :, 0]
    close(torch.where(gone, 0., near), torch.where(gone, 0., plainly_near), atol=1e-4)
    assert 0.02 < gone.float().mean() < 0.5 and got.isfinite().all()


def disc(x, y, radius=6.):
    """What is in a disc, of a picture of 32 x 48: 1 in it, 0 outside, in between at its edge. [1, 32, 48]"""
    rows, columns = torch.meshgrid(torch.arange(32) + .5, torch.arange(48) + .5, indexing="ij")
    return (radius + .5 - (rows - y).square().add((columns - x).square()).sqrt()).clamp(0, 1)[None]


def waves():
    rows, columns = torch.meshgrid(torch.arange(32.), torch.arange(48.), indexing="ij")
    return torch.stack([.3 + .1 * (rows / 5).sin(), .4 + .1 * (columns / 6).cos(), .3 + .1 * ((rows + columns) / 7).sin()])


def with_disc(x, y, ground, colour=(.9, .7, .1)):
    return ground + disc(x, y) * (torch.tensor(colour)[:, None, None] - ground)


def led(*steps, rest=8., spot=(14., 16.)):
    """Points on a disc that goes so many pixels to the right in each frame, and others that hold the rest of the picture."""
    on = torch.tensor(spot) + torch.tensor([[0., 0.], [-3., 0.], [3., 0.], [0., -3.], [0., 3.]])
    ground = Tracks.grid(G, rest, frames=1).xy[0, 0]
    ground = ground[(ground - torch.tensor(spot)).norm(dim=-1) > 8]
    tracks = Tracks.of(torch.cat([on, ground]).expand(len(steps), -1, -1).clone())
    tracks.xy[0, :, :5, 0] += torch.tensor(steps)[:, None]
    covered = (tracks.xy[0, :, None, 5:] - tracks.xy[0, :, :1, None]).norm(dim=-1)[:, 0] < 8
    tracks.visible[0, :, 5:] &= ~covered
    return tracks


def test_a_thing_keeps_its_outline_and_the_ground_about_it_stays():
    """Beside the disc as it is drawn anew where it was led to."""
    ground = waves()
    picture, truth = with_disc(14, 16, ground), with_disc(28, 16, ground)
    frames, _ = warp(led(0., 14.), picture[None], REACH)
    off = (frames[0, 1] - truth).abs().amax(dim=0)
    was = dilate(disc(14, 16) > 0, 3)[0]
    assert off[~was].max() < .2, "neither steps at its edge nor ground that went along"
    assert off[was & ~(disc(28, 16) > 0)[0]].max() < .2 < (picture - truth).abs().amax(dim=0)[was].max(), "uncovered ground"


def test_a_thing_that_nobody_touches_stays_whole_beside_one_that_is_led_past_it():
    ground = with_disc(28, 25, waves(), colour=(.1, .2, .9))
    picture, truth = with_disc(14, 16, ground), with_disc(28, 16, ground)
    frames, _ = warp(led(0., 14.), picture[None], REACH)
    other = (disc(28, 25) > .5)[0] & ~(disc(28, 16) > 0)[0]
    assert other.sum() > 60 and (frames[0, 1] - truth).abs().amax(dim=0)[other].max() < .15


def test_what_moves_covers_what_stays():
    """Also where a point that holds the rest is nearer than one of the thing."""
    ground = waves()
    tracks = led(0., 14.)
    tracks.visible[:] = True
    frames, _ = warp(tracks, with_disc(14, 16, ground)[None], REACH)
    assert (frames[0, 1] - with_disc(28, 16, ground)).abs().amax(dim=0)[disc(28, 16)[0] == 1].max() < .1


def test_what_goes_with_a_hidden_track_is_seen_only_where_nothing_else_is():
    picture, tracks = noise_picture(), led(0., 14.)
    tracks.visible[0, 1] = torch.arange(tracks.ids.shape[1]) >= 5
    frames, near = warp(tracks, picture, REACH)
    assert torch.equal(frames[0, 1, :, 12:20, 24:32], frames[0, 0, :, 12:20, 24:32])
    shown = near[0, 1, 12:20, 8:20]
    assert 0 < shown.max() <= .25 + 1e-6                                            # its hole: filled, or what it was


@pytest.mark.parametrize("size", [1.3, 2., 2.9])
def test_what_grows_shows_no_cracks(size):
    ground = waves()
    tracks = led(0., 0.)
    tracks.visible[0, 1, 5:] = (tracks.xy[0, 1, 5:] - tracks.xy[0, 0, 0]).norm(dim=-1) > 7 * size
    tracks.xy[0, 1, :5] = tracks.xy[0, 0, :1] + size * (tracks.xy[0, 0, :5] - tracks.xy[0, 0, :1])
    frames, _ = warp(tracks, with_disc(14, 16, ground)[None], REACH)
    inner = disc(14, 16, 6 * size - 3)[0] == 1
    assert (frames[0, 1] - torch.tensor([.9, .7, .1])[:, None, None]).abs().amax(dim=0)[inner].max() < .02


def test_where_a_thing_was_there_is_ground_once_it_has_left(close):
    """A bright square on a ground that darkens to the right; its points leave, those about it stay."""
    ground = (torch.arange(48) / 96).expand(1, 3, 32, 48)
    picture = ground.clone()
    picture[..., 12:20, 4:12] = 1
    thing = torch.tensor([[6., 14.], [10., 14.], [6., 18.], [10., 18.]])
    rest = torch.tensor([[8., 4.], [8., 28.], [20., 16.]])
    tracks = Tracks.of(torch.cat([thing, rest]).expand(2, -1, -1).clone())
    tracks.xy[0, 1, :4, 0] += 28
    frames, near = warp(tracks, picture, REACH)
    assert (frames[0, 1, :, 12:20, 4:12] - ground[0, :, 12:20, 4:12]).abs().max() < .1
    assert 0 < near[0, 1, 14, 8] < near[0, 0, 14, 8] / 2
    close(frames[0, 1, :, 12:20, 32:40], picture[0, :, 12:20, 4:12])
    left = tracks.hide(slice(1, 2))
    left.visible[0, :, 4:] = True
    assert (warp(left, picture, REACH)[0][0, 1, :, 12:20, 4:12] - ground[0, :, 12:20, 4:12]).abs().max() < .1, "seen or not"


def test_a_picture_that_went_away_as_a_whole_is_not_black():
    tracks = at([16.0, 16.0], frames=2)
    tracks.xy[:, 1] += 200
    white = torch.ones(1, 3, G.height, G.width)
    frames, near = warp(tracks, white, 96.)
    assert (frames == 1).all() and near[:, 0].any() and not near[:, 1].any()
    crowd = Tracks.grid(G, 8, frames=2)
    crowd.xy[:, 1] += 60
    frames, near = warp(crowd, white, REACH)
    assert (frames == 1).all() and not near[:, 1].any()


def test_a_picture_whose_points_all_move_alike_moves_with_them(close):
    picture, tracks = noise_picture(), Tracks.grid(G, 8, frames=2)
    tracks.xy[:, 1] += torch.tensor([16.0, -8.0])
    frames, near = warp(tracks, picture, REACH)
    close(frames[:, 0], picture)
    close(frames[:, 1, :, :20, 20:], picture[..., 8:28, 4:32], atol=1e-4)           # but for the rim of what came into sight
    assert (near[:, 0] > 0.5).all() and (near[:, 1, :20, 20:] > .5).all() and (near[:, 1, :, :12] < .25).all()


@pytest.mark.parametrize("degrees, size", [(30., 1.), (0., .8), (-20., 1.25)])
def test_a_thing_is_led_over_ground_that_itself_turns_and_grows(degrees, size):
    """What is the ground is asked of most of the picture, not of what stays where it was."""
    ground = torch.stack([torch.full((32, 48), .3), torch.full((32, 48), .5), torch.full((32, 48), .4)])
    tracks = led(0., 14., rest=6.)
    tracks.xy[0, 1, 5:] = turning(-degrees, 1 / size, tracks.xy[0, 0, 5:])
    frames, _ = warp(tracks, with_disc(14, 16, ground)[None], REACH)
    off = (frames[0, 1] - with_disc(28, 16, ground)).abs().amax(dim=0)
    assert off[(disc(28, 16) == 1)[0]].max() < .05, "in front of the ground"
    assert off[~(disc(28, 16) > 0)[0]].max() < .05, "and what it uncovers is filled from ground"


def test_what_is_not_to_be_found_anywhere_says_nothing():
    """Places and origins that are infinite, or as good as that, or just outside."""
    picture = noise_picture()
    for far in (float("inf"), 1e25, 3e38, -1e9):
        tracks = at(*[[8. + 6 * (k % 3), 8. + 6 * (k // 3)] for k in range(9)], frames=2)
        lost = Tracks(tracks.xy, tracks.visible, tracks.ids, tracks.origins().clone())
        lost.origin[0, 4] = far
        tracks.xy[0, 1, 4] = far
        for given in (tracks, lost):
            frames, near = warp(given, picture, REACH)
            assert frames.isfinite().all() and near.isfinite().all() and near.min() >= 0 and near.max() <= 1
    outside = at([-.5, 16.], frames=2)
    outside.xy[0, 1, 0, 0] += 12
    frames, near = warp(outside, picture, REACH)
    assert torch.equal(frames[0, 1, :, 16, 13], picture[0, :, 16, 1]) and near[0, 1, 16, 13] > .9


def shaking(frames, batch=2, seed=0):
    """Points that stay where they are, but for a pixel: nothing moves otherwise than the ground. Some are hidden."""
    tracks, g = some(1, batch=batch, seed=seed), torch.Generator().manual_seed(seed)
    xy = tracks.xy + torch.rand(batch, frames, tracks.ids.shape[1], 2, generator=g) - .5
    seen = torch.rand(xy.shape[:3], generator=g) < .7
    return Tracks(xy, seen, tracks.ids, tracks.xy[:, 0])


def test_many_frames_are_made_as_a_few_are(close):
    told, picture = shaking(100), noise_picture(2)
    whole = warp(told, picture, REACH)
    for a, b in zip(whole, zip(*(warp(told.frames(k, k + 10), picture, REACH) for k in range(0, 100, 10)))):
        close(a, torch.cat(b, dim=1))


def test_what_moves_at_any_time_is_lifted_off_from_the_first_frame_on_and_laid_back_where_it_was(close):
    """Whatever is said of what is beneath."""
    g, ground = torch.Generator().manual_seed(0), waves()
    picture = with_disc(14, 16, ground)
    asked = []

    def split(pictures, moving):
        asked.append(moving)
        hides = .1 + .9 * torch.rand(moving.shape, generator=g)
        return torch.rand(pictures.shape, generator=g), hides * dilate(moving, 2)

    frames, _ = warp(led(0., 0., 14.), picture[None], REACH, split)
    (moving,) = asked
    assert (moving[0, 0] & (disc(14, 16)[0] == 1)).sum() > 80 and not (moving[0, 0] & (disc(14, 16)[0] == 0)).any()
    lies = dilate(moving, 2)[0]
    for frame in frames[0, :2]:
        close(frame.where(lies, 0.), picture.where(lies, 0.), atol=1e-5)
    assert (frames[0, 2] - frames[0, 0]).abs().amax() > .3


def test_what_is_known_to_be_beneath_is_seen_once_it_is_uncovered_and_a_shadow_goes_along(close):
    """With the truth about two layers, a disc and its shadow are drawn anew where it was led to."""
    ground = waves()
    hides = lambda x: torch.maximum(disc(x, 16), .4 * disc(x + 2, 19))
    laid = lambda x: ground * (1 - hides(x)) + disc(x, 16) * torch.tensor([.9, .7, .1])[:, None, None]
    frames, near = warp(led(0., 14.), laid(14)[None], REACH, lambda pictures, moving: (ground[None], hides(14)[None]))
    close(frames[0, 1], laid(28), atol=2e-3)
    assert 0 < near[0, 1, 16, 14] <= .25 < near[0, 1, 16, 28]


def test_what_is_left_of_a_thing_at_the_border_is_whole(close):
    """Its points beyond are hidden, as they are off the picture; nothing covers what they own on this side."""
    ground = waves()
    tracks = led(0., 34.)
    tracks.visible[0, 1, :5] = tracks.xy[0, 1, :5, 0] < 48
    assert tracks.visible[0, 1, :5].any() and not tracks.visible[0, 1, :5].all()
    truth = with_disc(48, 16, ground)
    frames, _ = warp(tracks, with_disc(14, 16, ground)[None], REACH)
    assert (frames[0, 1] - truth).abs().amax(dim=0)[disc(48, 16)[0] == 1].max() < .1


def test_a_hub_goes_with_what_turns_about_it():
    """It does not move itself, yet is lifted with the rest of its thing."""
    spots = torch.tensor([24., 16.]) + 6 * torch.tensor([[0., 0.], [1., 0.], [-1., 0.], [0., 1.], [0., -1.]])
    ground = Tracks.grid(G, 6, frames=1).xy[0, 0]
    ground = ground[(ground - spots[0]).norm(dim=-1) > 10]
    tracks = Tracks.of(torch.cat([spots, ground]).expand(2, -1, -1).clone())
    tracks.xy[0, 1, :5] = turning(70., 1., spots)
    asked = []
    warp(tracks, waves()[None], REACH, lambda pictures, moving: (asked.append(moving), inpaint(pictures, moving))[1])
    assert asked[0][0, 0, 14:18, 22:26].all() and not asked[0][0, 0, :4].any()
    still = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 30
    mask = (still - 15).norm(dim=-1) < 9
    plain = torch.zeros(40, dtype=torch.bool)
    for k, at in enumerate(still):
        nearest = []
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            there = [((p - at).norm().item(), m) for p, m in zip(still, mask.tolist()) if sign * (p[axis] - at[axis]) > 0]
            nearest.append(min(there, default=(99., False)))
        plain[k] = all(m and away < REACH for away, m in nearest)
    assert torch.equal(enclosed(still.T, mask[None], REACH)[0], plain) and 0 < plain.sum() < 20


def test_half_a_pixel_is_half_a_pixel(close):
    ramp = (torch.arange(48) / 48).expand(1, 3, 32, 48)
    tracks = Tracks.grid(G, 8, frames=2)
    tracks.xy[:, 1, :, 0] += 0.5
    close(warp(tracks, ramp, REACH)[0][:, 1, :, :, 1:], ramp[..., 1:] - 0.5 / 48, atol=1e-5)


def turning(degrees, size, to):
    """Points in a picture of 32 x 48, where they are now (`to`), and where they were before all turned about the middle and
    grew."""
    angle = torch.tensor(degrees).deg2rad()
    turn = size * torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    middle = torch.tensor([24., 16.])
    return (to - middle) @ torch.linalg.inv(turn).T + middle


SPOTS = torch.cartesian_prod(torch.arange(2., 32, 4), torch.arange(2., 48, 4)).flip(-1)


@pytest.mark.parametrize("degrees, size", [(0., 1.), (4., 1.1), (35., 1.45), (-80., 0.9), (180., 1.)])
def test_what_turns_and_grows_is_shown_as_it_was(degrees, size, close):
    """On a slope in x and y a pixel says where it came from."""
    y, x = torch.meshgrid(torch.arange(32) + .5, torch.arange(48) + .5, indexing="ij")
    pixel = torch.stack([x, y], dim=-1)
    came = turning(degrees, size, SPOTS)
    frames, _ = warp(Tracks.of(torch.stack([came, SPOTS])), (pixel / torch.tensor([48., 32.])).permute(2, 0, 1)[None], REACH)
    told = frames[0, 1].permute(1, 2, 0) * torch.tensor([48., 32.])
    want = turning(degrees, size, pixel)
    inner = ((want > 4) & (want < torch.tensor([44., 28.]))).all(dim=-1) & ((pixel > 4) & (pixel < 28)).all(dim=-1)
    close(told[inner], want[inner], atol=2e-3)
    assert inner.sum() > 100


def test_a_track_turns_as_those_about_it_do_and_not_as_those_beyond_an_edge(close):
    """The left half turns by a quarter, the right one stays; a few in each have gone astray."""
    at = SPOTS[SPOTS[:, 0] != 22]
    left = at[:, 0] < 24
    now = torch.where(left[:, None], turning(90., 1., at), at)
    astray = torch.rand(len(at), generator=torch.Generator().manual_seed(0)) < .1
    now = now + 9. * astray[:, None]
    a = backward_linear(now.T[:, None], at.T, torch.ones(1, len(at), dtype=torch.bool), 19.)[:, 0].T
    want = torch.where(left[:, None], torch.tensor([0., 1.]), torch.tensor([1., 0.]))
    right = ((a - want).norm(dim=-1) < .05) | astray
    assert right.float().mean() > .97


def test_what_is_heard_of_too_few_or_of_none_is_not_believed(close):
    at = torch.tensor([[10., 10.], [14., 10.], [10., 14.], [14., 14.]])
    now, none = turning(90., 1., at), torch.tensor([1., 0.])
    turn = lambda known=4, reach=19., n=4: backward_linear(now[:n].T[:, None], at[:n].T, torch.arange(n)[None] < known, reach
                                                       ).movedim(0, -1)
    close(turn(), torch.tensor([0., 1.]).expand(1, 4, 2))
    for few in (turn(known=3), turn(reach=2.), turn(n=3), turn(n=1)):
        close(few, none.expand_as(few))


def test_in_a_large_picture_of_many_tracks_distances_keep_their_digits(close):
    """Tracks a tenth of a pixel beside the middle of every 32nd pixel, each reaching 24 pixels."""
    y, x = torch.meshgrid(torch.arange(2.5, 480, 32), torch.arange(2.6, 832, 32), indexing="ij")
    tracks = Tracks.of(torch.stack([x, y], dim=-1).flatten(0, 1)[None, None])
    _, near = warp(tracks, torch.zeros(1, 3, 480, 832), REACH)
    close(near[0, 0, 2::32, 2::32], torch.full((15, 26), 1 - .1 / 24), atol=1e-5)


def test_a_track_that_does_not_know_its_origin_carries_nothing(close):
    picture, late = noise_picture(), at([20.0, 12.0], frames=4).hide(slice(0, 1))
    frames, near = warp(late, picture, REACH)
    assert torch.equal(frames[0, 3], frames[0, 0]) and not near.any()
    told = Tracks(late.xy, late.visible, late.ids, torch.tensor([[[4.0, 4.0]]]))
    frames, near = warp(told, picture, REACH)
    assert near[:, 1:].max() > .9 and near[:, 0].max() <= .25
    close(frames[0, 1, :, 10:14, 18:22], picture[0, :, 2:6, 2:6], atol=1e-4)


# -- as the transformer reads it -----------------------------------------------------------------------------------------

def grouped(frames):
    """An encoder that can be seen through: the mean colour of each cell and group of four."""
    return F.avg_pool2d(frames.flatten(0, 1), 8).unflatten(0, (len(frames), -1, 4)).mean(dim=2)


def test_what_is_carried_is_zero_where_no_track_is_near(close):
    tracks, picture = at([8.0, 12.0], frames=9), noise_picture()
    carried = carry(tracks, picture, grouped, G)
    assert carried.shape == (1, 3, 3 + 4, 4, 6)
    silent = (carried[:, :, 3:] == 0).all(dim=2)
    assert silent[..., 5].all() and not silent[:, :, 1, 1].any()
    assert (carried.transpose(1, 2)[:, :, silent[0]] == 0).all()
    close(carried[:, :, :3, 1, 1], F.avg_pool2d(picture, 8)[:, None, :, 1, 1].expand(-1, 3, -1), atol=1e-5)
    nothing = carry(Tracks.empty(frames=9), picture, grouped, G)
    assert nothing.shape == carried.shape and not nothing.any()


def test_the_map_is_ids_then_what_is_carried_and_chunks_make_the_same_of_it(close):
    head = TrackHead(TrackConfig(id_dim=16, hidden=12, channels=5, splat="bilinear", carry=3), G)
    told, picture = shaking(9), noise_picture(2)

    def read(tracks, start=True):
        return head(tracks, start, carry(tracks, picture, grouped, G, start))

    whole = read(told)
    assert whole.shape == (2, 3, 5 + 3 + 4, 4, 6) == (2, 3, head.config.width(4), 4, 6)
    close(torch.cat([read(told.frames(0, 5)), read(told.frames(5, 9), start=False)], dim=1), whole)
    close(head(told)[:, :, :5], whole[:, :, :5])
    assert (head(told)[:, :, 5:] == 0).all()
    with pytest.raises(ValueError, match=r"came as \[2, 3, 8, 4, 6\], but these tracks ask for \[2, 3, 7, 4, 6\]"):
        head(told, carried=torch.zeros(2, 3, 8, 4, 6))
