"""An environment that does exactly what it is asked: the disc under a new track moves with it, everything else stays."""
import time
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw

from msk.config import Geometry

GEOMETRY = Geometry(96, 96, fps=24)
BALL, BALL_AT, RADIUS = (235, 40, 40), (30, 48), 9


def picture(geometry: Geometry = GEOMETRY) -> Image.Image:
    """A red ball on a soft blue ground."""
    y, x = np.mgrid[:geometry.height, :geometry.width]
    ground = np.stack([40 + x * 0.3, 90 + y * 0.4, 140 + x * 0.5], axis=-1).astype(np.uint8)
    image = Image.fromarray(ground)
    (cx, cy), r = BALL_AT, RADIUS
    ImageDraw.Draw(image).ellipse([cx - r, cy - r, cx + r, cy + r], fill=BALL)
    return image


def disc(shape: tuple[int, int] = (GEOMETRY.height, GEOMETRY.width), centre: complex = complex(*BALL_AT),
         radius: float = RADIUS) -> np.ndarray:
    """Where a disc is in a picture of that shape, by default the ball: a mask [H, W] bool."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    return np.abs(x + 1j * y - centre) <= radius


def red_centre(pixels: np.ndarray) -> tuple[float, float] | None:
    """Where the red ball is in [H, W, 3] uint8 pixels: the middle of what is red, x then y."""
    p = pixels.astype(int)
    ys, xs = np.nonzero((p[..., 0] > 150) & (p[..., 1] < 110) & (p[..., 2] < 110))
    return (float(xs.mean()) + 0.5, float(ys.mean()) + 0.5) if len(xs) else None


class ExactStream:
    """The methods of msk.stream.Stream; `cost` seconds for a chunk of all its steps stand for a model's work."""

    steps = 3

    def __init__(self, kit, prompt="", image=None, *, seed=0, cost=0.03, chunk=3):
        self.kit, self.cost, self.chunk = kit, cost, chunk
        self.asked = []                             # the tracks of every step
        self.stepped = []                           # and how many steps each was made in
        self.settled = 0
        self.said = []                              # (chunk before which it was said, prompt)
        self.anchors, self.unanchored = [], []      # chunks before which there was a fresh anchor; and one taken back
        self.reset(prompt, image, seed)

    def reset(self, prompt=None, image=None, seed=None):
        if image is not None:
            self.picture = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        self.index, self.discs, self.stats = 0, {}, {}
        height, width = self.picture.shape[1:]
        self.rows, self.columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")

    @property
    def frames_wanted(self):
        first, last = self.kit.geometry.span(self.index * self.chunk, self.chunk)
        return last - first

    def step(self, tracks=None, steps=None):
        wanted = self.frames_wanted
        time.sleep(self.cost * (steps or self.steps) / self.steps)
        self.stepped.append(steps or self.steps)
        self.asked.append(tracks)
        frames = []
        for t in range(wanted):
            seen = tracks.visible[0, t] if tracks is not None else []
            for n in range(len(seen)):
                if seen[n]:
                    xy = tuple(tracks.xy[0, t, n].tolist())
                    disc = self.discs.setdefault(int(tracks.ids[0, n]), [xy, xy])   # where it was found, where it is
                    disc[1] = xy
            frames.append(self.draw())
        self.index += 1
        return torch.stack(frames)[None]

    def draw(self):
        """Each disc is cut out where it was found, its hole filled from the rim, and laid down where it is."""
        frame, reach = self.picture.clone(), RADIUS + 3
        for (x, y), _ in self.discs.values():
            near = (self.columns - x) ** 2 + (self.rows - y) ** 2
            rim = (near > reach ** 2) & (near < (reach + 3) ** 2)
            frame[:, near <= reach ** 2] = self.picture[:, rim].mean(dim=1, keepdim=True)
        for (x, y), (to_x, to_y) in self.discs.values():
            dx, dy = to_x - x, to_y - y
            inside = (self.columns - to_x) ** 2 + (self.rows - to_y) ** 2 <= reach ** 2
            source_y = (self.rows - dy).long().clamp(0, frame.shape[1] - 1)
            source_x = (self.columns - dx).long().clamp(0, frame.shape[2] - 1)
            moved = self.picture[:, source_y, source_x]
            frame[:, inside] = moved[:, inside]
        return frame

    def say(self, prompt):
        self.said.append((self.index, prompt))

    def anchor(self, on=True):
        (self.anchors if on else self.unanchored).append(self.index)

    @property
    def memory(self):
        return {"sink": [0][:self.index], "window": [self.index - 1][:self.index - 1]}

    def settle(self):
        self.settled += 1


def exact_kit(geometry: Geometry = GEOMETRY):
    return SimpleNamespace(name="exact", geometry=geometry, preset=None)
