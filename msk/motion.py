"""Tracks as something a transformer can read: ids -> sinusoids -> stamped on the latent grid -> packed in time."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Geometry, TrackConfig
from .host import rates
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
    angle = ids.float()[..., None] * rates(dim // 2, ids.device)
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

    A sum of bags, row by row: always in the same order, and the embeddings themselves are never copied. Points without
    weight go along, as zeros: how many are left without them is nothing that a GPU need be waited for.
    """
    place, order = place.flatten().sort(stable=True)
    n, per_clip = max(1, ids.shape[1]), max(1, weight[0].numel())
    track = order // per_clip * n + order // weight.shape[-1] % n
    begin = torch.searchsorted(place, torch.arange(rows, device=place.device))
    marks = embed_ids(ids, dim).flatten(0, 1)
    return F.embedding_bag(track, marks, begin, mode="sum", per_sample_weights=weight.flatten()[order])


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
    carry of the picture (`carry.carry`) follows in further channels.
    """

    def __init__(self, config: TrackConfig, geometry: Geometry):
        super().__init__()
        self.config, self.geometry = config, geometry
        packed = config.id_dim * geometry.time_stride                   # channel-major: index = channel * 4 + sub-frame
        widths = [packed, config.hidden, config.channels] if config.hidden else [packed, config.channels]
        self.convs = nn.ModuleList(nn.Conv3d(a, b, 1, bias=config.bias) for a, b in zip(widths, widths[1:]))

    def forward(self, tracks: Tracks, start: bool = True, carried: Tensor | None = None) -> Tensor:
        """Tracks over T pixel frames, and what they carry (None: nothing) -> [B, F, config.width(4), h, w].

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
        if not self.config.carry:
            return x
        wanted = [*x.shape[:2], self.config.width(sub) - self.config.channels, *x.shape[3:]]
        if carried is None:
            carried = x.new_zeros(wanted)
        if list(carried.shape) != wanted:
            raise ValueError(f"what the tracks carry came as {list(carried.shape)}, but these tracks ask for {wanted}")
        return torch.cat([x, carried.to(x)], dim=2)

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
