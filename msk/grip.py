"""What a hand takes hold of: the whole thing under its point, which then goes along, while the rest of the picture stays.

A lone point says where one spot goes, and nothing of what belongs to it. So the thing is cut out of the picture, by a
network that has learned to (`msk.cutter`) or by its colours (GrabCut); points are laid all over it and along its rim, and
they go where the hand's points on it go: one shifts it, two also turn and size it. Points all over the rest, and close about
each thing, hold it where it is. The model is told of all of them alike: they are tracks. Motion Prompting (2412.02700) lays
a square of tracks about the pointer, and MotionStream's demo has grids that pin the ground; both are placed by hand.

Places are complex numbers x + iy, in pixels.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .cutter import Cutter
from .motion import draw_ids
from .tracks import Tracks

SPOT = 0.06          # of the shorter side: what is so near to a point is likely of the same thing,
NEAR = 0.2           # and what is so near, hangs together with it,
UNLIKE = 16          # and is so far (CIE Lab) from the ground, the median of
AROUND = 0.48        # a window of so many shorter sides
RIM = 0.03           # of the shorter side: the picture's rim is ground
SURE = 0.5           # a cutter's mask, and what it holds likely, overlap by so much at least;
UNSURE = 0.2, 0.8    # what is so likely of it may be of it or not, by its colour
GAP = 0.02           # of the shorter side: twice as far apart lie parts of a thing that a nearer one has cut in two
LOOKED_AT = 160      # pixels of the shorter side of what is looked at
SHARE = 0.004, 0.3   # of the picture: what is hardly more than the point is ground, and by colours what is larger, too
HALO = 0.008         # of the shorter side: what is so near to a thing is neither the thing nor the rest
WITHIN, BESIDE = 0.008, 0.016   # of it: so far inside its outline, and outside, points say where it ends,
APART = 0.047        # and stand so far apart
MOST = 64            # points all over one thing, or thereabouts; those along its rim come on top
REST = 8             # columns and rows of points that hold the rest
SIZES = 0.5, 2.0     # a thing may be made smaller and larger by so much


def can_cut() -> bool:
    try:
        import cv2  # noqa: F401
    except ImportError:
        return False
    return True


def cut(picture: np.ndarray, place: complex, cutter: Cutter | None = None) -> np.ndarray | None:
    """The thing at `place` of a picture [H, W, 3] uint8, as a mask [H, W] bool; None where there is but ground.

    As the cutter has learned it, if it finds something there; where it is unsure, and where there is none, colours decide.
    Raises ImportError without OpenCV.
    """
    if not can_cut():
        raise ImportError('finding things in a picture needs OpenCV: pip install "msk[demo]"')
    if cutter is not None:
        likely = cutter.likely(picture, place)
        if likely[spot(place, likely.shape, 1)].max() > 0.5 and overlap(likely, likely > 0.5) > SURE:
            mask = _with_colours(picture, place, likely)
            return mask if mask.mean() > SHARE[0] else None
    return by_colours(picture, place)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, bool or in [0, 1]; 0 if both are empty."""
    return float(np.minimum(a, b).sum() / max(1e-6, np.maximum(a, b).sum()))


def spot(place: complex, shape: tuple[int, ...], reach: int) -> tuple[slice, slice]:
    """Rows and columns within `reach` of a place, or of the nearest that is in a picture of this shape."""
    y, x = (min(max(int(z), 0), side - 1) for z, side in zip((place.imag, place.real), shape))
    return slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)


def _looked_at(picture: np.ndarray, place: complex) -> tuple[np.ndarray, complex]:
    """A picture as small as it is looked at, and the place in it."""
    import cv2
    height, width = picture.shape[:2]
    scale = min(1.0, LOOKED_AT / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA), place * scale


def _grabbed(small: np.ndarray, kinds: np.ndarray, rounds: int) -> np.ndarray:
    """GrabCut: kinds [h, w] uint8 say of each pixel what it is or may be; which are of the thing."""
    import cv2
    cv2.setRNGSeed(0)
    cv2.grabCut(small, kinds, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(kinds, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _with_colours(picture: np.ndarray, place: complex, likely: np.ndarray) -> np.ndarray:
    """Which pixels are of the thing at `place`: as it is likely, and colours decide between the lines that UNSURE draws."""
    import cv2
    (height, width), (small, at) = likely.shape, _looked_at(picture, place)
    likely = cv2.resize(likely, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    kinds = np.where(likely > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    kinds[likely < UNSURE[0]], kinds[likely > UNSURE[1]] = cv2.GC_BGD, cv2.GC_FGD
    kinds[spot(at, kinds.shape, 1)] = cv2.GC_FGD
    mask = _grabbed(small, kinds, 2) if (kinds % 2 == cv2.GC_BGD).any() else likely > 0.5
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def by_colours(picture: np.ndarray, place: complex) -> np.ndarray | None:
    """`cut` by colours alone: GrabCut, within what hangs together with the place and is unlike the ground around."""
    import cv2
    (height, width), (small, at) = picture.shape[:2], _looked_at(picture, place)
    h, w = small.shape[:2]
    x, y = min(max(int(at.real), 0), w - 1), min(max(int(at.imag), 0), h - 1)
    rows, columns = np.mgrid[:h, :w]
    away, rim = np.hypot(columns - x, rows - y), np.minimum.reduce([columns, rows, w - 1 - columns, h - 1 - rows])
    side, lab = min(h, w), lambda picture: cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    ground = cv2.medianBlur(small, 2 * round(AROUND * side / 2) + 1)
    unlike = _around((np.linalg.norm(lab(small) - lab(ground), axis=-1) > UNLIKE) | (away < 2), x, y)
    likely = np.full((h, w), cv2.GC_PR_BGD, np.uint8)
    likely[(away < SPOT * side) | unlike & (away < NEAR * side)] = cv2.GC_PR_FGD
    likely[(away > side / 2) | (rim < RIM * side) & (away > 2 * SPOT * side)] = cv2.GC_BGD
    likely[away < 2] = cv2.GC_FGD
    mask = _around(_grabbed(small, likely, 3), x, y)
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    outside = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1))[1]
    mask = _around((outside != outside[0, 0])[1:-1, 1:-1], x, y)                            # its holes are of it
    if not SHARE[0] < mask.mean() < SHARE[1]:
        return None
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _around(mask: np.ndarray, x: int, y: int, gap: int = 0) -> np.ndarray:
    """Of a mask the part that hangs together with (x, y), and what is at most twice `gap` from it."""
    import cv2
    parts = cv2.connectedComponents(_grown(mask, gap).astype(np.uint8))[1]
    return mask & (parts == parts[y, x])


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
        mask = _around(mask, int(place.real), int(place.imag), round(GAP * min(mask.shape)))
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
