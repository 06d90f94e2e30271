"""Which pixels belong to the thing under a point: as a network has learned it, and by colours where that is not sure.

Places are complex numbers x + iy, in pixels.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import UNet

SIDE = 128          # pixels of the shorter side of what is looked at
HEAD = 16           # channels of what a point asks
MIRRORS = (), (-1,), (-2,), (-1, -2)           # axes turned about
SURE = 0.5          # a cutter's mask, and what it holds likely, overlap by so much at least;
UNSURE = 0.2, 0.8   # what is so likely of it may be of it or not, by its colour
SHARE = 0.004, 0.3  # of the picture: what is hardly more than the point is ground, and by colours what is larger, too
LOOKED_AT = 160     # pixels of the shorter side of what is looked at for its colours
SPOT = 0.06         # of the shorter side: what is so near to a point is likely of the same thing,
NEAR = 0.2          # and what is so near, hangs together with it,
UNLIKE = 16         # and is so far (CIE Lab) from the ground, the median of
AROUND = 0.48       # a window of so many shorter sides
RIM = 0.03          # of the shorter side: the picture's rim is ground


class Cutter(UNet):
    """A U-Net looks at the picture once; what it sees at a point then says what to ask of every other pixel.

    Colours alone cannot say where one thing ends and another of its colours begins, nor that stripes are of one thing. As in
    CondInst (2003.05664) the question is three small layers whose weights the point makes for itself, so a picture is taught
    by many points for the price of one.
    """

    def __init__(self, width: int, levels: int = 4):
        super().__init__(3, width, levels)
        self.sizes = [(width + 3, HEAD), (HEAD, HEAD), (HEAD, 4)]               # of what a point asks: channels in, out
        self.asks = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                  nn.Linear(4 * width, sum(a * b + b for a, b in self.sizes)))

    def size(self, height: int, width: int) -> list[int]:
        """Rows and columns in which a picture of that size is looked at."""
        return [max(1, round(side * SIDE / min(height, width) / self.unit)) * self.unit for side in (height, width)]

    def look(self, pictures: Tensor) -> Tensor:
        """pictures [B, 3, H, W] in [0, 1] -> what is seen, [B, C, H / 2, W / 2]."""
        return super().look(pictures - .5)

    def forward(self, pictures: Tensor, places: Tensor) -> Tensor:
        """pictures [B, 3, H, W] in [0, 1], places [B, K, 2] in pixels, x then y -> logits [B, K, H, W]."""
        return self.ask(self.look(pictures), places)

    def ask(self, z: Tensor, places: Tensor) -> Tensor:
        """`forward`, of what is seen."""
        count, (h, w) = places.shape[1], z.shape[-2:]
        at = places / torch.stack([places.new_full((), side) for side in (w, h)]) - 1                   # [-1, 1]
        own = F.grid_sample(z.float(), at[:, :, None].float(), padding_mode="border", align_corners=False)[..., 0].mT
        line = lambda n: 2 * torch.arange(n, device=z.device) + 1.
        away = torch.stack(torch.meshgrid(line(w), line(h), indexing="xy")).flatten(1) - places[..., None]
        away = away / min(h, w)                                                                     # [B, K, 2, h w]
        away = torch.cat([away, away.square().sum(dim=2, keepdim=True).sqrt()], dim=2)

        asks = self.asks(own).split([a * b + b for a, b in self.sizes], dim=-1)
        (first, bias), *others = (part.split([a * b, b], dim=-1) for part, (a, b) in zip(asks, self.sizes))
        of_z, of_away = first.unflatten(-1, (HEAD, -1)).split([z.shape[1], 3], dim=-1)      # [B, K, HEAD, C], [.., 3]
        x = (of_z.flatten(1, 2) @ z.flatten(2)).unflatten(1, (count, HEAD)) / z.shape[1] ** .5
        x = x + of_away @ away + bias[..., None]                                                    # [B, K, HEAD, h w]
        for weight, bias in others:
            x = weight.unflatten(-1, (-1, HEAD)) / HEAD ** .5 @ F.silu(x) + bias[..., None]
        return F.pixel_shuffle(x.unflatten(-1, (h, w)), 2)[:, :, 0]

    @torch.no_grad()
    def likely(self, picture: np.ndarray, place: complex, more: int = 15) -> np.ndarray:
        """How likely each pixel of a picture [H, W, 3] uint8 is of the thing at `place`: [H, W] in [0, 1].

        The picture is looked at as it is and in its mirrors; then so many more places of what is found are asked about: what
        one place misses another may know. An answer counts by the square of its overlap with the first one.
        """
        (h, w), device = picture.shape[:2], self.first.weight.device
        seen = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)[None] / 255
        small = self.size(h, w)
        if small != [h, w]:
            seen = F.interpolate(seen, size=small, mode="bilinear", antialias=True)
        z = self.look(torch.cat([seen.flip(dims) for dims in MIRRORS]))
        size = torch.tensor(small[::-1], device=device, dtype=torch.float32)

        def answers(places: Tensor) -> Tensor:
            """[K, 2] -> logits [K, H, W], the mean of all mirrors."""
            across = torch.tensor([[-1 in dims, -2 in dims] for dims in MIRRORS], device=device)[:, None]       # [M, 1, 2]
            logits = self.ask(z, torch.where(across, size - places, places))
            return torch.stack([one.flip(dims) for one, dims in zip(logits, MIRRORS)]).mean(dim=0)

        at = torch.tensor([[place.real / w, place.imag / h]], device=device, dtype=torch.float32) * size
        found = answers(at)
        inside = (found[0] > 0).nonzero().flip(1) + .5
        if more and len(inside):
            each = torch.linspace(0, len(inside) - 1, more, device=device).round().long()
            found = torch.cat([found, answers(inside[each])])
        each = found.sigmoid()
        least, most = (z.sum(dim=(1, 2)) for z in (torch.minimum(each, each[:1]), torch.maximum(each, each[:1])))
        weight = (least / most).square()[:, None, None]
        likely = (weight * each).sum(dim=0) / weight.sum()
        if small != [h, w]:
            likely = F.interpolate(likely[None, None], size=(h, w), mode="bilinear")[0, 0]
        return likely.cpu().numpy()


# -- a thing in a picture ---------------------------------------------------------------------------------------------

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


def overlap(a: np.ndarray | None, b: np.ndarray) -> float:
    """Intersection over union of two masks, bool or in [0, 1]; 0 if both are empty, or one is none."""
    if a is None:
        return 0.
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
    unlike = part_at((np.linalg.norm(lab(small) - lab(ground), axis=-1) > UNLIKE) | (away < 2), x, y)
    likely = np.full((h, w), cv2.GC_PR_BGD, np.uint8)
    likely[(away < SPOT * side) | unlike & (away < NEAR * side)] = cv2.GC_PR_FGD
    likely[(away > side / 2) | (rim < RIM * side) & (away > 2 * SPOT * side)] = cv2.GC_BGD
    likely[away < 2] = cv2.GC_FGD
    mask = part_at(_grabbed(small, likely, 3), x, y)
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    outside = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1))[1]
    mask = part_at((outside != outside[0, 0])[1:-1, 1:-1], x, y)                            # its holes are of it
    if not SHARE[0] < mask.mean() < SHARE[1]:
        return None
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def part_at(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """Of a mask the part that hangs together with (x, y)."""
    import cv2
    parts = cv2.connectedComponents(mask.astype(np.uint8))[1]
    return mask & (parts == parts[y, x])
