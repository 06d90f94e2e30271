"""Does a hand take hold of a whole thing, and of no more? Pictures of held-out scenes, of which each pixel's layer is known.

Every thing is touched twice, in its middle and at a place of it drawn by lot; the ground once, by lot. What a hand takes
hold of (`grip.Thing`, as `Kit.cut` finds it) is held against what is to be seen of the thing: their overlap is intersection
over union. Beside it stands the cut by colours alone (`cutter.by_colours`), which any kit falls back on.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .cutter import SHARE, by_colours, can_cut, overlap, spot
from .evaluate import header, held_out, keep, save_strip
from .grip import Thing
from .kit import Kit, load
from .viz import grid, strip
from .world import HELD_OUT, World

LEAST = SHARE[0]    # of the picture: what shows less is not touched
RIGHT, LOST = .9, .5    # overlaps above which a thing counts as cut out whole, and below which as missed
SHOWN = 8           # things on the film strip


@dataclass
class Hits:
    """What was measured of one way to cut: overlaps, and whether nothing was found on the ground."""
    middle: list[float] = field(default_factory=list)
    anywhere: list[float] = field(default_factory=list)
    ground: list[bool] = field(default_factory=list)

    def summary(self) -> dict:
        """Of both ways to touch a thing the mean overlap, the median and the shares that are RIGHT and LOST; of the ground
        the share where nothing is found; how many things and grounds."""
        told = {"things": len(self.middle), "grounds": len(self.ground)}
        for name in ("middle", "anywhere"):
            values = np.array(getattr(self, name))
            told |= {name: values.mean().item(), f"{name}_median": float(np.median(values)),
                     f"{name}_whole": (values > RIGHT).mean().item(),
                     f"{name}_lost": (values < LOST).mean().item()} if len(values) else {name: None}
        return told | {"ground": float(np.mean(self.ground)) if self.ground else None}


def middle(mask: np.ndarray) -> complex:
    """The place of a mask that is farthest from its outline."""
    import cv2
    row, column = divmod(int(cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1].argmax()),
                         mask.shape[1])
    return complex(column + .5, row + .5)


def anywhere(mask: np.ndarray, dice: np.random.Generator) -> complex:
    """A place of a mask, by lot."""
    places = np.argwhere(mask)
    row, column = places[dice.integers(len(places))]
    return complex(column + .5, row + .5)


def run(model: str | Kit = "tiny", clips: int = 256, json_path=None, *, seed: int = HELD_OUT, level: str = "calm",
        strips=None, device=None, quiet: bool = False) -> dict:
    """Touch all things in so many pictures, and print the table: {"rows": {"kit": Hits.summary, "colours": the same}}.

    strips: a folder for a picture of the first things touched anywhere: as they are, by the kit, by colours, truly.
    """
    held_out(seed)
    if not can_cut():
        raise ImportError('finding things in a picture needs OpenCV: pip install "msk[demo]"')
    kit = model if isinstance(model, Kit) else load(model, device=device)
    world, ways = World(kit.geometry, level), {"kit": kit.cut, "colours": by_colours}
    hits, tiles = {name: Hits() for name in ways}, []

    def taken(name: str, picture: np.ndarray, place: complex) -> np.ndarray | None:
        thing = Thing.at(picture, place, kit.geometry.stride, cut=ways[name])
        return thing and thing.mask

    report = header("cut", kit, level=level, pictures=0, seed=seed)
    report["rows"] = {name: hit.summary() for name, hit in hits.items()}

    def rounds(bar):
        for number in range(seed, seed + clips):
            dice = np.random.default_rng(number)
            scene, _ = world.scene(1, 1, number)
            frame, layer = scene.render()[0, 0], scene.layers()[0].numpy()
            picture = (frame * 255).round().byte().permute(1, 2, 0).numpy()
            for k in np.unique(layer):
                truth = layer == k
                if truth.mean() <= LEAST:
                    continue
                place = anywhere(truth, dice)
                found = {name: taken(name, picture, place) for name in ways}
                for name, mask in found.items():
                    if k == 0:
                        hits[name].ground.append(mask is None)
                    else:
                        hits[name].anywhere.append(overlap(mask, truth))
                        hits[name].middle.append(overlap(taken(name, picture, middle(truth)), truth))
                if k and strips and len(tiles) < SHOWN:
                    tiles.append(strip(torch.stack([touched(frame, place), *(lit(frame, mask) for mask in found.values()),
                                                    lit(frame, truth)]), 4))
            report["pictures"] += 1
            report["rows"] = {name: hit.summary() for name, hit in hits.items()}
            bar.update()
            yield

    report = keep(report, rounds, clips, json_path, table, quiet, unit="picture")
    if tiles:
        save_strip(grid(tiles, ["touched; cut by the kit, by colours; what there is"] * 2, columns=2), strips, "cut")
    return report


def lit(frame: Tensor, mask: np.ndarray | None) -> Tensor:
    """A frame [3, H, W], dim where the mask is not."""
    return frame * (.2 + .8 * torch.from_numpy(mask)) if mask is not None else frame * .2


def touched(frame: Tensor, place: complex) -> Tensor:
    """A frame with a red spot where it was touched."""
    frame = frame.clone()
    red = frame[:, *spot(place, frame.shape[1:], max(1, frame.shape[-1] // 64))]
    red[0], red[1:] = 1, 0
    return frame


def table(report: dict) -> str:
    """The rows as people read them."""
    lines = [f"what hands take hold of, {report['model']} ({report['level']}) at {report['width']}x{report['height']}, "
             f"{report['pictures']} pictures",
             "overlap of what is cut out with what is to be seen of the thing: mean, median, share above .9, below .5",
             f"{'':<10}{'in its middle':>29}{'anywhere on it':>29}{'nothing on ground':>20}{'things':>8}"]
    for name, row in report["rows"].items():
        if row["things"]:
            parts = "".join(f"{row[touch]:>10.3f}{row[f'{touch}_median']:>7.3f}{row[f'{touch}_whole']:>7.2f}"
                            f"{row[f'{touch}_lost']:>5.2f}" for touch in ("middle", "anywhere"))
            nothing = f"{row['ground']:>20.2f}" if row["ground"] is not None else f"{'-':>20}"
            lines.append(f"{name:<10}{parts}{nothing}{row['things']:>8}")
    return "\n".join(lines)
