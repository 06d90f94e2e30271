"""How tracks go: how they turn and grow, where what is about them was, and what most of them do."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .host import empty

LEVEL = 3.                  # pixels from where the ground would be: still ground, and so are three times its middle error
TWIST = 0.1                 # a hub turns or grows by so much otherwise than the ground


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances between points, [..., M, 2] and [..., N, 2] -> [..., M, N]: each by itself, as torch's shortcut for many (by
    products) loses digits where coordinates are large, and most of them in TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def times(a: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """Ways d, x and y along `dim`, turned by the angle of a and so many times as long as a is: a complex product."""
    (p, q), (x, y) = a.unbind(dim), d.unbind(dim)
    return torch.stack([p * x - q * y, p * y + q * x], dim)


def inverse(a: Tensor) -> Tensor:
    """1 / a for `times`, [2, ...]."""
    return torch.stack([a[0], -a[1]]) / a.square().sum(dim=0)


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


def finite(places: Tensor) -> Tensor:
    """Places [..., 2] in pixels; far away where they are not known."""
    return torch.where(places.isfinite().all(dim=-1, keepdim=True), places, 1e4).clamp(-1e4, 1e4)


def pick(x: Tensor, who: Tensor) -> Tensor:
    """x [..., N] of each track -> [..., M] of each that goes with one, who [M] or [..., M]."""
    return x.gather(-1, who.expand(*x.shape[:-1], -1))


@dataclass(frozen=True)
class Ways:
    """How the N tracks of a clip go, and two more: nobody (N), who stays, and the ground (N + 1). x and y come first."""
    began: Tensor       # [2, N + 2] where in the given picture, in pixels
    at: Tensor          # [2, T, N + 2] and where that is now
    turn: Tensor        # [2, T, N + 2] how what is about it is turned back (`turned_back`)
    placed: Tensor      # [T, N + 2] is it known where it is?
    seen: Tensor        # [T, N + 2] is it to be seen?
    shows: Tensor       # [T, N + 2] or is it off the picture: hidden, but behind nothing?

    @classmethod
    def of(cls, xy: Tensor, visible: Tensor, origin: Tensor, size: tuple[int, int], reach: float) -> Ways:
        """Of tracks xy [T, N, 2], visible [T, N], origin [N, 2], over a picture of so many rows and columns; what is not
        finite in them is not known, and the ground stays, until `lift` says more."""
        known, (h, w) = origin.isfinite().all(dim=-1), size
        placed = xy.isfinite().all(dim=-1) & known
        began = finite(origin)
        at = torch.where(placed[..., None], xy, began).clamp(-1e4, 1e4)
        turn = turned_back(at, began, placed, reach)
        began, at, turn = (F.pad(z.movedim(-1, 0), (0, 2)) for z in (began, at, turn))
        turn[0, :, -2:] = 1
        placed, seen = (F.pad(z, (0, 2)) for z in (placed, visible & placed))
        left = (at < 0).any(dim=0) | (at[0] >= w) | (at[1] >= h)
        return cls(began, at, turn, placed, seen, seen | placed & left)

    def lift(self, area: Tensor, reach: float) -> tuple[Ways, Tensor]:
        """Which tracks go otherwise than the ground at any time that they show, [N + 2] bool; and their ways with the ground
        as most of the picture, of which they own an `area` [N + 2], and each turned with those of its own layer."""
        n, at, turn = len(area) - 2, self.at.clone(), self.turn.clone()
        at[..., n + 1:], turn[..., n + 1:], strays = most_of(self.began[:, None], at, turn, area)
        hub = (turn - turn[..., n + 1:]).square().sum(dim=0)[:, :n] > TWIST ** 2
        began = self.began[:, :n].T
        if not empty(hub):
            hub &= enclosed(began, strays[:, :n], reach)                # in the midst of what turns about it
        lifted = ((strays | F.pad(hub, (0, 2))) & self.shows).any(dim=0)
        turn[..., :n] = turned_back(at[..., :n].movedim(0, -1), began, self.placed[:, :n], reach, lifted[:n]).movedim(-1, 0)
        return replace(self, at=at, turn=turn), lifted

    def stir(self) -> Tensor:
        """Which of them are ever elsewhere than they began, or turned, [N + 2] bool."""
        return ((self.at - self.began[:, None]).abs() > 1e-3).any(dim=0) | \
            ((self.turn[0] - 1).abs() + self.turn[1].abs() > 1e-3)

    def foot(self, pixel: float) -> Tensor:
        """How far what covered so much of a pixel about itself reaches now, [T, N + 2]: as it has grown."""
        return pixel / self.turn.square().sum(dim=0).sqrt()

    def forth(self, pixel: Tensor, whose: Tensor) -> Tensor:
        """Where pixels [2, M] of the given picture are now, each going with its track, whose [M]: [2, T, M]."""
        return pick(self.at, whose) + times(pick(inverse(self.turn), whose), (pixel - pick(self.began, whose))[:, None], 0)

    def back(self, pixel: Tensor, whose: Tensor) -> Tensor:
        """Where in the given picture lies what is at pixels [2, M] now, and goes with a track, whose [T, M]: [2, T, M]."""
        began = self.began[:, None].expand_as(self.at)
        return pick(began, whose) + times(pick(self.turn, whose), pixel[:, None] - pick(self.at, whose), 0)
