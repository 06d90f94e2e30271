"""Similarity transforms of tracks: how what is about each shifts, turns and grows, and what most of the picture does.

A rotation with a scale is a complex number here, [2, ...]: real and imaginary part.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .host import empty

LEVEL = 3.                  # pixels from where the ground would be: still ground, and so are three times its middle error
TWIST = 0.1                 # a hub turns or grows by so much otherwise than the ground


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances between points, [2, ..., M] and [2, ..., N] -> [..., M, N]: each by itself, as torch's shortcut for many (by
    products) loses digits where coordinates are large, and most of them in TF32."""
    return torch.cdist(a.movedim(0, -1), b.movedim(0, -1), compute_mode="donot_use_mm_for_euclid_dist")


def pick(x: Tensor, who: Tensor) -> Tensor:
    """x [..., N] of each track -> [..., M] of each that goes with one, who [..., M]."""
    return x.gather(-1, who.expand(*x.shape[:-1], -1))


def cmul(a: Tensor, d: Tensor) -> Tensor:
    """a d, [2, ...]: d turned by the angle of a, and so many times as long as a is."""
    (p, q), (x, y) = a, d
    return torch.stack([p * x - q * y, p * y + q * x])


def conj(a: Tensor) -> Tensor:
    """a turned the other way, [2, ...]."""
    return torch.stack([a[0], -a[1]])


def cinv(a: Tensor) -> Tensor:
    """1 / a, [2, ...]."""
    return conj(a) / a.square().sum(dim=0)


def backward_linear(xy: Tensor, began: Tensor, known: Tensor, reach: float, layer: Tensor | None = None, count: int = 8,
                alike: float = 0.2) -> Tensor:
    """a [2, ..., T, N], for `cmul`: the linear part of each track's way back. What is at xy + d now, about it, was at
    began + a d; (1, 0) if nothing turned or grew.

    xy [2, ..., T, N], where `known` [..., T, N]; began [2, ..., N]; all in pixels. Of its `count` nearest neighbours, those
    at most half as far again as the first (which counts as half a `reach` away at least, and a whole one at most), each
    gives an a of its own, and the most that are alike are believed: those that went with it, as across an edge no two are
    alike but by chance. If they are fewer than three, none is. Nothing is believed to be less than a fifth or more than
    thrice its size. layer [..., N]: where it is known, those of its own alone are heard.
    """
    count, none = min(count, began.shape[-1] - 1), 1 - torch.arange(2., device=xy.device)   # made there: nobody waits for it
    none = none.view(2, *[1] * (xy.ndim - 1))
    if count < 3:
        return none.expand_as(xy)
    away = distances(began, began)
    away.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    if layer is not None:
        away = away.masked_fill(layer[..., None, :] != layer[..., None], torch.inf)
    away, near = away.topk(count, largest=False)                                                    # [..., N, K]
    of = lambda z, who: pick(z, who.flatten(-2)).unflatten(-1, (-1, count))
    heard = of(known, near[..., None, :, :]) & known[..., None]                                     # [..., T, N, K]
    heard &= (away < 1.5 * away[..., :1].clamp(reach / 2, reach))[..., None, :, :]
    now, then = of(xy, near[..., None, :, :]) - xy[..., None], (of(began, near) - began[..., None])[..., None, :, :]
    square = then.square().sum(dim=0).clamp_min(1)
    each = cmul(conj(then), now) / square                                          # now / then: it does not go to 0
    gap = (each[..., None, :] - each[..., None]).square().sum(dim=0)                                # [..., T, N, K, K]
    same = (gap < alike ** 2) & heard[..., None, :] & heard[..., None]
    votes, best = same.sum(dim=-1).max(dim=-1)                                                      # [..., T, N]
    same = same.gather(-2, best[..., None, None].expand(*best.shape, 1, count))[..., 0, :] * square
    mean = (same * each).sum(dim=-1) / same.sum(dim=-1).clamp_min(1)
    size = mean.square().sum(dim=0).sqrt()
    return torch.where(votes >= 3, conj(mean) / (size.clamp_min(1e-3) * size.clamp(0.2, 3)), none)


def median(x: Tensor, weight: Tensor) -> Tensor:
    """The middle of x [..., N] where each weighs something, [N] -> [..., 1]."""
    x, order = x.sort(dim=-1)
    share = weight.expand_as(x).gather(-1, order).cumsum(dim=-1)
    at = (share < share[..., -1:] / 2).sum(dim=-1, keepdim=True).clamp(max=x.shape[-1] - 1)
    return x.gather(-1, at)


def dominant_motion(began: Tensor, at: Tensor, turn: Tensor, area: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What most of the picture does, as a track would: where what began at (0, 0) is, and how it is turned back, [2, ..., T,
    1] each; and which tracks move otherwise, [..., T, N] bool.

    It shifts, turns and grows; each is the middle of what tracks do, by the `area` [..., 1, N] of the picture they own.
    began [2, ..., 1, N], at, turn [2, ..., T, N]: where they were, are, and how they are turned back. A camera's depth is no
    straying (`LEVEL`).
    """
    most = median(turn, area)                                                   # ground at p was at most * p + off
    off = median(began - cmul(most, at), area)
    error = (began - cmul(most, at) - off).square().sum(dim=0).sqrt()
    return -cmul(cinv(most), off), most, error > (3 * median(error, area)).clamp(min=LEVEL)


def enclosed(began: Tensor, mask: Tensor, reach: float) -> Tensor:
    """Which tracks, began [2, ..., N], have one of `mask` [..., T, N] bool as the nearest on each side, within reach:
    [..., T, N] bool."""
    x, y = began[..., None, :] - began[..., None]                                                   # [..., N, N]
    away, inside = distances(began, began), torch.ones_like(mask)
    for side in (x < 0, x > 0, y < 0, y > 0):
        least, nearest = away.masked_fill(~side, torch.inf).min(dim=-1)
        inside &= pick(mask, nearest[..., None, :]) & (least < reach)[..., None, :]
    return inside


def finite(places: Tensor) -> Tensor:
    """Places [..., 2] in pixels; far away where they are not known."""
    return torch.where(places.isfinite().all(dim=-1, keepdim=True), places, 1e4).clamp(-1e4, 1e4)


@dataclass(frozen=True)
class Similarity:
    """The maps of N tracks of B clips, from the given picture to each frame, and of two more: nobody (N), who stays, and the
    ground (N + 1). x and y come first."""
    began: Tensor       # [2, B, N + 2] where in the given picture, in pixels
    at: Tensor          # [2, B, T, N + 2] and where that is now
    turn: Tensor        # [2, B, T, N + 2] the linear part of the way back (`backward_linear`)
    placed: Tensor      # [B, T, N + 2] is it known where it is?
    seen: Tensor        # [B, T, N + 2] is it to be seen?
    shows: Tensor       # [B, T, N + 2] or is it off the picture: hidden, but behind nothing?

    @classmethod
    def of(cls, xy: Tensor, visible: Tensor, origin: Tensor, size: tuple[int, int], reach: float) -> Similarity:
        """Of tracks xy [B, T, N, 2], visible [B, T, N], origin [B, N, 2], over pictures of so many rows and columns; what is
        not finite in them is not known, and the ground stays, until `lift` says more."""
        known, (h, w) = origin.isfinite().all(dim=-1), size
        placed = xy.isfinite().all(dim=-1) & known[:, None]
        began = finite(origin)
        at = torch.where(placed[..., None], xy, began[:, None]).clamp(-1e4, 1e4)
        began, at = began.movedim(-1, 0), at.movedim(-1, 0)
        turn = backward_linear(at, began, placed, reach)
        began, at, turn = (F.pad(z, (0, 2)) for z in (began, at, turn))
        turn[0, ..., -2:] = 1
        placed, seen = (F.pad(z, (0, 2)) for z in (placed, visible & placed))
        left = (at < 0).any(dim=0) | (at[0] >= w) | (at[1] >= h)
        return cls(began, at, turn, placed, seen, seen | placed & left)

    def lift(self, area: Tensor, reach: float) -> tuple[Similarity, Tensor]:
        """Which tracks go otherwise than the ground at any time that they show, [B, N + 2] bool; and their ways, with the
        ground as most of the picture, of which they own an `area` [B, N + 2], and each turned with those of its own layer.
        """
        n, at, turn = area.shape[-1] - 2, self.at.clone(), self.turn.clone()
        at[..., n + 1:], turn[..., n + 1:], strays = dominant_motion(self.began[:, :, None], at, turn, area[:, None])
        hub = (turn - turn[..., n + 1:]).square().sum(dim=0)[..., :n] > TWIST ** 2
        began = self.began[..., :n]
        if not empty(hub):
            hub &= enclosed(began, strays[..., :n], reach)              # in the midst of what turns about it
        lifted = ((strays | F.pad(hub, (0, 2))) & self.shows).any(dim=1)
        turn[..., :n] = backward_linear(at[..., :n], began, self.placed[..., :n], reach, lifted[:, :n])
        return replace(self, at=at, turn=turn), lifted

    def moves(self) -> Tensor:
        """Which of them are ever elsewhere than they began, or turned, [B, N + 2] bool."""
        return ((self.at - self.began[:, :, None]).abs() > 1e-3).any(dim=0).any(dim=1) | \
            ((self.turn[0] - 1).abs() + self.turn[1].abs() > 1e-3).any(dim=1)

    def footprint(self, pixel: float) -> Tensor:
        """How far what covered so much of a pixel about itself reaches now, [B, T, N + 2]: as it has grown."""
        return pixel / self.turn.square().sum(dim=0).sqrt()

    def forward(self, pixel: Tensor, whose: Tensor) -> Tensor:
        """Where pixels [2, M] of the given picture are now, each going with its track, whose [B, M]: [2, B, T, M]."""
        away, whose = (pixel[:, None] - pick(self.began, whose))[:, :, None], whose[:, None]
        return pick(self.at, whose) + cmul(pick(cinv(self.turn), whose), away)

    def backward(self, pixel: Tensor, whose: Tensor) -> Tensor:
        """Where in the given picture lies what is at pixels [2, M] now, going with tracks, whose [B, T, M]: [2, B, T, M]."""
        began = self.began[:, :, None].expand_as(self.at)
        return pick(began, whose) + cmul(pick(self.turn, whose), pixel[:, None, None] - pick(self.at, whose))
