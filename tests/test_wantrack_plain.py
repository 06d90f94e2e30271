"""WanTrack once more, in plain loops under its checkpoint's own names: a judge for cases that no golden tensor holds."""
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from msk import checkpoints
from msk.config import PRESETS, Geometry, StreamConfig
from msk.dit import DiT
from msk.guidance import Condition, joint_guidance
from msk.motion import TrackHead
from msk.stream import Roll, given
from msk.tracks import Tracks

FOLDER = Path(__file__).parent / "golden/trackwan_tiny/transformer"
DATA, W = json.loads((FOLDER / "config.json").read_text()), checkpoints.read(FOLDER)
HEADS, D = DATA["num_attention_heads"], DATA["attention_head_dim"]
BASE = PRESETS["wantrack-1.3b"]


def linear(name, x):
    return F.linear(x, W[f"{name}.weight"], W[f"{name}.bias"])


def rms(name, x):
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * W[f"{name}.weight"]).unflatten(-1, (HEADS, D))


def norm(x, eps=1e-6):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def affine(name, x, eps=1e-6):
    return norm(x, eps) * W[f"{name}.weight"] + W[f"{name}.bias"]


def turned(x, frame, h, w):
    """x [B, h w, heads, D] of one latent frame that stands at `frame`: token by token, pair by pair."""
    out, side = x.clone(), 2 * (D // 6)
    for token in range(h * w):
        at = 0
        for place, size in ((frame, D - 2 * side), (token // w, side), (token % w, side)):
            for i in range(size // 2):
                angle = place * 10_000 ** (-2 * i / size)
                a, b = x[:, token, :, at], x[:, token, :, at + 1]
                out[:, token, :, at] = a * math.cos(angle) - b * math.sin(angle)
                out[:, token, :, at + 1] = a * math.sin(angle) + b * math.cos(angle)
                at += 2
    return out


def attend(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / D ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)


def waves(x, dim):
    angle = x.float()[..., None] * torch.exp(-math.log(10_000) * torch.arange(dim // 2).float() / (dim // 2))
    return torch.cat([angle.cos(), angle.sin()], -1)


def plain(inputs, level, text, clip, before=None, start=0, sink=0, budget=10**6, absolute=False):
    """inputs [B, F, 52, H, W] at noise level `level` (thousandths) -> velocity, and what each layer sees, frame by frame.

    before: the same of the chunk before; frames that do not fit the budget are forgotten, the oldest that is no sink first.
    """
    b, f, _, height, width = inputs.shape
    h, w, dim, seen = height // 2, width // 2, HEADS * D, []
    x = F.conv3d(inputs.transpose(1, 2), W["patch_embedding.weight"], W["patch_embedding.bias"], stride=(1, 2, 2))
    x, c = x.permute(0, 2, 3, 4, 1).reshape(b, f, h * w, dim), "condition_embedder"
    time = waves(torch.full((b,), float(level)), DATA["freq_dim"])
    time = linear(f"{c}.time_embedder.linear_2", F.silu(linear(f"{c}.time_embedder.linear_1", time)))
    six = linear(f"{c}.time_proj", F.silu(time)).view(b, 6, dim)
    text = linear(f"{c}.text_embedder.linear_1", text)
    text = linear(f"{c}.text_embedder.linear_2", F.gelu(text, approximate="tanh"))
    look = linear(f"{c}.image_embedder.ff.net.0.proj", affine(f"{c}.image_embedder.norm1", clip, 1e-5))
    look = affine(f"{c}.image_embedder.norm2", linear(f"{c}.image_embedder.ff.net.2", F.gelu(look)), 1e-5)
    for i in range(DATA["num_layers"]):
        one, two = f"blocks.{i}.attn1", f"blocks.{i}.attn2"
        table = W[f"blocks.{i}.scale_shift_table"] + six
        shift1, scale1, gate1, shift2, scale2, gate2 = (table[:, j, None, None] for j in range(6))
        y = norm(x) * (1 + scale1) + shift1
        q, k = (rms(f"{one}.norm_{part}", linear(f"{one}.to_{part}", y)) for part in "qk")
        v = linear(f"{one}.to_v", y).unflatten(-1, (HEADS, D))
        frames = list(before[i]) if before else []
        while len(frames) + f > budget:
            frames.remove(next(frame for frame in frames if frame[0] >= sink))
        frames += [(start + j, k[:, j], v[:, j]) for j in range(f)]
        places = [number if absolute else j for j, (number, *_) in enumerate(frames)]
        keys = torch.cat([turned(key, place, h, w) for place, (_, key, _) in zip(places, frames)], 1)
        queries = torch.cat([turned(q[:, j], places[len(frames) - f + j], h, w) for j in range(f)], 1)
        y = attend(queries, keys, torch.cat([value for *_, value in frames], 1))
        x = x + gate1 * linear(f"{one}.to_out.0", y).view_as(x)
        q = rms(f"{two}.norm_q", linear(f"{two}.to_q", affine(f"blocks.{i}.norm2", x).flatten(1, 2)))
        y = 0
        for n, to_k, to_v, of in (("norm_k", "to_k", "to_v", text), ("norm_added_k", "add_k_proj", "add_v_proj", look)):
            v = linear(f"{two}.{to_v}", of).unflatten(-1, (HEADS, D))
            y = y + attend(q, rms(f"{two}.{n}", linear(f"{two}.{to_k}", of)), v)
        x = x + linear(f"{two}.to_out.0", y).view_as(x)
        y = linear(f"blocks.{i}.ffn.net.0.proj", norm(x) * (1 + scale2) + shift2)
        x = x + gate2 * linear(f"blocks.{i}.ffn.net.2", F.gelu(y, approximate="tanh"))
        seen.append(frames)
    table = W["scale_shift_table"] + time[:, None]
    x = linear("proj_out", norm(x) * (1 + table[:, 1, None, None]) + table[:, 0, None, None])
    return x.view(b, f, h, w, 2, 2, 16).permute(0, 1, 6, 2, 4, 3, 5).reshape(b, f, 16, height, width), seen


def plain_map(tracks, width, height, bias):
    """Point by point on the grid, then the two convolutions -> [B, F, 16, h, w]."""
    (b, t), (h, w) = tracks.visible.shape[:2], (height // 8, width // 8)
    grid = torch.zeros(b, 64, 3 + t, h, w)
    size = torch.tensor([width, height])
    for i, frame, j in tracks.visible.nonzero().tolist():
        x, y = ((tracks.xy[i, frame, j] / size).clamp(0, 1) * torch.tensor([w - 1, h - 1])).round().long()
        grid[i, :, 3 + frame, y, x] += waves(tracks.ids[i, j], 64)
    of = lambda part: (W[f"track_encoder.{part}.weight"], W[f"track_encoder.{part}.bias"] if bias else None)
    return F.conv3d(F.conv3d(grid, *of("temporal_conv"), stride=(4, 1, 1)), *of("proj")).transpose(1, 2)


CASES = [  # batch, latent rows, columns, points, biases, first, chunk, sink, frames of room, absolute places
    (2, 4, 6, 7, True, 4, 3, 1, 2, False), (1, 6, 4, 13, False, 1, 2, 2, 1, True), (2, 2, 4, 1, True, 3, 1, 3, 1, False),
    (1, 4, 4, 0, True, 2, 4, 0, 0, True), (1, 4, 6, 31, False, 3, 3, 0, 3, False)]


@pytest.mark.parametrize("b, h, w, n, bias, first, chunk, sink, room, absolute", CASES)
@torch.no_grad()
def test_what_plain_loops_make_of_it(b, h, w, n, bias, first, chunk, sink, room, absolute, exact):
    """Tracks with points hidden, outside and in one cell; the teacher and its guidance; then chunk after chunk."""
    g, frames = torch.Generator().manual_seed(n), first + 3 * chunk
    draw = lambda *size: torch.randn(*size, generator=g)
    t, geometry = 4 * frames - 3, Geometry(8 * h, 8 * w, fps=24)
    xy = (torch.rand(b, t, n, 2, generator=g) * 1.4 - 0.2) * torch.tensor([8.0 * w, 8.0 * h])
    xy[:, :, :1] = xy[:, :, -1:]
    ids = torch.stack([torch.randperm(100_000, generator=g)[:n] for _ in range(b)])
    tracks = Tracks(xy, torch.rand(b, t, n, generator=g) < 0.6, ids)
    state = {name: x for name, x in W.items() if bias or not (name.startswith("track_encoder") and name.endswith("bias"))}
    head = TrackHead(checkpoints.track_config(DATA["track_config"], state, BASE.tracks), geometry)
    checkpoints.fill_track_head(head, state)
    dit = DiT(checkpoints.dit_config(DATA, BASE.dit)).eval()
    checkpoints.fill_dit(dit, state)
    motion = head(tracks)
    exact(motion, plain_map(tracks, 8 * w, 8 * h, bias))

    text, clip, noise, clean = draw(b, 512, 24), draw(b, 257, 20), draw(b, frames, 16, h, w), draw(b, frames, 16, h, w)
    image = torch.cat([torch.zeros(b, frames, 4, h, w), draw(b, frames, 16, h, w)], 2)
    image[:, 0, :4] = 1
    side = lambda x, now=slice(None), drawn=motion: torch.cat([x[:, now], image[:, now], drawn[:, now]], 2)
    level = torch.full((b, frames), 0.923, dtype=torch.float64)
    full, no_text, no_motion = (plain(side(noise, drawn=drawn), 923, said, clip)[0] for drawn, said in (
        (motion, text), (motion, 0 * text), (0 * motion, text)))
    exact(dit(noise, level, text, motion, image, clip=clip), full)
    cond = Condition(text, motion, image, torch.zeros_like(text), clip)
    for text_scale, motion_scale in ((3.0, 1.5), (2.0, 0.5), (0.0, 2.0)):
        a = text_scale / (text_scale + motion_scale)
        want = a * no_text + (1 - a) * no_motion + text_scale * (full - no_text) + motion_scale * (full - no_motion)
        made = joint_guidance(dit, noise, level, cond, text_scale, motion_scale)
        torch.testing.assert_close(made, want, rtol=0, atol=5e-5)

    budget = max(sink + chunk, first) + room
    config = StreamConfig(first=first, chunk=chunk, sink=sink, budget=budget, places="absolute" if absolute else "held")
    roll, before = Roll(dit, dit.read(text, clip), config), None
    for index in range(4):
        now = slice(*config.span(index))
        past, where = roll._before(noise[:, now])
        told, how = (roll.text, motion[:, now], given(dit, image, now)), dict(past=past, **where)
        rule = dict(before=before, start=now.start, sink=sink, budget=budget, absolute=absolute)
        for thousandths in (1000, 667):
            t = torch.full((b, now.stop - now.start), thousandths / 1000, dtype=torch.float64)
            exact(dit(noise[:, now], t, *told, **how), plain(side(noise, now), thousandths, text, clip, **rule)[0])
        roll._remember(clean[:, now], *told[1:], past, where)
        before = plain(side(clean, now), 0, text, clip, **rule)[1]
