"""Camera moves as point tracks: a grid of points goes where a camera would carry it.

Flat moves (pan, zoom, roll) act on the picture as a whole. Moves in space (truck, dolly, orbit, or any `path` of poses)
act on points at a depth: one distance for all, or a depth map [H, W], with which near points also hide far ones.
MotionStream (2511.01266 v5), section 4.2: camera control by a grid of tracks, from depth and poses.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .config import Geometry
from .tracks import Tracks

Grid = tuple[int, int] | Tensor         # (columns, rows) of a grid over the picture, or points [N, 2] in pixels


def pan(geometry: Geometry, frames: int, right: float = 0, down: float = 0, grid: Grid = (12, 12),
        ease: bool = False) -> Tracks:
    """The camera turns `right` and `down` by so many pixels, so the picture goes left and up by as many."""
    return _flat(geometry, frames, grid, ease, lambda xy, s: xy - s * xy.new_tensor([right, down]))


def zoom(geometry: Geometry, frames: int, scale: float, grid: Grid = (12, 12), ease: bool = False) -> Tracks:
    """The picture grows to `scale` times its size about its centre, at an even rate (scale ** s)."""
    if scale <= 0:
        raise ValueError(f"a zoom to {scale} times the size: wanted a number above 0 (above 1 goes in, below 1 out)")
    centre = _centre(geometry)
    return _flat(geometry, frames, grid, ease, lambda xy, s: centre + (xy - centre) * scale ** s)


def roll(geometry: Geometry, frames: int, degrees: float, grid: Grid = (12, 12), ease: bool = False) -> Tracks:
    """The picture turns clockwise by `degrees` about its centre."""
    centre = _centre(geometry)

    def turn(xy: Tensor, s: Tensor) -> Tensor:
        a = s * math.radians(degrees)
        matrix = torch.stack([torch.cat([a.cos(), -a.sin()], -1), torch.cat([a.sin(), a.cos()], -1)], -2)   # [T, 1, 2, 2]
        return centre + (matrix @ (xy - centre)[..., None])[..., 0]
    return _flat(geometry, frames, grid, ease, turn)


def truck(geometry: Geometry, frames: int, right: float = 0, down: float = 0, depth: Tensor | float = 1.0, **how) -> Tracks:
    """The camera moves sideways by `right` and `down` (in units of depth): what is near moves more."""
    return path(geometry, _poses(frames, how, _moved(right, down, 0)), depth, **how)


def dolly(geometry: Geometry, frames: int, forward: float, depth: Tensor | float = 1.0, **how) -> Tracks:
    """The camera moves `forward` (in units of depth): what is near grows faster, and what it passes is gone."""
    return path(geometry, _poses(frames, how, _moved(0, 0, forward)), depth, **how)


def orbit(geometry: Geometry, frames: int, degrees: float, depth: Tensor | float = 1.0, pivot: float | None = None,
          **how) -> Tracks:
    """The camera goes to the right around the point at depth `pivot` on its axis (the middle depth), looking at it."""
    pivot = torch.as_tensor(depth, dtype=torch.float32).median().item() if pivot is None else pivot

    def pose(s: Tensor) -> tuple[Tensor, Tensor]:
        a = s * math.radians(degrees)
        zero, one = torch.zeros_like(a), torch.ones_like(a)
        turn = torch.stack([torch.stack([a.cos(), zero, a.sin()], -1), torch.stack([zero, one, zero], -1),
                            torch.stack([-a.sin(), zero, a.cos()], -1)], -2)
        centre = torch.tensor([0.0, 0.0, pivot])
        return turn, centre - turn @ centre
    return path(geometry, _poses(frames, how, pose), depth, **how)


def path(geometry: Geometry, poses: Tensor, depth: Tensor | float = 1.0, grid: Grid = (12, 12), focal: float | None = None,
         occlude: bool = True, ease: bool = False) -> Tracks:
    """Any camera path: poses [T, 3, 4] take a point of the first camera's space (x right, y down, z ahead) to camera t's.

    depth: a map [H, W] or one distance for all, in the units of the poses; focal in pixels (default: the width).
    A point is hidden where it leaves the picture, falls behind the camera or, with a depth map, behind what is nearer.
    """
    poses = torch.as_tensor(poses, dtype=torch.float32)
    if poses.ndim != 3 or poses.shape[1:] != (3, 4):
        raise ValueError(f"poses came as {list(poses.shape)}: wanted [T, 3, 4], rotation and translation side by side")
    field = torch.as_tensor(depth, dtype=torch.float32)
    field = field.expand(geometry.height, geometry.width) if field.ndim == 0 else field
    if field.shape != (geometry.height, geometry.width):
        raise ValueError(f"a depth map of {list(field.shape)} for pictures of {geometry.height}x{geometry.width}: "
                         "wanted one depth per pixel [H, W]")
    if not (field > 0).all():
        raise ValueError("depth must be above 0 everywhere: it is the distance ahead of the camera, not disparity")

    focal = focal or float(geometry.width)
    points = _points(geometry, grid)
    column, row = points.long().unbind(-1)
    near = field[row.clamp(0, geometry.height - 1), column.clamp(0, geometry.width - 1)]
    xy, z = _project(points, near, poses, focal, geometry)
    seen = _inside(xy, geometry) & (z > 1e-6)
    if occlude and torch.as_tensor(depth).ndim:
        seen &= z <= 1.02 * _nearest(field, poses, focal, geometry, xy)
    return _tracks(xy, seen)


# ---- the same few steps behind each move --------------------------------------------------------------------------------

def _flat(geometry: Geometry, frames: int, grid: Grid, ease: bool, move: Callable[[Tensor, Tensor], Tensor]) -> Tracks:
    xy = move(_points(geometry, grid)[None], _progress(frames, ease)[:, None, None])          # [T, N, 2]
    return _tracks(xy, _inside(xy, geometry))


def _poses(frames: int, how: dict, pose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    turn, shift = pose(_progress(frames, how.get("ease", False)))
    return torch.cat([turn, shift[..., None]], -1)                                            # [T, 3, 4]


def _progress(frames: int, ease: bool) -> Tensor:
    """0 at the first frame, 1 at the last; eased: starts and ends at rest."""
    if frames < 1:
        raise ValueError(f"{frames} frames: wanted at least 1")
    s = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    return s * s * (3 - 2 * s) if ease else s


def _moved(right: float, down: float, forward: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda s: (torch.eye(3).expand(len(s), 3, 3), -s[:, None] * torch.tensor([right, down, forward]))


def _centre(geometry: Geometry) -> Tensor:
    return torch.tensor([geometry.width / 2, geometry.height / 2])


def _points(geometry: Geometry, grid: Grid) -> Tensor:
    if isinstance(grid, Tensor):
        if grid.ndim != 2 or grid.shape[1] != 2:
            raise ValueError(f"points came as {list(grid.shape)}: wanted [N, 2], x then y in pixels")
        return grid.float()
    columns, rows = grid
    x = (torch.arange(columns) + 0.5) * geometry.width / columns
    y = (torch.arange(rows) + 0.5) * geometry.height / rows
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def _inside(xy: Tensor, geometry: Geometry) -> Tensor:
    x, y = xy.unbind(-1)
    return (x >= 0) & (x < geometry.width) & (y >= 0) & (y < geometry.height)


def _tracks(xy: Tensor, visible: Tensor) -> Tracks:
    return Tracks(xy[None], visible[None], torch.arange(xy.shape[1])[None])


def _project(points: Tensor, depth: Tensor, poses: Tensor, focal: float, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Pixels [N, 2] at depths [N], seen by every camera -> (pixels [T, N, 2], depths [T, N])."""
    rays = torch.cat([(points - _centre(geometry)) / focal, torch.ones(len(points), 1)], -1)
    space = (rays * depth[:, None]) @ poses[..., :3].mT + poses[:, None, :, 3]                # [T, N, 3]
    z = space[..., 2]
    return _centre(geometry) + focal * space[..., :2] / z.clamp(min=1e-6)[..., None], z


def _nearest(field: Tensor, poses: Tensor, focal: float, geometry: Geometry, xy: Tensor) -> Tensor:
    """Depth of the nearest surface where xy [T, N, 2] lands in each camera, from the first camera's depth map."""
    height, width = field.shape
    pixels = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).reshape(-1, 2) + 0.5
    found = []
    for pose, asked in zip(poses, xy):
        there, z = (value[0] for value in _project(pixels, field.reshape(-1), pose[None], focal, geometry))
        keep = _inside(there, geometry) & (z > 1e-6)
        cell = there[keep].long()
        front = torch.full((height * width,), torch.inf)
        front.scatter_reduce_(0, cell[:, 1].clamp(0, height - 1) * width + cell[:, 0].clamp(0, width - 1), z[keep], "amin")
        column, row = asked.long().unbind(-1)
        found.append(front[row.clamp(0, height - 1) * width + column.clamp(0, width - 1)])
    return torch.stack(found)
