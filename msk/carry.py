"""What tracks carry: the given picture's pixels, where they are now. No parameters, and nothing is learned."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Geometry
from .tracks import Tracks

EDGE = 20.                  # pixels of way that a step from 0 to 1 in one colour counts as
FOOT = 0.75                 # a pixel covers what is so near to where it went, in x and y (0.71, if turned by 45 degrees)
RIM = 2                     # pixels about a hole that are of what has left it, half or in shadow
LEVEL = 3.                  # pixels from where the ground would be: still ground, and so are three times its middle error
AT_ONCE = 48                # frames
FRONT, SEEN, NOBODYS, HIDDEN = range(4)         # what has come to the same place: the first covers the others


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances between points, [..., M, 2] and [..., N, 2] -> [..., M, N]: each by itself, as torch's shortcut for many (by
    products) loses digits where coordinates are large, and most of them in TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def times(a: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """Ways d, x and y along `dim`, turned by the angle of a and so many times as long as a is: a complex product."""
    (p, q), (x, y) = a.unbind(dim), d.unbind(dim)
    return torch.stack([p * x - q * y, p * y + q * x], dim)


def turned_back(xy: Tensor, began: Tensor, known: Tensor, reach: float, count: int = 8, alike: float = 0.2) -> Tensor:
    """a [T, N, 2], for `times`: what is at xy + d now, about a track, was at began + a d; (1, 0) if nothing turned or grew.

    xy [T, N, 2], where `known` [T, N]; began [N, 2]; all in pixels. Of its `count` nearest neighbours, those at most half as
    far again as the first (which counts as half a `reach` away at least, and a whole one at most), each gives an a of its
    own, and the most that are alike are believed: those that went with it, as across an edge no two are alike but by
    chance. If they are fewer than three, none is. Nothing is believed to be less than a fifth or more than thrice its size.
    """
    count, none = min(count, len(began) - 1), 1 - torch.arange(2., device=xy.device)        # made there: nobody waits for it
    if count < 3:
        return none.expand_as(xy)
    away, near = apart(began, began).fill_diagonal_(torch.inf).topk(count, largest=False)              # [N, K]
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
    """Which pixel of the picture has come to each place, [T, H * W] long; H * W: none.

    to [2, T, H * W]: where they go, in pixels; foot [T, H * W]: how far they cover, less than a pixel about them; kind
    [T, H * W]: of what kind they are there, and cost [H * W] in [0, 1]: of those of a kind the one with the least is seen.
    A place between two, left and right or above and below, whose kinds come before its own is theirs, as is an empty one
    unless they are hidden: a crack in what has grown.
    """
    (h, w), pixels, none = size, cost.numel(), 2 ** 31 - 1
    steep = 2 ** 29 // pixels                                                   # kind, cost and pixel in one number
    rank = (cost * (steep - 2)).int() * pixels + torch.arange(pixels, device=cost.device, dtype=torch.int32)
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
    return torch.where(best < none, (best & 2 ** 29 - 1) % pixels, pixels).flatten(1).long()


def median(x: Tensor, weight: Tensor) -> Tensor:
    """The middle of x [..., N] where each weighs something, [N] -> [..., 1]."""
    x, order = x.sort(dim=-1)
    share = weight.expand_as(x).gather(-1, order).cumsum(dim=-1)
    at = (share < share[..., -1:] / 2).sum(dim=-1, keepdim=True).clamp(max=x.shape[-1] - 1)
    return x.gather(-1, at)


def ground(began: Tensor, at: Tensor, turn: Tensor, area: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What most of the picture does: strays(came, now), [2, T, K] twice -> [T, K] bool: does what came from there to be here
    move otherwise?

    It shifts, turns and grows; each is the middle of what tracks do, by the `area` [N] of the picture they own. began, at,
    turn [2, T, N]: where they were, are, and how they are turned back. A camera's depth is no straying (`LEVEL`).
    """
    most = median(turn, area)                                                   # ground at p was at most * p + off
    off = median(began - times(most, at, 0), area)
    error = lambda came, now: (came - times(most, now, 0) - off).square().sum(dim=0).sqrt()
    level = (3 * median(error(began, at), area)).clamp(min=LEVEL)                                   # [T, 1]
    return lambda came, now: error(came, now) > level


@torch.no_grad()
def warp(tracks: Tracks, picture: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """The given picture as its tracks move it: picture [B, 3, H, W] -> frames [B, T, 3, H, W], and near [B, T, H, W].

    Each pixel of the picture goes with the track that owns it (`owners`), if that is within reach, and turns and grows with
    it (`turned_back`); the others stay. Several may come to one place (`land`): what moves otherwise than the ground, which
    is what most of the picture does, covers it; then come what no track speaks for, and what goes with a hidden track.
    Where none comes, ground is uncovered: it is filled from the ground around it (`fill_in`), and so is ground at the rim of
    all but narrow holes. near: 1 at a track, 0 as far as it reaches; a quarter of that where its track is hidden or the
    ground filled. No parameters.
    """
    (b, t, n, _), (h, w), picture = tracks.xy.shape, picture.shape[-2:], picture.float()
    if not n:
        return picture[:, None].expand(b, t, -1, -1, -1), picture.new_zeros(b, t, h, w)
    clips = []
    for xy, visible, origin, shown in zip(tracks.xy.float(), tracks.visible, tracks.origins().float(), picture, strict=True):
        parts = zip(xy.split(AT_ONCE), visible.split(AT_ONCE))                          # [AT_ONCE, H * W] is large enough
        clips.append([torch.cat(z) for z in zip(*(_warp(*part, origin, shown, reach) for part in parts))])
    return tuple(torch.stack(z) for z in zip(*clips))


def _warp(xy: Tensor, visible: Tensor, origin: Tensor, picture: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """`warp` of one clip: xy [T, N, 2], visible [T, N], origin [N, 2], picture [3, H, W] -> [T, 3, H, W], [T, H, W]."""
    (t, n, _), (h, w) = xy.shape, picture.shape[-2:]
    pixel = torch.stack(torch.meshgrid(*(torch.arange(z, device=xy.device) + .5 for z in (w, h)), indexing="xy")).flatten(1)
    of = lambda z, who: z.gather(-1, who.expand(*z.shape[:-1], -1))     # of each track, [..., N] -> of each pixel
    rows = lambda z: z.unflatten(-1, (h, w))

    knows = origin.isfinite().all(dim=-1)                                                           # [N]
    placed = xy.isfinite().all(dim=-1) & knows                                                      # [T, N]
    seen, began = visible & placed, torch.where(knows[:, None], origin, 1e4).clamp(-1e4, 1e4)
    at = torch.where(placed[..., None], xy, began).clamp(-1e4, 1e4)
    turn = turned_back(at, began, placed, reach)
    whose, cost = owners(picture, began, knows, reach)                                  # [H * W]
    began, at, turn = (F.pad(z.movedim(-1, 0), (0, 1)) for z in (began, at, turn))           # [2, (T,) N + 1]: the last is
    turn[0, :, n] = 1                                                                       # nobody, who stays
    far = (pixel - of(began, whose)).square().sum(dim=0).sqrt() / reach
    whose, far = torch.where(far < 1, whose, n), far.clamp(max=1)

    area = torch.zeros_like(began[0]).scatter_add_(0, whose, torch.ones_like(far))
    began = began[:, None].expand(-1, t, -1)
    strays = ground(began, at, turn, area)
    kind = F.pad(torch.where(placed, HIDDEN, NOBODYS), (0, 1), value=NOBODYS)                       # [T, N + 1]
    kind = torch.where(F.pad(seen, (0, 1)), torch.where(strays(began, at), FRONT, SEEN), kind).int()

    size = turn.square().sum(dim=0)                                                                 # [T, N + 1]
    back = torch.stack([turn[0], -turn[1]]) / size
    to = of(at, whose) + times(of(back, whose), pixel[:, None] - of(began, whose), 0)               # [2, T, H * W]
    rank = of(kind, whose)
    rank = torch.where((rank == FRONT) & (cost > reach), SEEN, rank)        # beyond an edge it may not be of what moves
    source = land(to, of(FOOT / size.sqrt(), whose), rank, (cost / (4 * reach)).clamp(max=1), (h, w))
    hole = rows(source == h * w)
    hole &= ~hole.flatten(1).all(dim=1)[:, None, None]                      # with nothing around, what was there has to do

    whose, far = F.pad(whose, (0, 1), value=n), F.pad(far, (0, 1), value=1.)
    who = whose[source]                                                                             # [T, H * W]
    came = of(began, who) + times(of(turn, who), pixel[:, None] - of(at, who), 0)                   # [2, T, H * W]
    front = ~hole & rows(strays(came, pixel[:, None]))
    hole |= widened(~widened(~hole, 1), RIM + 1) & ~front               # no rim where narrower than three pixels
    good = ~hole & ~widened(front, RIM)
    good = torch.where(good.flatten(1).any(dim=1)[:, None, None], good, ~hole)[:, None]

    x, y = came
    where = rows(torch.stack([x * (2 / w) - 1, y * (2 / h) - 1])).movedim(0, -1)
    taken = F.grid_sample(picture.expand(t, -1, -1, -1), where, padding_mode="border", align_corners=False)
    told = torch.where(kind < NOBODYS, 1., torch.where(kind == HIDDEN, .25, 0.))                    # [T, N + 1]
    near = rows((1 - far)[source] * of(told, who))
    taken = torch.cat([taken, near[:, None]], dim=1)                                                # [T, 4, H, W]
    taken = torch.where(hole[:, None], from_afar(taken, good), taken)
    return taken[:, :-1], taken[:, -1] * torch.where(hole, .25, 1.)


def moved(tracks: Tracks, picture: Tensor, geometry: Geometry) -> Tensor:
    """What the tracks carry of the given picture: picture [B, 3, H, W] -> its pixels, moved, and how near tracks are, which
    reach three cells: [B, T, 4, H, W] (see `warp`)."""
    frames, near = warp(tracks, picture, 3. * geometry.stride)
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
