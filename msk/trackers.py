"""Where did the points go? Following points through any video, and registering a made video against the true one.

One matcher does both: a small patch is looked for by normalised correlation within a radius, then placed to a fraction of a
pixel by Lucas-Kanade. `track` chains it through a video (a point may hang on frame 0, on the frame before, or on frames in
between, whichever accumulates least doubt, as in MFT, Neoral et al. 2024). `register` looks for each patch of the *true*
frame in the made frame of the same time, so that nothing accumulates; it needs the true frames, which the procedural world
has. Positions are pixels from the top left corner: the centre of the first pixel is (0.5, 0.5).
"""
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracks import Tracks

PATCH = 5           # patch radius in pixels at REFERENCE width: 11 x 11
REFERENCE = 96      # width in pixels that radii are given for; they grow in proportion
TEXTURE = 0.012     # least contrast per pixel along a patch's weakest direction that makes it trackable
WIDEST = 160        # pixels; wider videos are followed at this width
SHAPE = 0.2         # how stiff a patch is against turning and shearing; 0: not at all
LOST = 0.5          # correlation below which a match is no match
SURE = 0.4          # pixels at REFERENCE width within which a step of dense flow must come back
COTRACKER = "facebookresearch_co-tracker_main"      # folder name in torch.hub's cache


def track(frames: Tensor, queries: Tensor, method: str = "auto", reach: float = 8.0) -> Tracks:
    """Follow points from frame 0 through a video that nothing else is known about.

    frames [B, T, 3, H, W] in [0, 1]; queries [B, N, 2] pixels (x, y) at frame 0 -> Tracks [B, T, N].
    method: "cotracker" (CoTracker3; code and weights CC-BY-NC 4.0, only if already in the torch.hub cache), "flow" (patches
    matched against several earlier frames; no library, any device), "dis" (dense optical flow of opencv, chained: far
    quicker, less exact), "auto": cotracker if it is there, else flow.
    reach: largest motion from frame to frame, in pixels at 96 px of width.
    """
    check(frames, queries)
    if method not in ("auto", "cotracker", "flow", "dis"):
        raise ValueError(f"no tracker called {method!r}: use 'auto', 'cotracker', 'flow' or 'dis'")
    if method == "cotracker" or (method == "auto" and cotracker_cached()):
        return cotracker(frames, queries)
    if method == "dis":
        return dis(frames, queries)
    height, width = frames.shape[-2:]
    small = frames
    if width > WIDEST:                                                            # a tenth of a pixel at 160 is enough
        size = (max(16, round(height * WIDEST / width)), WIDEST)
        small = torch.stack([F.interpolate(clip, size, mode="area") for clip in frames])
    scale = queries.new_tensor([width / small.shape[-1], height / small.shape[-2]])
    xy, score = chain(small, queries / scale, reach)
    xy = xy * scale
    inside = ((xy >= 0) & (xy < xy.new_tensor([width, height]))).all(dim=-1)
    ids = torch.arange(queries.shape[1], device=frames.device).expand(len(frames), -1)
    return Tracks(xy, inside & (score > LOST), ids)


@torch.no_grad()
def register(generated: Tensor, truth: Tensor, xy: Tensor, reach: float = 16.0, chained: Tensor | None = None,
             at: Tensor | None = None) -> Tensor:
    """Where the thing that truly is at `xy` is found in the made video.

    generated, truth [B, T, 3, H, W] in [0, 1]; xy [B, T, N, 2] pixels, the true positions -> positions [B, T, N, 2].
    Two places are searched for each patch of the true frame: around the true position (radius `reach`, pixels at 96 px of
    width) and around the point's chained track in the made video (`track`'s way, from frame 0), so that failures larger than
    the radius, a still picture among them, read as their real size. The better correlation wins; where neither is a match,
    the chained track stands. chained [B, T, N, 2]: the chained track, computed here unless given. at [B, T, N, 2]: where
    `truth` shows the thing, if not at `xy`: with the given frame for truth, points need no true video to be asked about.
    """
    at = xy if at is None else at
    check(generated, xy[:, 0])
    if generated.shape != truth.shape or xy.shape[:2] != truth.shape[:2]:
        raise ValueError(f"generated {list(generated.shape)}, truth {list(truth.shape)} and xy {list(xy.shape)} "
                         "must be of the same batch, frames and size")
    if chained is None:
        chained, _ = chain(generated, xy[:, 0])
    scale = generated.shape[-1] / REFERENCE
    found = []
    for t in range(truth.shape[1]):
        near, near_score = match(truth[:, t], at[:, t], generated[:, t], xy[:, t], reach * scale)
        far, far_score = match(truth[:, t], at[:, t], generated[:, t], chained[:, t], 4 * scale)
        far = torch.where((far_score > LOST)[..., None], far, chained[:, t])
        astray = (near - xy[:, t]).norm(dim=-1) / (reach * scale)                  # chance matches wait far from the truth
        take_near = (near_score >= far_score) & (near_score > LOST + 0.2 + 0.2 * astray)
        found.append(torch.where(take_near[..., None], near, far))
    return torch.stack(found, dim=1)


@torch.no_grad()
def chain(frames: Tensor, queries: Tensor, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Points followed from frame to frame; each hangs on the earlier frame that promises the least accumulated error.

    -> xy [B, T, N, 2], correlation of the match taken [B, T, N].
    """
    scale = frames.shape[-1] / REFERENCE
    xy, score = [queries.float()], [torch.ones_like(queries[..., 0])]
    doubt = [torch.zeros_like(queries[..., 0])]                                   # accumulated variance, pixels squared
    for t in range(1, frames.shape[1]):
        guess, first = match(frames[:, t - 1], xy[-1], frames[:, t], xy[-1], reach * scale)
        options = [(guess, first, doubt[-1] + variance(first))]
        earlier = [s for s in sorted({0, t - 12, t - 4} - {t - 1}) if s >= 0]
        if earlier:                                                               # all of them at once
            k = len(earlier)
            place, again = match(torch.cat([frames[:, s] for s in earlier]), torch.cat([xy[s] for s in earlier]),
                                 frames[:, t].repeat(k, 1, 1, 1), guess.repeat(k, 1, 1), 2 * scale)
            doubts = torch.cat([doubt[s] for s in earlier]) + variance(again)
            options += zip(place.chunk(k), again.chunk(k), doubts.chunk(k))
        places, scores, doubts = (torch.stack(o) for o in zip(*options))
        pick = doubts.argmin(dim=0, keepdim=True)                                 # [1, B, N]
        xy.append(places.gather(0, pick[..., None].expand(-1, -1, -1, 2))[0])
        score.append(scores.gather(0, pick)[0])
        doubt.append(doubts.gather(0, pick)[0])
    return torch.stack(xy, dim=1), torch.stack(score, dim=1)


@torch.no_grad()
def dis(frames: Tensor, queries: Tensor) -> Tracks:
    """Dense Inverse Search flow (Kroeger et al. 2016), chained. A point is sure, and so visible, until a step of it does not
    come back (SURE), or all of its way since frame 0 does not (three times that)."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError('DIS flow needs opencv: pip install "msk[metrics]", or use method=\'flow\'') from error
    (B, T, _, height, width), device = frames.shape, frames.device
    size, engine = queries.new_tensor([width, height]), cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = (frames.mean(dim=2) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    calc = lambda a, b: torch.from_numpy(engine.calc(a, b, None)).permute(2, 0, 1)
    flow = lambda s, t: torch.stack([calc(clip[s], clip[t]) for clip in grey]).to(device)           # [B, 2, H, W]
    ahead, back = [flow(t, t + 1) for t in range(T - 1)], [flow(t + 1, t) for t in range(T - 1)]

    def go(flow: Tensor, xy: Tensor) -> Tensor:
        way = F.grid_sample(flow, (xy * 2 / size - 1)[:, :, None], padding_mode="border", align_corners=False)
        return xy + way[..., 0].mT

    near = SURE * width / REFERENCE
    xy, seen = [queries.float()], [torch.ones_like(queries[..., 0], dtype=torch.bool)]
    for t in range(1, T):
        there = go(ahead[t - 1], xy[-1])
        home = go(back[t - 1], there)
        sure = seen[-1] & ((home - xy[-1]).norm(dim=-1) < near) & ((there >= 0) & (there < size)).all(dim=-1)
        for s in range(t - 2, -1, -1):
            home = go(back[s], home)
        xy.append(there)
        seen.append(sure & ((home - queries).norm(dim=-1) < 3 * near))
    ids = torch.arange(queries.shape[1], device=device).expand(B, -1)
    return Tracks(torch.stack(xy, dim=1), torch.stack(seen, dim=1), ids)


def variance(score: Tensor) -> Tensor:
    """What a match of this correlation is worth, in pixels squared: about 0.05 px for a perfect one, 1 px at 0.65."""
    return 0.0025 + (8 * (1 - score.clamp(0, 1)) ** 2)


def match(source: Tensor, at: Tensor, target: Tensor, guess: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Look in `target` for what `source` shows at `at`, within `reach` pixels of `guess`.

    source, target [B, 3, H, W]; at, guess [B, N, 2] -> places [B, N, 2], correlations [B, N] in [-1, 1].
    """
    r = max(4, round(PATCH * source.shape[-1] / REFERENCE))
    R = max(1, round(reach))
    source, target = smooth(source), smooth(target)
    if R > 6:                                                                     # half size first: 16 times cheaper
        half = lambda frames: F.avg_pool2d(frames, 2)
        guess, R = 2 * nearest(half(source), at / 2, half(target), guess / 2, (r + 1) // 2, (R + 1) // 2), 2
    place = nearest(source, at, target, guess, r, R)
    return refine(crop(source, at, r + 1), target, place, r)


def nearest(source: Tensor, at: Tensor, target: Tensor, guess: Tensor, r: int, R: int) -> Tensor:
    """The pixel centre within R of `guess` where `target` looks most like `source` at `at`. -> [B, N, 2]"""
    window, centre = windows(target, guess, r + R)
    return centre + search(crop(source, at, r), window, R)


def search(template: Tensor, window: Tensor, R: int) -> Tensor:
    """Best whole-pixel displacement by normalised correlation; of nearly equal peaks, the nearest. -> [B, N, 2]"""
    side, n = template.shape[-1], template[0, 0].numel()
    size = window.shape[-1] + -window.shape[-1] % 8                               # sizes that the FFT likes
    p = template - template.mean(dim=(-2, -1), keepdim=True)
    spectrum = torch.fft.rfft2(window, s=(size, size)) * torch.fft.rfft2(p, s=(size, size)).conj()
    score = torch.fft.irfft2(spectrum.sum(dim=2), s=(size, size))[..., :2 * R + 1, :2 * R + 1]
    flat = window.flatten(0, 1)
    mean = F.avg_pool2d(flat, side, 1)
    spread = ((F.avg_pool2d(flat.square(), side, 1) - mean.square()).clamp_min(0).sum(dim=1) * side * side).sqrt()
    least = 0.01 * n ** 0.5                                                       # contrast below 1 % is no texture
    score = score / (spread.clamp_min(least).view_as(score) * p.flatten(2).norm(dim=-1).clamp_min(least)[..., None, None])
    offset = torch.arange(-R, R + 1, device=window.device, dtype=window.dtype)
    far = (offset[:, None].square() + offset.square()).sqrt() / R
    best = (score - 0.05 * far).flatten(2).argmax(dim=-1)
    return torch.stack([offset[best % len(offset)], offset[best // len(offset)]], dim=-1)


def refine(template: Tensor, target: Tensor, place: Tensor, r: int, rounds: int = 6) -> tuple[Tensor, Tensor]:
    """Inverse-compositional Lucas-Kanade: shift, turn and shear of brightness- and contrast-normalised patches."""
    axis = torch.arange(-r, r + 1, device=target.device, dtype=target.dtype)
    v, u = torch.meshgrid(axis / r, axis / r, indexing="ij")
    weight = torch.exp(-(u ** 2 + v ** 2) / (2 * 0.7 ** 2))
    weight = weight / weight.sum() / template.shape[2]
    contrast = lambda p: (p * p * weight).sum(dim=(-3, -2, -1), keepdim=True).sqrt().clamp_min(1e-3)
    centred = lambda p: p - (p * weight).sum(dim=(-2, -1), keepdim=True) * p.shape[-3]

    def plain(p):
        p = centred(p)
        return p / contrast(p)

    inner = template[..., 1:-1, 1:-1]
    wanted, level = plain(inner), contrast(centred(inner))
    gx = (template[..., 1:-1, 2:] - template[..., 1:-1, :-2]) / 2 / level
    gy = (template[..., 2:, 1:-1] - template[..., :-2, 1:-1]) / 2 / level
    slopes = torch.stack([gx, gy, gx * u, gx * v, gy * u, gy * v], dim=-1).flatten(2, 4)            # [B, N, 3 P P, 6]
    weighted = slopes * weight.expand(inner.shape[2], -1, -1).reshape(-1, 1)
    hessian = weighted.mT @ slopes
    size = hessian.diagonal(dim1=-2, dim2=-1)[..., :2].sum(dim=-1, keepdim=True)
    damping = size * size.new_tensor([1e-3] * 2 + [SHAPE] * 4) + 1e-6
    solve = torch.linalg.inv(hessian + torch.diag_embed(damping)) @ weighted.mT                     # [B, N, 6, 3 P P]
    start, eye = place, torch.eye(2, device=target.device, dtype=target.dtype)
    shape = eye.expand(*place.shape[:-1], 2, 2)
    for _ in range(rounds):
        error = plain(crop(target, place, r, shape)) - wanted
        step = (solve @ error.flatten(2)[..., None])[..., 0].clamp(-1, 1)
        bend = shape @ torch.linalg.inv(eye + step[..., 2:].unflatten(-1, (2, 2)).clamp(-0.3 * r, 0.3 * r) / r)
        place = place - (bend @ step[..., :2, None])[..., 0]
        shape = bend
    kept = ((place - start).norm(dim=-1) <= 2) & ((shape - eye).flatten(-2).norm(dim=-1) <= 1)     # NaN is not kept
    place = torch.where(kept[..., None], place, start)
    shape = torch.where(kept[..., None, None], shape, eye)
    score = (plain(crop(target, place, r, shape)) * wanted * weight).sum(dim=(-3, -2, -1))
    return place, score


def crop(frames: Tensor, xy: Tensor, r: int, shape: Tensor | None = None) -> Tensor:
    """Patches of radius r around points, between pixels if need be, of a linear shape [B, N, 2, 2] if given.

    frames [B, 3, H, W], xy [B, N, 2] -> [B, N, 3, 2r + 1, 2r + 1]
    """
    height, width = frames.shape[-2:]
    axis = torch.arange(-r, r + 1, device=frames.device, dtype=frames.dtype)
    offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)           # [P * P, 2]
    offset = offset @ shape.mT if shape is not None else offset
    grid = (xy[:, :, None] + offset) * 2 / xy.new_tensor([width, height]) - 1
    patches = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return patches.transpose(1, 2).unflatten(-1, (2 * r + 1, -1))


def windows(frames: Tensor, xy: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Patches of radius r around the pixels that points fall in, and those pixels' centres [B, N, 2]."""
    height, width = frames.shape[-2:]
    x, y = xy[..., 0].floor().clamp(0, width - 1).long(), xy[..., 1].floor().clamp(0, height - 1).long()
    sliding = F.pad(frames, (r, r, r, r), mode="replicate").unfold(2, 2 * r + 1, 1).unfold(3, 2 * r + 1, 1)
    batch = torch.arange(len(frames), device=frames.device)[:, None]
    return sliding[batch, :, y, x], torch.stack([x, y], dim=-1) + 0.5


def smooth(frames: Tensor, sigma: float = 0.8) -> Tensor:
    """A small Gaussian, so that positions between pixels sample without bias."""
    axis = torch.arange(-2, 3, device=frames.device, dtype=frames.dtype)
    kernel = torch.exp(-axis ** 2 / (2 * sigma ** 2))
    kernel = (kernel / kernel.sum()).expand(frames.shape[1], 1, 1, -1)
    frames = F.conv2d(F.pad(frames, (2, 2, 0, 0), mode="replicate"), kernel, groups=frames.shape[1])
    return F.conv2d(F.pad(frames, (0, 0, 2, 2), mode="replicate"), kernel.mT, groups=frames.shape[1])


def texture(frames: Tensor, r: int) -> Tensor:
    """How well a patch can be placed: the smaller eigenvalue of its structure tensor (Shi and Tomasi), as a contrast.

    frames [B, 3, H, W] -> [B, H, W], square root of the mean squared change per pixel along the patch's weakest direction.
    """
    grey = F.pad(smooth(frames).mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gx, gy = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2, (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    mean = lambda x: F.avg_pool2d(x, 2 * r + 1, 1, r, count_include_pad=False)[:, 0]
    xx, xy, yy = mean(gx * gx), mean(gx * gy), mean(gy * gy)
    weakest = (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy ** 2).sqrt()
    return weakest.clamp_min(0).sqrt()


@torch.no_grad()
def trackable(truth: Tensor, follow, count: int, generator: torch.Generator | None = None) -> Tracks:
    """True tracks of points that a tracker can fairly be asked about, chosen by looking at the truth alone.

    truth [B, T, 3, H, W] in [0, 1]; follow: points [B, N, 2] in frame 0 -> their exact Tracks (`Clip.track`)
    -> Tracks [B, T, count], visible where the point is to be measured.

    The rule. Taken at random from a 2-pixel grid are points that have texture in both directions, whatever passes over them
    (`texture` at least TEXTURE in four frames of five), and whose ring of eight neighbours moves with them (distances change
    by less than 40 % in every frame: no edge of another thing runs through the patch). They are measured in the frames in
    which they and their ring are seen. A clip with too few such points is measured with fewer.
    """
    height, width = truth.shape[-2:]
    r = max(4, round(PATCH * width / REFERENCE))
    axis = lambda size: torch.arange(r, size - r, 2, device=truth.device) + 0.5
    points = torch.stack(torch.meshgrid(axis(width), axis(height), indexing="xy"), dim=-1).flatten(0, 1)     # [N, 2]
    points = points.expand(len(truth), -1, -1)
    own = follow(points)
    clear, together = own.visible, torch.ones_like(own.visible[:, 0])
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (.7, .7), (-.7, .7), (.7, -.7), (-.7, -.7)):
        beside = follow(points + 0.8 * r * points.new_tensor([x, y]))
        clear = clear & beside.visible
        together &= (((beside.xy - own.xy).norm(dim=-1) / (0.8 * r) - 1).abs() < 0.4).all(dim=1)
    maps = torch.stack([texture(frames, r) for frames in truth.unbind(1)], dim=1)                             # [B, T, H, W]
    column, row = own.xy[..., 0].long().clamp(0, width - 1), own.xy[..., 1].long().clamp(0, height - 1)
    contrast = maps.flatten(2).gather(2, row * width + column)                                                # [B, T, N]
    rich = torch.where(own.visible, contrast, 1e3).quantile(0.2, dim=1) >= TEXTURE
    clear = clear & (contrast >= TEXTURE)
    fair = together & rich & (clear.float().mean(dim=1) >= 0.5)
    chance = torch.rand(fair.shape, generator=generator).to(truth.device)
    pick = (fair + chance).topk(count, dim=1).indices                                                         # [B, count]
    clear = clear & fair[:, None]
    over_time = pick[:, None].expand(-1, truth.shape[1], -1)
    return Tracks(own.xy.gather(2, over_time[..., None].expand(-1, -1, -1, 2)), clear.gather(2, over_time),
                  torch.arange(count, device=truth.device).expand(len(truth), -1))


def check(frames: Tensor, queries: Tensor) -> None:
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames came as {list(frames.shape)}: wanted [B, T, 3, H, W] in [0, 1]")
    if queries.ndim != 3 or queries.shape[0] != len(frames) or queries.shape[-1] != 2:
        raise ValueError(f"queries came as {list(queries.shape)}: wanted [{len(frames)}, N, 2], pixels (x, y) at frame 0")
    if not queries.isfinite().all():
        raise ValueError("queries hold NaN or infinite positions: give finite pixels (x, y)")


def cotracker_cached() -> bool:
    """Is CoTracker3 on this machine already, code and weights?"""
    hub = Path(torch.hub.get_dir())
    return (hub / COTRACKER).is_dir() and (hub / "checkpoints" / "scaled_offline.pth").is_file()


@torch.no_grad()
def cotracker(frames: Tensor, queries: Tensor) -> Tracks:
    """CoTracker3 offline (Karaev et al. 2024; code and weights CC-BY-NC 4.0: measure with it, do not ship it)."""
    hub = Path(torch.hub.get_dir())
    if not cotracker_cached():
        raise FileNotFoundError(f"CoTracker3 is not in {hub}: fetch it once where there is a network, with "
                                "torch.hub.load('facebookresearch/co-tracker', 'cotracker3_offline'), or use method='flow'")
    model = torch.hub.load(str(hub / COTRACKER), "cotracker3_offline", source="local").to(frames.device).eval()
    start = queries.new_zeros(*queries.shape[:2], 1)
    centres = torch.cat([start, queries - 0.5], dim=-1)                           # CoTracker's first pixel is at (0, 0)
    xy, visible = model(frames.float() * 255, queries=centres)
    ids = torch.arange(queries.shape[1], device=frames.device).expand(len(frames), -1)
    return Tracks(xy + 0.5, visible > 0.9 if visible.is_floating_point() else visible, ids)
