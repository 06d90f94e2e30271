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


def fill_in(x: Tensor, known: Tensor) -> Tensor:
    """x [T, C, h, w] where `known` [T, 1, h, w] bool; elsewhere what is known around it, from ever farther away.

    Whether there is anything to fill is not asked: a GPU would have to be waited for.
    """
    if max(x.shape[-2:]) == 1:
        return x * known
    share = F.avg_pool2d(known.float(), 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
    around = F.interpolate(fill_in(coarse, share > 0), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known, x, around)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances between points, [..., M, 2] and [..., N, 2] -> [..., M, N]: each by itself, as torch's shortcut for many (by
    products) loses digits where coordinates are large, and most of them in TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def times(a: Tensor, d: Tensor) -> Tensor:
    """Ways d [..., 2], turned by the angle of a [..., 2] and as many times as long as a is: a product of complex numbers."""
    (p, q), (x, y) = a.unbind(dim=-1), d.unbind(dim=-1)
    return torch.stack([p * x - q * y, p * y + q * x], dim=-1)


def turned_back(xy: Tensor, began: Tensor, known: Tensor, within: Tensor, count: int = 8, alike: float = 0.2) -> Tensor:
    """a [T, N, 2], for `times`: what is at xy + d now, about a track, was at began + a d; (1, 0) if nothing turned or grew.

    xy [T, N, 2], where `known` [T, N]; began [N, 2]; all in pixels. Of its `count` nearest neighbours, those no farther than
    `within` [N], each gives an a of its own, and the most that are alike are believed: those that went with it, as across an
    edge no two are alike but by chance. If they are fewer than three, none is.
    """
    count, none = min(count, len(began) - 1), 1 - torch.arange(2., device=xy.device)        # made there: nobody waits for it
    if count < 3:
        return none.expand_as(xy)
    away, near = apart(began, began).fill_diagonal_(torch.inf).topk(count, largest=False)              # [N, K]
    heard = known[:, near] & known[..., None] & (away < within[:, None])                            # [T, N, K]
    now, then = xy[:, near] - xy[:, :, None], began[near] - began[:, None]                          # [T, N, K, 2], [N, K, 2]
    mirror = 2 * none - 1                                                                   # (1, -1)
    square = then.square().sum(dim=-1, keepdim=True).clamp_min(1)
    each = times(then * mirror, now) / square                                               # now / then: it does not go to 0
    gap = (each[:, :, None] - each[:, :, :, None]).square().sum(dim=-1)                             # [T, N, K, K]
    same = (gap < alike ** 2) & heard[:, :, None] & heard[..., None]
    votes, best = same.sum(dim=-1).max(dim=-1)                                                          # [T, N]
    same = same.gather(2, best[..., None, None].expand(-1, -1, 1, count))[:, :, 0, :, None]            # [T, N, K, 1]
    mean = (same * square * each).sum(dim=2) / (same * square).sum(dim=2).clamp_min(1)
    back = mean * mirror / mean.square().sum(dim=-1, keepdim=True).clamp_min(0.05)
    return torch.where((votes >= 3)[..., None], back, none)


def spread(way: Tensor, turn: Tensor, block: int) -> Tensor:
    """How far blocks went and how they are turned back, [T, h, w, 2] each -> how far their pixels went, [T, H, W, 2].

    A pixel between the centres of blocks that go together goes in between; where two neighbours differ by a whole block or
    more there may be an edge, and each goes by itself, as it turns.
    """
    way, turn = (x.permute(0, 3, 1, 2).contiguous() for x in (way, turn))
    edge = (F.max_pool2d(way, 3, 1, 1) + F.max_pool2d(-way, 3, 1, 1)).amax(dim=1, keepdim=True) >= block
    smooth = F.interpolate(way, scale_factor=block, mode="bilinear", align_corners=False)
    own = F.interpolate(torch.cat([way, turn, edge.float()], dim=1), scale_factor=block, mode="nearest").permute(0, 2, 3, 1)
    way, turn, edge = own.split([2, 2, 1], dim=-1)
    y, x = (torch.arange(size, device=way.device) % block + 0.5 - block / 2 for size in way.shape[1:3])
    off = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)                              # [H, W, 2], from the centre
    return torch.where(edge > 0, way + off - times(turn, off.expand_as(way)), smooth.permute(0, 2, 3, 1))


@torch.no_grad()
def warp(tracks: Tracks, picture: Tensor, reach: float, block: int = 4) -> tuple[Tensor, Tensor]:
    """The given picture as its tracks move it: picture [B, 3, H, W] -> frames [B, T, 3, H, W], and near [B, T, H/4, W/4].

    Each block of pixels goes with the visible track nearest to its centre, if one is within reach and knows its origin, and
    turns and grows with it (`turned_back`, `spread`); the others stay. A track reaches as far as its next neighbour began,
    at least `reach` pixels and at most twice as many: one that is alone speaks for more. near: 1 where a track runs through
    the centre, 0 as far as it reaches. No parameters.

    What lay there may have gone with another track: pixels are of the track nearest to them in the picture, and where that
    has left by more than it was away, the block is filled from around it (`fill_in`), and near is a quarter.
    """
    (b, t, n, _), (height, width), device = tracks.xy.shape, picture.shape[-2:], tracks.xy.device
    y, x = (torch.arange(0, size, block, device=device) + block / 2 for size in (height, width))
    centres = torch.cartesian_prod(y, x).flip(-1)                                                   # [M, 2], x then y
    blocks = lambda z: z.unflatten(1, (len(y), len(x)))                                             # [T, M, ...]
    pixels = lambda z: blocks(z).repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    origin = tracks.origins()
    placed = tracks.xy.isfinite().all(-1) & origin.isfinite().all(-1)[:, None]                      # [B, T, N]
    known = tracks.visible & placed
    xy = torch.where(known[..., None], tracks.xy, 1e4).float()
    went = torch.where(placed[..., None], tracks.xy - origin[:, None], 0.).float()                  # [B, T, N, 2]
    rows, columns = torch.meshgrid(*(torch.arange(size, device=device) + 0.5 for size in (height, width)), indexing="ij")
    frames, near = [], []
    for i in range(b):                                                          # clip by clip: [T, M, N] is large
        gone = torch.zeros(t, len(centres), dtype=torch.bool, device=device)
        distance, way = torch.ones_like(gone, dtype=torch.float), centres.new_zeros(t, len(centres), 2)
        turn = (1 - torch.arange(2., device=device)).expand_as(way)                         # (1, 0): nothing turns
        if n:
            began = origin[i].float().nan_to_num(1e4)
            spans = apart(began, began).fill_diagonal_(torch.inf).amin(dim=1).clamp(reach, 2 * reach)           # [N]
            distance, who = apart(centres.expand(t, -1, -1), xy[i]).min(dim=-1)                     # [T, M]
            distance = distance / spans[who]
            with_it = distance < 1
            of = lambda z, who: z.gather(1, who[..., None].expand(-1, -1, 2))                       # [T, N, 2] -> [T, M, 2]
            turn = torch.where(with_it[..., None], of(turned_back(xy[i], began, known[i], 2 * spans), who), turn)
            step, off = of(went[i], who), centres - of(xy[i], who)
            way = (step + off - times(turn, off)) * with_it[..., None]
            column, row = ((centres - way) / block).long().unbind(-1)
            shown = row.clamp(0, len(y) - 1) * len(x) + column.clamp(0, len(x) - 1)     # [T, M]: which block of the picture
            away, whose = apart(centres, began).min(dim=-1)                                         # [M]
            theirs = whose[shown]
            left = (of(went[i], theirs) - step * with_it[..., None]).norm(dim=-1)
            were = torch.where(with_it, (began[theirs] - began[who]).norm(dim=-1), away[shown])
            gone = (left > were.clamp_min(block)) & placed[i].gather(1, theirs) & (away < spans[whose])[shown]
            gone &= ~gone.all(dim=1, keepdim=True)                          # with nothing around, what was there has to do
        source = torch.stack([columns, rows], dim=-1) - spread(blocks(way), blocks(turn), block)[:, :height, :width]
        source = torch.stack([source[..., 0] * 2 / width - 1, source[..., 1] * 2 / height - 1], dim=-1)     # in [-1, 1]
        taken = F.grid_sample(picture[i].expand(t, -1, -1, -1), source, padding_mode="border", align_corners=False)
        mean = F.avg_pool2d(taken, block, ceil_mode=True)
        around = F.interpolate(fill_in(mean, ~blocks(gone)[:, None]), size=(height, width), mode="bilinear")
        frames.append(torch.where(pixels(gone)[:, None], around, taken))
        near.append(blocks((1 - distance).clamp_min(0) * torch.where(gone, .25, 1.)))
    return torch.stack(frames), torch.stack(near)


def moved(tracks: Tracks, picture: Tensor, geometry: Geometry) -> Tensor:
    """What the tracks carry of the given picture: picture [B, 3, H, W] -> its pixels, moved (`warp`: one and a half cells
    far, three where a track is alone), and how near tracks are, [B, T, 4, H, W]."""
    frames, near = warp(tracks, picture, 1.5 * geometry.stride)
    near = F.interpolate(near, size=frames.shape[-2:], mode="nearest")
    return torch.cat([frames, near[:, :, None]], dim=2)


def carry(tracks: Tracks, picture: Tensor, encode, geometry: Geometry, start: bool = True) -> Tensor:
    """What the tracks carry of the given picture, as latents: `encoded`, `moved`. [B, 3, H, W] -> [B, F, C + 4, h, w]"""
    return encoded(moved(tracks, picture, geometry), encode, geometry, start)


def encoded(moved: Tensor, encode, geometry: Geometry, start: bool = True) -> Tensor:
    """The moved picture [B, T, 4, H, W] as latents [B, F, C + 4, h, w].

    It is encoded four pixel frames at a time (`encode`: [B, 4 F, 3, H, W] -> [B, F, C, h, w]); then, for each of the four,
    how near tracks are. Zero where no track is near. start: see `TrackHead`. After Wan-Move (2512.08765), which copies
    latents: latents move in steps of a cell, pixels do not.
    """
    repeat = (geometry.time_stride - 1) * start
    moved = torch.cat([moved[:, :1].expand(-1, repeat, -1, -1, -1), moved], dim=1)
    near = F.adaptive_avg_pool2d(moved[:, :, 3], geometry.latent_size).unflatten(1, (-1, geometry.time_stride))
    return torch.cat([encode(moved[:, :, :3]) * (near > 0).any(dim=2, keepdim=True), near], dim=2)


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
    carry of the picture (`carry`) follows in further channels.
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
