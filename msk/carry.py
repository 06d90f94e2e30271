"""What tracks carry: the given picture's pixels, where they are now. No parameters, and nothing is learned."""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Geometry
from .fill import dilate, fill_smoothly
from .host import Memo, empty
from .similarity import Similarity, finite, pick
from .tracks import Tracks

EDGE = 20.                  # pixels of way that a step from 0 to 1 in one colour counts as
FOOT = 0.75                 # a pixel covers what is so near to where it went, in x and y (0.71, if turned by 45 degrees)
RIM = 2                     # pixels about a hole that are of what has left it, half or in shadow
AT_ONCE = 48                # frames
PIXELS = 2 ** 25            # of frames at once, on a GPU: more clips the smaller they are
SEEN, NOBODYS, HIDDEN = 1, 2, 3               # what has come to the same place: the first covers the others
HIDES = .02                 # what hides less of the ground is not lifted off it


def inpaint(pictures: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """A picture in two layers, by no more than what is around: pictures [B, 3, H, W] and what moves in them, [B, 1, H, W]
    bool -> the plate, where that and its rim are filled from afar, and its opacity, [B, 1, H, W] float."""
    good = ~dilate(moving, RIM)
    good |= ~good.flatten(1).any(dim=1)[:, None, None, None]                # with nothing around, what was there has to do
    return torch.where(good, pictures, fill_smoothly(pictures, good)), moving.float()


def owners(picture: Tensor, began: Tensor, there: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Which track each pixel of a picture [..., 3, H, W] in [0, 1] goes with (N: none), and how far: [..., H * W] long, and
    float.

    began [..., N, 2] in pixels, where `there` [..., N]. It is the nearest along ways that shun edges: a step costs its
    length, and more the more the colours differ (`EDGE`), so that borders between tracks come to lie where those of things
    are. No way has more than `reach` steps; one from outside, from within a reach, goes straight to the picture first. Of
    two tracks in one pixel it is the first. Geodesic distance, as in GeoS (Criminisi et al., 2008).
    """
    (h, w), count, far, before = picture.shape[-2:], began.shape[-2], 2 ** 30, began.shape[:-2]
    x, y = (z.clamp(0, side - 1) for z, side in zip(began.floor().long().unbind(dim=-1), (w, h)))
    away = (began - torch.stack([x, y], dim=-1) - .5).square().sum(dim=-1).sqrt() - .71             # 0 in the pixel itself
    there, away = there & (away < reach), away.clamp(0, reach)
    number = (16 * away).int() * (count + 1) + torch.arange(count, device=began.device, dtype=torch.int32)
    key = number.new_full((*before, h * w), far)                            # cost and track in one number: least wins
    key.scatter_reduce_(-1, torch.where(there, y * w + x, 0), torch.where(there, number, far), "amin")
    key, wide = key.view(*before, h, w), key.new_full((*before, h + 2, w + 2), far)
    shown, steps = F.pad(picture, (1, 1, 1, 1)), []
    for dy, dx in ((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx):
        here = ..., slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w)
        cost = (dy * dy + dx * dx) ** .5 + EDGE * (shown[here] - picture).abs().sum(dim=-3)
        steps.append((here, (16 * cost).round().int() * (count + 1)))
    for _ in range(int(reach)):
        wide[..., 1:-1, 1:-1] = key
        for here, step in steps:
            key = torch.minimum(key, wide[here] + step)
    key = key.flatten(-2)
    return torch.where(key < far, key % (count + 1), count).long(), key // (count + 1) / 16


class Owned(NamedTuple):
    """Of each of M pixels: whose it is (N: nobody's), at what cost, and how far from its track, in reaches, 1 at most."""
    whose: Tensor       # [..., M] long
    cost: Tensor        # [..., M]
    far: Tensor         # [..., M]


def middles(size: tuple[int, int], device) -> Tensor:
    """The middles of a picture's pixels, row by row, [2, H * W]: x and y."""
    return torch.stack(torch.meshgrid(*(torch.arange(z, device=device) + .5 for z in size[::-1]), indexing="xy")).flatten(1)


def owned(picture: Tensor, began: Tensor, there: Tensor, reach: float, memo: Memo | None = None) -> Owned:
    """`owners`, but what is farther off than a track reaches is nobody's."""
    whose, cost = (memo or Memo(0))(owners, picture, began, there, reach)
    away = middles(picture.shape[-2:], began.device) - pick(F.pad(began.mT, (0, 1)), whose[..., None, :])    # [..., 2, M]
    far = away.square().sum(dim=-2).sqrt() / reach
    return Owned(torch.where(far < 1, whose, began.shape[-2]), cost, far.clamp(max=1))


def of_what_moves(every: Owned, below: Owned, lifted: Tensor, reach: float) -> Tensor:
    """Which pixels go with tracks that are `lifted` [B, N + 1] bool, [B, H * W] bool: owned by every track, and below by
    those that are not. Beyond an edge from its track a pixel may not be of what moves, unless no other has it."""
    return pick(lifted, every.whose) & ((every.cost <= reach) | (below.whose == lifted.shape[-1] - 1))


def rasterize(to: Tensor, foot: Tensor, kind: Tensor, cost: Tensor, size: tuple[int, int]) -> Tensor:
    """A z-buffer: which of M pixels is seen at each place, [B, T, H * W] long; M: none.

    to [2, B, T, M]: where they go, in pixels; foot [B, T, M]: how far they cover, less than a pixel about them (-1:
    nothing); kind [B, T, M]: of what kind they are there, and cost [B, M] in [0, 1]: of those of a kind the one with the
    least is seen. A place between two, left and right or above and below, whose kinds come before its own is theirs, as is
    an empty one unless they are hidden: a crack in what has grown.
    """
    (h, w), count, none = size, cost.shape[-1], 2 ** 31 - 1
    pixels = max(1, count)
    steep = 2 ** 29 // pixels                                                   # kind, cost and pixel in one number
    rank = (cost * (steep - 2)).int() * pixels + torch.arange(count, device=cost.device, dtype=torch.int32)
    rank = rank[:, None] + (kind << 29)
    x, y = (z.clamp(-1, side + 1) + 1.5 for z, side in zip(to, (w, h)))         # a margin of two all about
    column, row = x.floor(), y.floor()
    x, y = x - column, y - row
    place = (row * (w + 4) + column).long()
    best = rank.new_full((*rank.shape[:2], (h + 4) * (w + 4)), none)
    for down, in_row in (0, y <= foot), (w + 4, y >= 1 - foot):
        for right, in_column in (0, x <= foot), (1, x >= 1 - foot):
            best.scatter_reduce_(-1, place + (down + right), torch.where(in_row & in_column, rank, none), "amin")
    best = best.unflatten(-1, (h + 4, w + 4))[..., 2:-2, 2:-2]
    for dim in (-2, -1):
        a, it, b = (best.narrow(dim, k, best.shape[dim] - 2) for k in range(3))
        a, b = torch.minimum(a, b), torch.maximum(a, b)
        best = torch.cat([best.narrow(dim, 0, 1), torch.where(b >> 29 < it >> 29, a, it), best.narrow(dim, -1, 1)], dim)
    return torch.where(best < none, (best & 2 ** 29 - 1) % pixels, count).flatten(-2).long()


Split = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]       # pictures, what moves in them -> plate, opacity


@torch.no_grad()
def warp(tracks: Tracks, picture: Tensor, reach: float, split: Split = inpaint, memo: Memo | None = None
         ) -> tuple[Tensor, Tensor]:
    """The given picture as its tracks move it: picture [B, 3, H, W] -> frames [B, T, 3, H, W], and near [B, T, H, W].

    Each pixel of the picture goes with the track that owns it (`owners`), if that is within reach, and turns and grows with
    it (`similarity.backward_linear`); the others stay. What moves otherwise than the ground, which is what most of the
    picture does, at any time of these, is lifted off: `split` says what is beneath it (`inpaint`; `plate.Plate` has learned
    it). So there are two layers, each moved by its own tracks, and what was lifted is laid on the ground. Of what comes to
    one place (`rasterize`), in the ground what tracks speak for covers what none does, and that what goes with a hidden
    track. Where no ground comes, it is filled from around (`pull_push`), and so is the rim of all but narrow holes.
    near: 1 at a track, 0 as far as it reaches; a quarter of that where its track is hidden or the ground filled.
    memo: of a stream, whose tracks began where they did in the chunk before.
    """
    memo = memo or Memo(0)
    (b, t, n, _), (h, w), picture = tracks.xy.shape, picture.shape[-2:], picture.float()
    if not n:
        return picture[:, None].expand(b, t, -1, -1, -1), picture.new_zeros(b, t, h, w)
    xy, visible, origin = tracks.xy.float(), tracks.visible, tracks.origins().float()
    frames = min(t, AT_ONCE)                                                            # [AT_ONCE, H * W] is large enough
    clips = 1 if picture.device.type == "cpu" else max(1, PIXELS // (frames * h * w))   # a GPU is asked the same of many
    done = []
    for these in (slice(k, k + clips) for k in range(0, b, clips)):
        parts = [_warp(xy[these, some:some + frames], visible[these, some:some + frames], origin[these], picture[these],
                       reach, split, memo) for some in range(0, t, frames)]
        done.append([torch.cat(z, dim=1) for z in zip(*parts)])
    return tuple(map(torch.cat, zip(*done)))


def _warp(xy: Tensor, visible: Tensor, origin: Tensor, picture: Tensor, reach: float, split: Split, memo: Memo
          ) -> tuple[Tensor, Tensor]:
    """`warp`, all at once: xy [B, T, N, 2], visible [B, T, N], origin [B, N, 2], picture [B, 3, H, W] -> [B, T, 3, H, W] and
    [B, T, H, W]."""
    size, known, began = picture.shape[-2:], origin.isfinite().all(dim=-1), finite(origin)
    whose = lambda there: owned(picture, began, there, reach, memo)
    maps, every = Similarity.of(xy, visible, origin, size, reach), whose(known)
    area = torch.zeros_like(maps.began[0]).scatter_add_(-1, every.whose, torch.ones_like(every.cost))
    maps, lifted = maps.lift(area, reach)
    below = whose(known & ~lifted[:, :-2])
    moving = of_what_moves(every, below, lifted[:, :-1], reach)                                     # [B, H * W]
    if empty(moving):
        ground = _background(picture, maps, below, lifted, moving, reach)
        return ground[:, :, :-1], ground[:, :, -1]
    plate, opacity = memo(split, picture, moving.unflatten(-1, (1, *size)))
    ground = _background(plate, maps, below, lifted, moving, reach)
    layer = torch.cat([picture - (1 - opacity) * plate, opacity], dim=1)                             # colours times opacity
    front, far = _foreground(layer, maps, whose(known & lifted[:, :-2]), lifted, reach)
    shown = front[:, :, :-1] + (1 - front[:, :, -1:]) * ground[:, :, :-1]
    return shown, torch.lerp(ground[:, :, -1], 1 - far, front[:, :, -1])


def _background(plate: Tensor, maps: Similarity, below: Owned, lifted: Tensor, moving: Tensor, reach: float) -> Tensor:
    """The plate [B, 3, H, W] as the tracks that are not lifted move it, and how near one is: [B, T, 4, H, W].

    What lay under what is `moving` [B, H * W], and is nobody's, goes with the ground; all that lay there counts as far away.
    """
    t, size, nobody = maps.at.shape[2], plate.shape[-2:], lifted.shape[-1] - 2
    whose = torch.where((below.whose == nobody) & moving, nobody + 1, below.whose)
    below = Owned(whose, below.cost, torch.where(moving, .75 + .25 * below.far, below.far))
    kind = torch.where(maps.seen, SEEN, torch.where(maps.placed, HIDDEN, NOBODYS)).int()            # [B, T, N + 2]
    told = torch.where(kind < NOBODYS, 1., torch.where(kind == HIDDEN, .25, 0.))
    if empty(maps.moves() & ~lifted):
        near = (1 - below.far)[:, None] * pick(told, below.whose[:, None])
        return torch.cat([plate[:, None].expand(-1, t, -1, -1, -1), near.unflatten(-1, (1, *size))], dim=2)
    here, who, there, far = forward_warp(maps, below, kind, maps.footprint(FOOT), size, reach)
    near = (1 - far) * pick(told, who)
    ground = torch.cat([sample_at(plate, there), near.unflatten(-1, (1, *size))], dim=2)
    return ground if empty(~here) else fill_holes(ground, here.unflatten(-1, size))


def _foreground(layer: Tensor, maps: Similarity, above: Owned, lifted: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """What was lifted, colours and opacity [B, 4, H, W], as its tracks move it, [B, T, 4, H, W]; how far they are, [B, T, H,
    W]."""
    size, nobody = layer.shape[-2:], lifted.shape[-1] - 2
    covers = layer[:, -1].flatten(1) > HIDES
    above = above._replace(whose=torch.where(covers, above.whose, nobody))
    alone = layer.device.type == "cpu" and len(layer) == 1
    which = covers[0].nonzero()[:, 0] if alone else None                            # a GPU would have to be waited for
    foot = torch.where(maps.shows & lifted[:, None], maps.footprint(FOOT), -1)      # others cover nothing
    kind = torch.full_like(maps.placed, SEEN, dtype=torch.int)
    here, _, there, far = forward_warp(maps, above, kind, foot, size, reach, which)
    return sample_at(layer, there) * here.unflatten(-1, size)[:, :, None], far.unflatten(-1, size)


def forward_warp(maps: Similarity, by: Owned, kind: Tensor, foot: Tensor, size: tuple[int, int], reach: float,
                 which: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What of a picture has come to each place, [B, T, H * W] each: anything? with whom, from where in it, [2, B, T, H * W]
    in pixels, and how far from its track (1: nothing). kind, foot [B, T, N + 2] of each track: see `rasterize`. which [M]:
    no pixels but these go."""
    pixel, t = middles(size, maps.at.device), maps.at.shape[2]
    whose, cost, far = by if which is None else (z[:, which] for z in by)
    to, its = maps.forward(pixel if which is None else pixel[:, which], whose), whose[:, None]
    source = rasterize(to, pick(foot, its), pick(kind, its), (cost / (4 * reach)).clamp(max=1), size)
    here, source = source < whose.shape[-1], source.flatten(1)
    whose, far = F.pad(whose, (0, 1), value=maps.began.shape[-1] - 2), F.pad(far, (0, 1), value=1.)
    who, far = (pick(z, source).unflatten(-1, (t, -1)) for z in (whose, far))
    return here, who, maps.backward(pixel, who), far


def sample_at(x: Tensor, there: Tensor) -> Tensor:
    """x [B, C, H, W] at places [2, B, T, H * W], in pixels -> [B, T, C, H, W]."""
    (h, w), t = x.shape[-2:], there.shape[2]
    where = torch.stack([there[0] * (2 / w) - 1, there[1] * (2 / h) - 1], dim=-1).unflatten(2, (h, w)).flatten(0, 1)
    x = x[:, None].expand(-1, t, -1, -1, -1).flatten(0, 1)
    return F.grid_sample(x, where, padding_mode="border", align_corners=False).unflatten(0, (-1, t))


def fill_holes(ground: Tensor, here: Tensor) -> Tensor:
    """The ground and how near its tracks are [B, T, C + 1, H, W], where none is `here` [B, T, H, W] bool: filled from
    around."""
    hole = ~here & here.flatten(2).any(dim=2)[..., None, None]          # with nothing around, what was there has to do
    hole |= dilate(~dilate(~hole, 1), RIM + 1)                          # no rim where narrower than three pixels
    good = torch.where(hole.flatten(2).all(dim=2)[..., None, None], here, ~hole)[:, :, None]
    filled = fill_smoothly(ground.flatten(0, 1), good.flatten(0, 1)).view_as(ground)
    ground = torch.where(hole[:, :, None], filled, ground)
    return torch.cat([ground[:, :, :-1], ground[:, :, -1:] * torch.where(hole, .25, 1.)[:, :, None]], dim=2)


def moved(tracks: Tracks, picture: Tensor, geometry: Geometry, split: Split = inpaint, memo: Memo | None = None) -> Tensor:
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


def carry(tracks: Tracks, picture: Tensor, encode, geometry: Geometry, start: bool = True, split: Split = inpaint) -> Tensor:
    """What the tracks carry of the given picture, as latents: `encoded`, `moved`. [B, 3, H, W] -> [B, F, C + 4, h, w]"""
    return encoded(moved(tracks, picture, geometry, split), encode, geometry, start)
