"""What a hand takes hold of: the whole thing under its point, which then goes along, while the rest of the picture stays.

A lone point says where one spot goes, and nothing of what belongs to it. So the thing is cut out of the picture
(`msk.cutter`); points are laid all over it and along its rim, and they go where the hand's points on it go: one shifts it,
two also turn and size it. Points all over the rest, and close about each thing, hold it where it is. The model is told of
all of them alike: they are tracks. Motion Prompting (2412.02700) lays a square of tracks about the pointer, and
MotionStream's demo has grids that pin the ground; both are placed by hand.

Places are complex numbers x + iy, in pixels.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .cutter import SHARE, cut, part_at
from .motion import draw_ids
from .tracks import Tracks

GAP = 0.02           # of the shorter side: twice as far apart lie parts of a thing that a nearer one has cut in two
HALO = 0.008         # of the shorter side: what is so near to a thing is neither the thing nor the rest
WITHIN, BESIDE = 0.008, 0.016   # of it: so far inside its outline, and outside, points say where it ends,
APART = 0.047        # and stand so far apart
MOST = 64            # points all over one thing, or thereabouts; those along its rim come on top
REST = 8             # columns and rows of points that hold the rest
SIZES = 0.5, 2.0     # a thing may be made smaller and larger by so much


def spread(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Places [N] complex all over a mask [H, W], `spacing` apart in columns and rows."""
    height, width = mask.shape
    columns, rows = max(1, round(width / spacing)), max(1, round(height / spacing))
    x, y = np.meshgrid((np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows)
    places = (x + 1j * y).ravel()
    return places[_at(mask, places)]


def outline(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask [H, W]; it has none where it leaves the picture."""
    return mask & ~_grown(mask, -1)


def thinned(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Places [N] complex of a mask [H, W], one in each square of `spacing` pixels that it has a part in."""
    y, x = np.nonzero(mask)
    places = x + 0.5 + 1j * (y + 0.5)
    column, row = x // spacing, y // spacing
    off = np.maximum(abs(x + 0.5 - (column + 0.5) * spacing), abs(y + 0.5 - (row + 0.5) * spacing))
    order = np.lexsort((off, column, row))                              # in each square, the one nearest to its middle
    first = np.unique(np.stack([row, column])[:, order], axis=1, return_index=True)[1]
    return places[order][first]


def _grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask [H, W], and what is within `reach` rows and columns of it; without what is so near to its outline, if reach is
    negative. What lies outside the picture goes on as its rim."""
    if reach < 0:
        return ~_grown(~mask, -reach)
    wide = np.pad(mask, reach, mode="edge")
    for axis in (0, 1):
        wide = np.logical_or.reduce([np.roll(wide, k, axis) for k in range(-reach, reach + 1)])
    return wide[reach:wide.shape[0] - reach, reach:wide.shape[1] - reach]


def _at(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The mask's values at places [...] complex; False outside the picture."""
    here = inside(places, mask.shape[::-1])
    return here & mask[np.where(here, places.imag, 0).astype(int), np.where(here, places.real, 0).astype(int)]


@dataclass(eq=False)
class Thing:
    """A part of the picture that moves as one: what lay at z in the picture is at turn * z + shift."""
    mask: np.ndarray                    # [H, W] bool: where it lies in the picture
    origins: np.ndarray                 # [N] complex: its points there
    seed: complex = 0j                  # where it was taken hold of, in the picture
    turn: complex = 1 + 0j
    shift: complex = 0j
    depth: float | None = None          # as far as a camera that flies has come to know it
    ids: list[int] = field(default_factory=list)        # of its points, for the model
    beside: Thing | None = None         # points of the rest close about it, which move as one, too

    @classmethod
    def at(cls, picture: np.ndarray, place: complex, spacing: float, known: list[Thing] = (), cut=cut) -> Thing | None:
        """The thing at a place of the picture; None where there is but ground. What is known already stays what it is."""
        mask = cut(picture, place) if inside(np.array(place), picture.shape[1::-1]) else None
        for other in known if mask is not None else ():
            mask = mask & ~other.mask
        if mask is None or not mask[int(place.imag), int(place.real)]:
            return None
        mask = mask & part_at(_grown(mask, round(GAP * min(mask.shape))), int(place.real), int(place.imag))
        if mask.mean() <= SHARE[0]:
            return None
        side = min(mask.shape)
        halo, within, beyond = (max(1, round(far * side)) for far in (HALO, WITHIN, BESIDE))
        beyond = max(beyond, halo + 1)
        core = _grown(mask, -within)
        rim = outline(core) | mask & ~_grown(core, within)                          # and what is as thin as a thread
        origins = np.concatenate([spread(mask, max(spacing, (mask.sum() / MOST) ** 0.5)), thinned(rim, APART * side)])
        beside = thinned(outline(_grown(mask, beyond)), APART * side)
        about = cls(np.zeros_like(mask), beside) if len(beside) else None
        return cls(mask, origins if len(origins) else np.array([place]), place, beside=about)

    def __post_init__(self):
        self.wide = _grown(self.mask, max(1, round(HALO * min(self.mask.shape))))   # with what may be of it, so near it is

    def outlines(self) -> list[np.ndarray]:
        """Corners [K] complex of the outline of each of its parts, where they are now."""
        import cv2
        found = cv2.findContours(self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        lines = (cv2.approxPolyDP(line, 0.006 * min(self.mask.shape), True)[:, 0] for line in found)
        return [self.turn * (line @ np.array([1, 1j]) + (0.5 + 0.5j)) + self.shift for line in lines]

    def lead(self, origins, places, longest: float | None = None) -> tuple[complex, complex]:
        """Be where the hand's points on it want to be, as near as shift, turn and size allow: its turn and shift.

        origins, places [K] complex. One point shifts it, and leaves its turn as it is. longest: step of its middle, and of
        its rim about that, in pixels; None: any.
        """
        was, middle = self.turn, self.here().mean()
        origins, places = np.asarray(origins), np.asarray(places)
        a, b = origins.mean(), places.mean()
        apart = origins - a
        weight = (np.abs(apart) ** 2).sum()
        if len(origins) > 1 and weight > (0.02 * min(self.mask.shape)) ** 2:
            turn = complex((apart.conj() * (places - b)).sum() / weight)
            if abs(turn) > 1e-6:
                self.turn = turn / abs(turn) * min(max(abs(turn), SIZES[0]), SIZES[1])
        if longest is not None:
            radius = max(1.0, float(np.abs(self.origins - self.origins.mean()).max()))
            self.turn = was + _short(self.turn - was, longest / radius)
        self.shift = complex(b - self.turn * a)
        if longest is not None:
            step = complex(self.here().mean() - middle)
            self.shift += _short(step, longest) - step
        return self.turn, self.shift

    def here(self, way: tuple[complex, complex] | None = None) -> np.ndarray:
        """Where its points are, [N] complex."""
        turn, shift = way or (self.turn, self.shift)
        return turn * self.origins + shift

    def origin(self, place: complex) -> complex:
        """What of the picture is at this place, if the thing is there."""
        return (place - self.shift) / self.turn

    def covers(self, places: np.ndarray, way: tuple[complex, complex] | None = None, wide: bool = True) -> np.ndarray:
        """Which of the places [...] complex it covers; wide: or nearly."""
        turn, shift = way or (self.turn, self.shift)
        return _at(self.wide if wide else self.mask, (places - shift) / turn)


def _short(step: complex, longest: float) -> complex:
    return step * longest / abs(step) if abs(step) > longest else step


def inside(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which places [...] complex are in a picture of this (width, height)."""
    return (places.real >= 0) & (places.imag >= 0) & (places.real < size[0]) & (places.imag < size[1])


def speaking(things: list[Thing], ways: list[tuple], rest: np.ndarray, spots: list[complex], size: tuple[int, int]
             ) -> list[np.ndarray]:
    """In one frame, which points of each thing (nearest first), and last of the rest [M] complex, are to be seen.

    Not those outside the picture, nor what lies under a nearer thing; and the rest keeps away from the hand's own spots.
    """
    speaks = []
    for k, here in enumerate([*(thing.here(way) for thing, way in zip(things, ways)), rest]):
        speaks.append(inside(here, size))
        for thing, way in zip(things[:k], ways[:k]):
            speaks[-1] &= ~thing.covers(here, way)
    if len(spots):
        speaks[-1] &= np.abs(rest[:, None] - np.array(spots)).min(axis=1) > max(size) / REST
    return speaks


def whole(tracks: Tracks, picture: torch.Tensor, stride: int, max_id: int = 16384, rest: bool = True, seed: int = 0,
          cut=cut) -> Tracks:
    """A hand's few tracks, and with them those of the things they take hold of and, with `rest`, of all that stays.

    tracks [1, T, N]; picture [3, H, W] in [0, 1], where they begin; stride: pixels to a latent cell. A track that moves
    takes hold of what is under its origin, one that stays is a hinge of it; a thing that is let go stays where it was left.
    A hidden track has let go, unless it is outside the picture: there it leads on, unseen.
    """
    picture = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    as_complex = lambda z: z.double().cpu().numpy() @ np.array([1, 1j])
    xy, origins, lit = as_complex(tracks.xy[0]), as_complex(tracks.origins()[0]), tracks.visible[0].cpu().numpy()
    size = picture.shape[1::-1]
    leads = lit | np.isfinite(xy) & ~inside(xy, size)
    things, whose = [], [None] * len(origins)
    moves = [lit[:, n].any() and np.abs(xy[lit[:, n], n] - origins[n]).max() > 1 for n in range(len(origins))]
    for n in sorted(range(len(origins)), key=lambda n: not moves[n]):
        whose[n] = next((thing for thing in things if thing.covers(origins[n], wide=False)), None)
        if whose[n] is None and moves[n]:
            whose[n] = Thing.at(picture, complex(origins[n]), stride, things, cut)
            things += [whose[n]] if whose[n] is not None else []
    loose = [spread(np.ones(picture.shape[:2], bool), max(size) / REST), *(t.beside.origins for t in things if t.beside)]
    loose = np.concatenate(loose) if rest else np.zeros(0, complex)
    for thing in things:
        loose = loose[~thing.covers(loose)]
    places, speaks = [], []
    for now, on, leading in zip(xy, lit, leads):
        ways = []
        for thing in things:
            led = [n for n in np.flatnonzero(leading) if whose[n] is thing]
            ways.append(thing.lead(origins[led], now[led]) if led else (thing.turn, thing.shift))
        places.append(np.concatenate([*(thing.here(way) for thing, way in zip(things, ways)), loose]))
        spots = [now[n] for n in np.flatnonzero(on) if whose[n] is None]
        speaks.append(np.concatenate(speaking(things, ways, loose, spots, size)))
    began = np.concatenate([*(thing.origins for thing in things), loose])
    as_pairs = lambda z: torch.from_numpy(np.stack([z.real, z.imag], axis=-1)).float()[None]
    taken = set(tracks.ids[0].tolist())
    ids = draw_ids(1, max_id, max_id, torch.Generator().manual_seed(seed))[0].tolist()
    ids = [i for i in ids if i not in taken][:len(began)]
    told = Tracks(as_pairs(np.stack(places)), torch.from_numpy(np.stack(speaks))[None], torch.tensor([ids]), as_pairs(began))
    return tracks.concat(told)
