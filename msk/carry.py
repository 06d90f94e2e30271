"""What tracks carry: the given picture's pixels, where they are now. No parameters, and nothing is learned."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Geometry
from .host import Memo, empty
from .tracks import Tracks

EDGE = 20.                  # pixels of way that a step from 0 to 1 in one colour counts as
FOOT = 0.75                 # a pixel covers what is so near to where it went, in x and y (0.71, if turned by 45 degrees)
RIM = 2                     # pixels about a hole that are of what has left it, half or in shadow
LEVEL = 3.                  # pixels from where the ground would be: still ground, and so are three times its middle error
TWIST = 0.1                 # a hub turns or grows by so much otherwise than the ground
AT_ONCE = 48                # frames
SEEN, NOBODYS, HIDDEN = 1, 2, 3               # what has come to the same place: the first covers the others
HIDES = .02                 # what hides less of the ground is not lifted off it


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances between points, [..., M, 2] and [..., N, 2] -> [..., M, N]: each by itself, as torch's shortcut for many (by
    products) loses digits where coordinates are large, and most of them in TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def times(a: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """Ways d, x and y along `dim`, turned by the angle of a and so many times as long as a is: a complex product."""
    (p, q), (x, y) = a.unbind(dim), d.unbind(dim)
    return torch.stack([p * x - q * y, p * y + q * x], dim)


def turned_back(xy: Tensor, began: Tensor, known: Tensor, reach: float, layer: Tensor | None = None, count: int = 8,
                alike: float = 0.2) -> Tensor:
    """a [T, N, 2], for `times`: what is at xy + d now, about a track, was at began + a d; (1, 0) if nothing turned or grew.

    xy [T, N, 2], where `known` [T, N]; began [N, 2]; all in pixels. Of its `count` nearest neighbours, those at most half as
    far again as the first (which counts as half a `reach` away at least, and a whole one at most), each gives an a of its
    own, and the most that are alike are believed: those that went with it, as across an edge no two are alike but by
    chance. If they are fewer than three, none is. Nothing is believed to be less than a fifth or more than thrice its size.
    layer [N]: where it is known, those of its own alone are heard.
    """
    count, none = min(count, len(began) - 1), 1 - torch.arange(2., device=xy.device)        # made there: nobody waits for it
    if count < 3:
        return none.expand_as(xy)
    away = apart(began, began).fill_diagonal_(torch.inf)
    if layer is not None:
        away = away.masked_fill(layer != layer[:, None], torch.inf)
    away, near = away.topk(count, largest=False)                                                    # [N, K]
    heard = known[:, near] & known[..., None] & (away < 1.5 * away[:, :1].clamp(reach / 2, reach))  # [T, N, K]
    now, then = xy[:, near] - xy[:, :, None], began[near] - began[:, None]                          # [T, N, K, 2], [N, K, 2]
    mirror = 2 * none - 1                                                                   # (1, -1)
    square = then.square().sum(dim=-1, keepdim=True).clamp_min(1)
    each = times(then * mirror, now) / square                                               # now / then: it does not go to 0
    gap = (each[:, :, None] - each[:, :, :, None]).square().sum(dim=-1)                             # [T, N, K, K]
    same = (gap < alike ** 2) & heard[:, :, None] & heard[..., None]
    votes, best = same.sum(dim=-1).max(dim=-1)                                                          # [T, N]
    same = same.gather(2, best[..., None, None].expand(-1, -1, 1, count))[:, :, 0, :, None]            # [T, N, K, 1]
    mean = (same * square * each).sum(dim=2) / (same * square).sum(dim=2).clamp_min(1)
    size = mean.square().sum(dim=-1, keepdim=True).sqrt()
    return torch.where((votes >= 3)[..., None], mean * mirror / (size.clamp_min(1e-3) * size.clamp(0.2, 3)), none)


def fill_in(x: Tensor, known: Tensor) -> Tensor:
    """x [T, C, h, w] where `known` [T, 1, h, w] bool; elsewhere what is known around it, from ever farther away.

    Whether there is anything to fill is not asked: a GPU would have to be waited for.
    """
    if max(x.shape[-2:]) == 1:
        return x * known
    share = F.avg_pool2d(known.float(), 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
    around = F.interpolate(fill_in(coarse, share > 0), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known, x, around)


def from_afar(x: Tensor, good: Tensor) -> Tensor:
    """x [T, C, H, W] as smooth as means of 4x4 pixels, made of what is `good` [T, 1, H, W] bool in it (`fill_in`)."""
    mean, share = (F.avg_pool2d(z, 4, ceil_mode=True) for z in (x * good, good.float()))
    return F.interpolate(fill_in(mean / share.clamp_min(1e-6), share > 0), size=x.shape[-2:], mode="bilinear")


def around(x: Tensor, reach: int) -> Tensor:
    """x [..., H, W] -> the mean of what lies within `reach` rows and columns of each pixel, and in the picture.

    As `F.avg_pool2d` without its padding; but that takes each of (2 reach + 1)^2 pixels by itself, and here one axis comes
    after the other.
    """
    for dim in (-1, -2):
        size, place = x.shape[dim], torch.arange(x.shape[dim], device=x.device)
        count = (place + reach).clamp(max=size - 1) - (place - reach).clamp(min=0) + 1
        wide = F.pad(x, (reach, reach) if dim == -1 else (0, 0, reach, reach))
        x = wide.narrow(dim, 0, size).clone()
        for k in range(1, 2 * reach + 1):
            x += wide.narrow(dim, k, size)
        x /= count if dim == -1 else count[:, None]
    return x


def widened(mask: Tensor, reach: int) -> Tensor:
    """mask [..., H, W] bool, and what lies within `reach` rows and columns of it."""
    return around(mask.float(), reach) > 0


def by_hand(pictures: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """A picture in two layers, by no more than what is around: pictures [B, 3, H, W] and what moves in them, [B, 1, H, W]
    bool -> the ground, where that and its rim are filled from afar, and how much of it is hidden, [B, 1, H, W] float."""
    good = ~widened(moving, RIM)
    good |= ~good.flatten(1).any(dim=1)[:, None, None, None]                # with nothing around, what was there has to do
    return torch.where(good, pictures, from_afar(pictures, good)), moving.float()


def owners(picture: Tensor, began: Tensor, there: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Which track each pixel of the picture [3, H, W] in [0, 1] goes with (N: none), and how far: [H * W] long, and float.

    began [N, 2] in pixels, where `there` [N]. It is the nearest along ways that shun edges: a step costs its length, and
    more the more the colours differ (`EDGE`), so that borders between tracks come to lie where those of things are. No way
    has more than `reach` steps; one from outside, from within a reach, goes straight to the picture first. Of two tracks in
    one pixel it is the first. Geodesic distance, as in GeoS (Criminisi et al., 2008).
    """
    (_, h, w), count, far = picture.shape, len(began), 2 ** 30
    x, y = (z.clamp(0, side - 1) for z, side in zip(began.floor().long().unbind(dim=-1), (w, h)))
    away = (began - torch.stack([x, y], dim=-1) - .5).square().sum(dim=-1).sqrt() - .71             # 0 in the pixel itself
    there, away = there & (away < reach), away.clamp(0, reach)
    number = (16 * away).int() * (count + 1) + torch.arange(count, device=began.device, dtype=torch.int32)
    key = torch.full((h * w,), far, device=began.device, dtype=torch.int32)     # cost and track in one number: least wins
    key.scatter_reduce_(0, torch.where(there, y * w + x, 0), torch.where(there, number, far), "amin")
    key, wide = key.view(h, w), key.new_full((h + 2, w + 2), far)
    shown, steps = F.pad(picture, (1, 1, 1, 1)), []
    for dy, dx in ((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx):
        here = slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w)
        cost = (dy * dy + dx * dx) ** .5 + EDGE * (shown[:, *here] - picture).abs().sum(dim=0)
        steps.append((here, (16 * cost).round().int() * (count + 1)))
    for _ in range(int(reach)):
        wide[1:-1, 1:-1] = key
        for here, step in steps:
            key = torch.minimum(key, wide[here] + step)
    key = key.flatten()
    return torch.where(key < far, key % (count + 1), count).long(), key // (count + 1) / 16


def land(to: Tensor, foot: Tensor, kind: Tensor, cost: Tensor, size: tuple[int, int]) -> Tensor:
    """Which of M pixels has come to each place, [T, H * W] long; M: none.

    to [2, T, M]: where they go, in pixels; foot [T, M]: how far they cover, less than a pixel about them (-1: nothing); kind
    [T, M]: of what kind they are there, and cost [M] in [0, 1]: of those of a kind the one with the least is seen.
    A place between two, left and right or above and below, whose kinds come before its own is theirs, as is an empty one
    unless they are hidden: a crack in what has grown.
    """
    (h, w), pixels, none = size, max(1, cost.numel()), 2 ** 31 - 1
    steep = 2 ** 29 // pixels                                                   # kind, cost and pixel in one number
    rank = (cost * (steep - 2)).int() * pixels + torch.arange(len(cost), device=cost.device, dtype=torch.int32)
    rank = rank + (kind << 29)
    x, y = (z.clamp(-1, side + 1) + 1.5 for z, side in zip(to, (w, h)))         # a margin of two all about
    column, row = x.floor(), y.floor()
    x, y = x - column, y - row
    place = (row * (w + 4) + column).long()
    best = rank.new_full((len(rank), (h + 4) * (w + 4)), none)
    for down, in_row in (0, y <= foot), (w + 4, y >= 1 - foot):
        for right, in_column in (0, x <= foot), (1, x >= 1 - foot):
            best.scatter_reduce_(1, place + (down + right), torch.where(in_row & in_column, rank, none), "amin")
    best = best.view(-1, h + 4, w + 4)[:, 2:-2, 2:-2]
    for dim in (1, 2):
        a, it, b = (best.narrow(dim, k, best.shape[dim] - 2) for k in range(3))
        a, b = torch.minimum(a, b), torch.maximum(a, b)
        best = torch.cat([best.narrow(dim, 0, 1), torch.where(b >> 29 < it >> 29, a, it), best.narrow(dim, -1, 1)], dim)
    return torch.where(best < none, (best & 2 ** 29 - 1) % pixels, len(cost)).flatten(1).long()


def median(x: Tensor, weight: Tensor) -> Tensor:
    """The middle of x [..., N] where each weighs something, [N] -> [..., 1]."""
    x, order = x.sort(dim=-1)
    share = weight.expand_as(x).gather(-1, order).cumsum(dim=-1)
    at = (share < share[..., -1:] / 2).sum(dim=-1, keepdim=True).clamp(max=x.shape[-1] - 1)
    return x.gather(-1, at)


def most_of(began: Tensor, at: Tensor, turn: Tensor, area: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What most of the picture does, as a track would: where what began at (0, 0) is, and how it is turned back, [2, T, 1]
    each; and which tracks move otherwise, [T, N] bool.

    It shifts, turns and grows; each is the middle of what tracks do, by the `area` [N] of the picture they own. began, at,
    turn [2, T, N]: where they were, are, and how they are turned back. A camera's depth is no straying (`LEVEL`).
    """
    most = median(turn, area)                                                   # ground at p was at most * p + off
    off = median(began - times(most, at, 0), area)
    error = (began - times(most, at, 0) - off).square().sum(dim=0).sqrt()
    return -times(inverse(most), off, 0), most, error > (3 * median(error, area)).clamp(min=LEVEL)


def enclosed(began: Tensor, mask: Tensor, reach: float) -> Tensor:
    """Which tracks, began [N, 2], have one of `mask` [T, N] bool as the nearest on each side, within reach: [T, N] bool."""
    x, y = (began[None] - began[:, None]).unbind(dim=-1)                                            # [N, N]
    away, inside = apart(began, began), torch.ones_like(mask)
    for side in (x < 0, x > 0, y < 0, y > 0):
        least, nearest = away.masked_fill(~side, torch.inf).min(dim=1)
        inside &= mask[:, nearest] & (least < reach)
    return inside


def inverse(a: Tensor) -> Tensor:
    """1 / a for `times`, [2, ...]."""
    return torch.stack([a[0], -a[1]]) / a.square().sum(dim=0)


Split = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]       # pictures, what moves in them -> ground, how much is hidden


@torch.no_grad()
def warp(tracks: Tracks, picture: Tensor, reach: float, split: Split = by_hand, memo: Memo | None = None
         ) -> tuple[Tensor, Tensor]:
    """The given picture as its tracks move it: picture [B, 3, H, W] -> frames [B, T, 3, H, W], and near [B, T, H, W].

    Each pixel of the picture goes with the track that owns it (`owners`), if that is within reach, and turns and grows with
    it (`turned_back`); the others stay. What moves otherwise than the ground, which is what most of the picture does, at any
    time of these, is lifted off: `split` says what is beneath it (`by_hand`; `plate.Plate` has learned it). So there are two
    layers, each moved by its own tracks, and what was lifted is laid on the ground. Of what comes to one place (`land`), in
    the ground what tracks speak for covers what none does, and that what goes with a hidden track. Where no ground comes, it
    is filled from around (`fill_in`), and so is the rim of all but narrow holes.
    near: 1 at a track, 0 as far as it reaches; a quarter of that where its track is hidden or the ground filled.
    memo: of a stream, whose tracks began where they did in the chunk before.
    """
    memo = memo or Memo(0)
    (b, t, n, _), (h, w), picture = tracks.xy.shape, picture.shape[-2:], picture.float()
    if not n:
        return picture[:, None].expand(b, t, -1, -1, -1), picture.new_zeros(b, t, h, w)
    clips = []
    for xy, visible, origin, shown in zip(tracks.xy.float(), tracks.visible, tracks.origins().float(), picture, strict=True):
        parts = zip(xy.split(AT_ONCE), visible.split(AT_ONCE))                          # [AT_ONCE, H * W] is large enough
        clips.append([torch.cat(z) for z in zip(*(_warp(*part, origin, shown, reach, split, memo) for part in parts))])
    return tuple(torch.stack(z) for z in zip(*clips))


def _warp(xy: Tensor, visible: Tensor, origin: Tensor, picture: Tensor, reach: float, split: Split, memo: Memo
          ) -> tuple[Tensor, Tensor]:
    """`warp` of one clip: xy [T, N, 2], visible [T, N], origin [N, 2], picture [3, H, W] -> [T, 3, H, W], [T, H, W]."""
    (t, n, _), (h, w) = xy.shape, picture.shape[-2:]
    pixel = torch.stack(torch.meshgrid(*(torch.arange(z, device=xy.device) + .5 for z in (w, h)), indexing="xy")).flatten(1)
    of = lambda z, who: z.gather(-1, who.expand(*z.shape[:-1], -1))     # of each track, [..., N] -> of each pixel
    rows = lambda z: z.unflatten(-1, (h, w))

    knows = origin.isfinite().all(dim=-1)                                                           # [N]
    placed = xy.isfinite().all(dim=-1) & knows                                                      # [T, N]
    seen, places = visible & placed, torch.where(knows[:, None], origin, 1e4).clamp(-1e4, 1e4)
    at = torch.where(placed[..., None], xy, places).clamp(-1e4, 1e4)
    turn = turned_back(at, places, placed, reach)
    began, at, turn = (F.pad(z.movedim(-1, 0), (0, 2)) for z in (places, at, turn))          # [2, (T,) N + 2]: two more,
    turn[0, :, n:] = 1                                                                  # nobody, who stays, and the ground

    def owned(shown: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a picture's pixels the one of these tracks that owns each (N: nobody), at what cost, and how far it is."""
        whose, cost = memo(owners, shown, places, which, reach)
        far = (pixel - of(began, whose)).square().sum(dim=0).sqrt() / reach
        return torch.where(far < 1, whose, n), cost, far.clamp(max=1)

    def come(which: Tensor, whose: Tensor, cost: Tensor, far: Tensor, kind: Tensor, foot: Tensor
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What has come to each place of some pixels, `which` [M], each with its track, cost and way to it, [M]: has
        anything? with whom, from where in the picture, [2, T, H * W] in pixels, and how far from its track."""
        to = of(at, whose) + times(of(inverse(turn), whose), pixel[:, None, which] - of(began, whose)[:, None], 0)
        source = land(to, of(foot, whose), of(kind, whose), (cost / (4 * reach)).clamp(max=1), (h, w))
        who, far = F.pad(whose, (0, 1), value=n)[source], F.pad(far, (0, 1), value=1.)[source]
        there = of(began[:, None].expand(-1, t, -1), who) + times(of(turn, who), pixel[:, None] - of(at, who), 0)
        return rows(source < len(whose)), who, there, rows(far)

    def sampled(x: Tensor, there: Tensor) -> Tensor:
        """x [C, H, W] at places [2, T, H * W] -> [T, C, H, W]"""
        where = torch.stack([there[0] * (2 / w) - 1, there[1] * (2 / h) - 1], dim=-1)
        return F.grid_sample(x.expand(t, -1, -1, -1), where.unflatten(1, (h, w)), padding_mode="border", align_corners=False)

    whose, cost, _ = owned(picture, knows)
    area = torch.zeros_like(began[0]).scatter_add_(0, whose, torch.ones_like(cost))
    at[:, :, n + 1:], turn[:, :, n + 1:], strays = most_of(began[:, None], at, turn, area)
    seen = F.pad(seen, (0, 2))                                                                      # [T, N + 2]
    hub = (turn - turn[:, :, n + 1:]).square().sum(dim=0)[:, :n] > TWIST ** 2
    if not empty(hub):
        hub &= enclosed(places, strays[:, :n], reach)                   # in the midst of what turns about it
    left = (at < 0).any(dim=0) | (at[0] >= w) | (at[1] >= h)            # off the picture: hidden, but behind nothing
    shows = seen | F.pad(placed, (0, 2)) & left
    lifted = ((strays | F.pad(hub, (0, 2))) & shows).any(dim=0)
    turn[:, :, :n] = turned_back(at[..., :n].movedim(0, -1), places, placed, reach, lifted[:n]).movedim(-1, 0)
    below, cost_below, far_below = owned(picture, knows & ~lifted[:n])
    moving = lifted[whose] & ((cost <= reach) | (below == n))           # beyond an edge it may not be of what moves
    foot = FOOT / turn.square().sum(dim=0).sqrt()                                                   # [T, N + 2]
    nothing = empty(moving)
    plate, hides = (z[0] for z in memo(split, picture[None], rows(moving)[None, None])) if not nothing else (picture, None)

    below = torch.where((below == n) & moving, n + 1, below)
    far_below = torch.where(moving, .75 + .25 * far_below, far_below)
    kind = torch.where(seen, SEEN, torch.where(F.pad(placed, (0, 2)), HIDDEN, NOBODYS)).int()
    every = torch.arange(h * w, device=xy.device)
    told = torch.where(kind < NOBODYS, 1., torch.where(kind == HIDDEN, .25, 0.))
    stirs = ((at - began[:, None]).abs() > 1e-3).any(dim=0) | ((turn[0] - 1).abs() + turn[1].abs() > 1e-3)     # [T, N + 2]
    if empty(stirs & ~lifted):                                          # all the ground stays
        near = rows((1 - far_below) * of(told, below))
        ground = torch.cat([plate.expand(t, -1, -1, -1), near[:, None]], dim=1)                     # [T, C + 1, H, W]
    else:
        here, who, there, far = come(every, below, cost_below, far_below, kind, foot)
        near = (1 - far) * rows(of(told, who))
        ground = torch.cat([sampled(plate, there), near[:, None]], dim=1)
        if not empty(~here):
            ground = patched(ground, here)
    if nothing:
        return ground[:, :-1], ground[:, -1]

    whose, cost, far = owned(picture, knows & lifted[:n])
    covers = hides.flatten() > HIDES
    whose, which = torch.where(covers, whose, n), covers.nonzero()[:, 0] if xy.device.type == "cpu" else every
    here, _, there, far = come(which, *(z[which] for z in (whose, cost, far)), torch.full_like(kind, SEEN),
                               torch.where(shows & lifted, foot, -1))                               # others cover nothing
    front = sampled(torch.cat([picture - (1 - hides) * plate, hides]), there) * here[:, None]
    return front[:, :-1] + (1 - front[:, -1:]) * ground[:, :-1], torch.lerp(ground[:, -1], 1 - far, front[:, -1])


def patched(ground: Tensor, here: Tensor) -> Tensor:
    """The ground and how near its tracks are [T, C + 1, H, W], where none is `here` [T, H, W] bool: filled from around."""
    hole = ~here & here.flatten(1).any(dim=1)[:, None, None]            # with nothing around, what was there has to do
    hole |= widened(~widened(~hole, 1), RIM + 1)                        # no rim where narrower than three pixels
    good = torch.where(hole.flatten(1).all(dim=1)[:, None, None], here, ~hole)[:, None]
    ground = torch.where(hole[:, None], from_afar(ground, good), ground)
    return torch.cat([ground[:, :-1], ground[:, -1:] * torch.where(hole, .25, 1.)[:, None]], dim=1)


def moved(tracks: Tracks, picture: Tensor, geometry: Geometry, split: Split = by_hand, memo: Memo | None = None) -> Tensor:
    """What the tracks carry of the given picture: picture [B, 3, H, W] -> its pixels, moved, and how near tracks are, which
    reach three cells: [B, T, 4, H, W] (see `warp`)."""
    frames, near = warp(tracks, picture, 3. * geometry.stride, split, memo)
    return torch.cat([frames, near[:, :, None]], dim=2)


def encoded(moved: Tensor, encode, geometry: Geometry, start: bool = True) -> Tensor:
    """The moved picture [B, T, 4, H, W] as latents [B, F, C + 4, h, w].

    It is encoded four pixel frames at a time (`encode`: [B, 4 F, 3, H, W] -> [B, F, C, h, w]); then, for each of the four,
    how near tracks are. Zero where no track is near. start: see `TrackHead`. After Wan-Move (2512.08765), which copies
    latents: latents move in steps of a cell, pixels do not.
    """
    repeat = (geometry.time_stride - 1) * start
    moved = torch.cat([moved[:, :1].expand(-1, repeat, -1, -1, -1), moved], dim=1)
    near = F.adaptive_avg_pool2d(moved[:, :, 3], geometry.latent_size).unflatten(1, (-1, geometry.time_stride))
    return torch.cat([encode(moved[:, :, :3]) * (near > 0).any(dim=2, keepdim=True), near], dim=2)


def carry(tracks: Tracks, picture: Tensor, encode, geometry: Geometry, start: bool = True) -> Tensor:
    """What the tracks carry of the given picture, as latents: `encoded`, `moved`. [B, 3, H, W] -> [B, F, C + 4, h, w]"""
    return encoded(moved(tracks, picture, geometry), encode, geometry, start)
