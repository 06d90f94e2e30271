"""Tracks as something a transformer can read: ids -> sinusoids -> stamped on the latent grid -> packed in time."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Geometry, TrackConfig
from .tracks import Tracks


def draw_ids(batch: int, count: int, max_id: int, generator: torch.Generator | None = None, device=None) -> Tensor:
    """Random ids [B, N] from [0, max_id), no number twice in a row."""
    if count > max_id:
        raise ValueError(f"{count} tracks need {count} different ids, but there are only {max_id}")
    rows = [torch.randperm(max_id, generator=generator, device=generator.device if generator else "cpu")[:count]
            for _ in range(batch)]
    return torch.stack(rows).to(device)


def embed_ids(ids: Tensor, dim: int) -> Tensor:
    """ids [...] -> [..., dim] float32, cosines first; of squared length dim / 2. Fixed, not learned.

    Angles in float32, as WanTrack's weights have learned them: a large id is its rounding too.
    """
    rates = torch.exp(torch.arange(dim // 2) * (-math.log(10_000) / (dim // 2))).to(ids.device)
    angle = ids.float()[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def cells(tracks: Tracks, geometry: Geometry, mode: str) -> tuple[Tensor, Tensor]:
    """Which latent cells each point touches, and how strongly: index and weight, both [B, T, N, K].

    "floor": the cell the point lies in (MotionStream, Eq. 1). "round": nearest of (w - 1) steps across the frame, points
    outside clamped to its edge (WanTrack). "bilinear": the four nearest cell centres share it, by distance.
    A hidden, infinite or (but for "round") outside point weighs nothing.
    """
    h, w = geometry.latent_size
    finite = tracks.xy.isfinite().all(-1)
    x, y = torch.where(finite[..., None], tracks.xy.float(), -1.0).unbind(-1)                   # [B, T, N]
    inside = (x >= 0) & (x < geometry.width) & (y >= 0) & (y < geometry.height)
    here = tracks.visible & finite
    if mode == "floor":
        column, row, weight = (x / geometry.stride).floor()[..., None], (y / geometry.stride).floor()[..., None], None
    elif mode == "round":
        inside = finite
        column = ((x / geometry.width).clamp(0, 1) * (w - 1)).round()[..., None]
        row, weight = ((y / geometry.height).clamp(0, 1) * (h - 1)).round()[..., None], None
    elif mode == "bilinear":
        left, top = x / geometry.stride - 0.5, y / geometry.stride - 0.5
        column = torch.stack([left.floor(), left.floor() + 1] * 2, dim=-1)
        row = torch.stack([top.floor()] * 2 + [top.floor() + 1] * 2, dim=-1)
        weight = (1 - (left[..., None] - column).abs()) * (1 - (top[..., None] - row).abs())
        weight = weight * ((column >= 0) & (column < w) & (row >= 0) & (row < h))
    else:
        raise ValueError(f"splat mode {mode!r} is not known: use floor, round or bilinear")
    here = (here & inside)[..., None].float()
    index = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
    return index, here if weight is None else here * weight


def stamp(place: Tensor, weight: Tensor, ids: Tensor, dim: int, rows: int) -> Tensor:
    """Add `weight` times each track's id embedding to row `place`: [B, T, N, K] twice -> [rows, dim].

    A sum of bags, row by row: always in the same order, and the embeddings themselves are never copied.
    """
    used = weight.flatten().nonzero().squeeze(1)
    place, order = place.flatten()[used].sort(stable=True)
    used = used[order]
    n, per_clip = max(1, ids.shape[1]), max(1, weight[0].numel())
    track = used // per_clip * n + used // weight.shape[-1] % n
    begin = torch.searchsorted(place, torch.arange(rows, device=place.device))
    marks = embed_ids(ids, dim).flatten(0, 1)
    return F.embedding_bag(track, marks, begin, mode="sum", per_sample_weights=weight.flatten()[used])


@torch.no_grad()
def splat(tracks: Tracks, geometry: Geometry, config: TrackConfig) -> Tensor:
    """Stamp each visible track's id embedding on the latent grid; hidden tracks leave no mark.

    tracks.xy [B, T, N, 2] in pixels, tracks.ids [B, N] -> [B, T, id_dim, h, w]. Where two tracks meet, they add.
    MotionStream (2511.01266 v5), Eq. 1.
    """
    (b, t), (h, w) = tracks.visible.shape[:2], geometry.latent_size
    index, weight = cells(tracks, geometry, config.splat)
    frame = torch.arange(b * t, device=index.device).view(b, t, 1, 1)
    grid = stamp(frame * (h * w) + index, weight, tracks.ids, config.id_dim, b * t * h * w)
    return grid.view(b, t, h, w, -1).permute(0, 1, 4, 2, 3)


@torch.no_grad()
def carry(tracks: Tracks, picture: Tensor, geometry: Geometry) -> Tensor:
    """The given picture's latents taken along by the tracks: picture [B, C, h, w] -> [B, T, 4 C + 5, h, w].

    In each frame a cell goes with the visible track nearest to its centre: it came from where that track's motion, undone,
    puts the centre. The four source cells around that place follow, each times its bilinear weight, then the four weights
    and how near the track is. Zero where no track is within a cell, or none that knows its origin. No parameters.
    After Wan-Move (2512.08765), which copies single cells.
    """
    (b, t, n, _), (h, w), device = tracks.xy.shape, geometry.latent_size, tracks.xy.device
    origin = tracks.origins()
    index, near = cells(tracks, geometry, "bilinear")                                           # [B, T, N, 4]
    near = near * origin.isfinite().all(-1)[:, None, :, None]
    place = (torch.arange(b * t, device=device).view(b, t, 1, 1) * (h * w) + index).flatten()
    best = near.new_zeros(b * t * h * w).scatter_reduce(0, place, near.flatten(), "amax")
    wins = (near.flatten() >= best[place]) & (near.flatten() > 1e-3)
    track = torch.arange(n, device=device).view(1, 1, n, 1).expand(b, t, n, 4).flatten()[wins]
    who = torch.zeros_like(best, dtype=torch.long).scatter_reduce(0, place[wins], track, "amax").view(b, t, h * w)
    moved = torch.where(tracks.visible[..., None], tracks.xy, 0) - origin.nan_to_num()[:, None]         # [B, T, N, 2]
    moved = moved.gather(2, who[..., None].expand(-1, -1, -1, 2)) if n else moved.new_zeros(b, t, h * w, 2)
    covered = (best > 1e-3).view(b, t, h * w)
    row, column = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    source = torch.stack([column, row], dim=-1).view(h * w, 2) - moved / geometry.stride        # in cells, centres whole
    corner = source.floor()
    parts, weights = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = (corner + torch.tensor([dx, dy], device=device)).unbind(-1)
        weight = (1 - (source[..., 0] - x).abs()) * (1 - (source[..., 1] - y).abs())
        weight = weight * ((x >= 0) & (x < w) & (y >= 0) & (y < h) & covered)
        at = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).long().flatten(1)                      # [B, T h w]
        cell = picture.flatten(2).gather(2, at[:, None].expand(-1, picture.shape[1], -1)).unflatten(2, (t, h * w))
        parts.append(cell.transpose(1, 2) * weight[:, :, None])
        weights.append(weight)
    carried = torch.cat([*parts, torch.stack([*weights, best.view(b, t, h * w)], dim=2)], dim=2)
    return carried.unflatten(3, (h, w))


def drawn(tracks: Tracks, geometry: Geometry, radius: int = 1) -> Tensor:
    """The tracks as a video: on black, a small square in a colour of its own for each visible one. -> [B, T, 3, H, W]

    What a track head replaces: such a video, sent through the VAE's encoder (MotionStream, Sec. 4.3 and Table 3).
    """
    (b, t, n), size = tracks.visible.shape, (geometry.height, geometry.width)
    frames = tracks.xy.new_zeros(b, t, *size, 3)
    colour = torch.stack([tracks.ids % 26, tracks.ids // 26 % 26, tracks.ids // 676 % 26], dim=-1) / 25     # [B, N, 3]
    colour = (0.15 + 0.85 * colour)[:, None].expand(-1, t, -1, -1)
    clip, frame = torch.meshgrid(torch.arange(b), torch.arange(t), indexing="ij")
    clip, frame = (x[..., None].expand(-1, -1, n).to(frames.device) for x in (clip, frame))
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            x, y = (tracks.xy.nan_to_num(-1e3).floor().long() + torch.tensor([dx, dy], device=frames.device)).unbind(-1)
            here = tracks.visible & (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
            frames[clip[here], frame[here], y[here], x[here]] = colour[here].to(frames)
    return frames.permute(0, 1, 4, 2, 3)


class TrackHead(nn.Module):
    """Four pixel frames of stamps in the channels of one latent frame, then 1x1x1 convolutions. MotionStream, Fig. 2.

    No biases (but for WanTrack's): where nothing is drawn, the map is exactly zero. With `config.carry`, what the tracks
    carry of the picture follows in further channels, four pixel frames of it side by side.
    """

    def __init__(self, config: TrackConfig, geometry: Geometry):
        super().__init__()
        self.config, self.geometry = config, geometry
        packed = config.id_dim * geometry.time_stride                   # channel-major: index = channel * 4 + sub-frame
        widths = [packed, config.hidden, config.channels] if config.hidden else [packed, config.channels]
        self.convs = nn.ModuleList(nn.Conv3d(a, b, 1, bias=config.bias) for a, b in zip(widths, widths[1:]))

    def forward(self, tracks: Tracks, start: bool = True, picture: Tensor | None = None) -> Tensor:
        """Tracks over T pixel frames, and the given picture's latents [B, C, h, w] -> [B, F, config.width(4), h, w].

        start: the video begins here, T = 1 + 4 (F - 1) and frame 0 is repeated to fill its four; else T = 4 F.
        Each latent frame depends on its own four pixel frames only, so a chunk needs no look-ahead.
        """
        sub = self.geometry.time_stride
        frames = tracks.visible.shape[1]
        if (frames - start) % sub:
            wanted = f"1 + {sub} n" if start else f"{sub} n"
            raise ValueError(f"{frames} pixel frames of tracks do not fill whole latent frames: use {wanted} of them")
        with torch.no_grad():
            packed = self._packed(tracks, sub - 1 if start else 0)      # [B, F, h, w, sub * id_dim], sub-frame-major
        first, *rest = self.convs
        weight = first.weight.view(-1, self.config.id_dim, sub).transpose(1, 2).flatten(1)
        x = F.linear(packed.to(weight.dtype), weight, first.bias)
        for layer in rest:
            x = F.linear(x if self.config.linear else F.silu(x), layer.weight.flatten(1), layer.bias)
        x = x.permute(0, 1, 4, 2, 3)                                    # [B, F, channels, h, w]
        return torch.cat([x, self._carried(tracks, picture, sub - 1 if start else 0).to(x)], 2) if self.config.carry else x

    def _carried(self, tracks: Tracks, picture: Tensor | None, repeat: int) -> Tensor:
        """`carry`, sub-frame by sub-frame in the channels: [B, F, 4 (4 C + 5), h, w]; zeros without a picture."""
        sub, (h, w) = self.geometry.time_stride, self.geometry.latent_size
        b, t = tracks.visible.shape[:2]
        if picture is None:
            return tracks.xy.new_zeros(b, (t + repeat) // sub, self.config.width(sub) - self.config.channels, h, w)
        if picture.shape[1:] != (self.config.carry, h, w):
            raise ValueError(f"a picture to be carried came as latents {list(picture.shape)}, but these tracks take along "
                             f"{[b, self.config.carry, h, w]}")
        carried = carry(tracks, picture.float().expand(b, -1, -1, -1), self.geometry)
        carried = torch.cat([carried[:, :1].expand(-1, repeat, -1, -1, -1), carried], dim=1)
        return carried.unflatten(1, (-1, sub)).flatten(2, 3)

    def _packed(self, tracks: Tracks, repeat: int) -> Tensor:
        """`splat`, written straight into the layout that the first convolution reads."""
        sub, (h, w) = self.geometry.time_stride, self.geometry.latent_size
        index, weight = cells(tracks, self.geometry, self.config.splat)
        if repeat:
            index = torch.cat([index[:, :1].expand(-1, repeat, -1, -1), index], dim=1)
            again = weight[:, :1] * (not self.config.alone)
            weight = torch.cat([again.expand(-1, repeat, -1, -1), weight], dim=1)
        b, t = index.shape[:2]
        frame = torch.arange(b * t, device=index.device).view(b, t, 1, 1)
        place = (frame // sub * (h * w) + index) * sub + frame % sub
        grid = stamp(place, weight, tracks.ids, self.config.id_dim, b * t * h * w)
        return grid.view(b, t // sub, h, w, -1)
