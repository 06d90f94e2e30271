"""One video transformer. Teacher: no mask. Student: a mask in training, a past when streaming."""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend, rope
from .config import DiTConfig
from .host import rates

KV = tuple[Tensor, Tensor]          # keys (before RoPE) and values, [B, L, heads, D]
Grid = tuple[int, int, int]         # latent frames, token rows, token columns
Places = tuple[int, ...] | None     # of the frames of past and chunk in time; None: 0, 1, 2, ...
# The path past all blocks is float32, and so is what steers it, also where the products are narrower: as in Wan. Named by
# a part of their names, these weights stay in float32 (`Kit.to`); they are few.
WIDE = "time_", "modulation", "norm3", "head", "gate"


class Placed(NamedTuple):
    """A pair whose keys already stand in their places: so a chunk turns its past once, not in every pass."""
    keys: Tensor
    values: Tensor


def frames_held(past: KV | Placed, h: int, w: int) -> int:
    """Latent frames of h x w tokens in the past."""
    if past[0].shape[1] % (h * w):
        raise ValueError(f"the past holds {past[0].shape[1]} tokens, which is no whole number of frames of {h * w} tokens: "
                         "remember and continue at one size")
    return past[0].shape[1] // (h * w)


def placed(past: KV | Placed, h: int, w: int, places: Places = None) -> Placed:
    if isinstance(past, Placed):
        return past
    held = frames_held(past, h, w)
    return Placed(rope(past[0], (held, h, w), start=0 if places is None else places[:held]), past[1])


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).type_as(x)


class LayerNorm(nn.LayerNorm):
    """Float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None, None) if self.weight is None else (self.weight.float(), self.bias.float())
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))                                    # [B, L, heads, D]

    def query(self, x: Tensor) -> Tensor:
        return self.split(self.norm_q(self.q(x)))

    def keys(self, x: Tensor) -> KV:
        return self.split(self.norm_k(self.k(x))), self.split(self.v(x))


class SelfAttention(Attention):
    def forward(self, x: Tensor, grid: Grid, mask: Tensor | None, past: KV | None, places: Places = None
                ) -> tuple[Tensor, KV]:
        """x [B, L, dim] attended, and its own keys and values before RoPE."""
        f, h, w = grid
        q, own = self.query(x), self.keys(x)
        k, v = own
        held = frames_held(past, h, w) if past is not None else 0
        here = held if places is None else places[held:]
        q, k = rope(q, grid, start=here), rope(k, grid, start=here)
        if past is not None:
            past = placed(past, h, w, places)
            k, v = torch.cat([past.keys, k], dim=1), torch.cat([past.values, v], dim=1)
        return self.o(attend(q, k, v, mask)), own


class CrossAttention(Attention):
    """Text, and where the model has it, the given picture's CLIP features through keys of their own."""

    def __init__(self, dim: int, heads: int, eps: float, clip: bool):
        super().__init__(dim, heads, eps)
        if clip:
            self.k_img, self.v_img, self.norm_k_img = nn.Linear(dim, dim), nn.Linear(dim, dim), RMSNorm(dim, eps)

    def read(self, text: Tensor, clip: Tensor | None) -> list[KV]:
        """Keys and values of the text, then of the picture: the same at every step and in every chunk."""
        kvs = [self.keys(text)] if text.shape[1] else []
        if clip is not None:
            kvs.append((self.split(self.norm_k_img(self.k_img(clip))), self.split(self.v_img(clip))))
        return kvs

    def forward(self, x: Tensor, context: list[KV]) -> Tensor:
        q = self.query(x)
        return self.o(sum(attend(q, k, v, kind="cross") for k, v in context))


class Block(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        self.norm1 = LayerNorm(c.dim, c.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(c.dim, c.heads, c.eps)
        self.norm3 = LayerNorm(c.dim, c.eps)
        self.cross_attn = CrossAttention(c.dim, c.heads, c.eps, clip=c.clip_dim > 0)
        self.norm2 = LayerNorm(c.dim, c.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(c.dim, c.ffn_dim), nn.GELU(c.gelu), nn.Linear(c.ffn_dim, c.dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)

    def modulations(self, time: Tensor) -> tuple[Tensor, ...]:
        """time [B, F, 6, dim] -> shift, scale, gate twice, each [B, F, 1, dim] float32."""
        return (self.modulation.float() + time)[:, :, :, None].unbind(2)

    def keys(self, x: Tensor, time: Tensor, context: list[KV]) -> KV:
        """The keys and values of `forward`, and nothing else."""
        shift, scale, *_ = self.modulations(time)
        return self.self_attn.keys(modulate(self.norm1(x), shift, scale).to(context[0][0].dtype).flatten(1, 2))

    def forward(self, x: Tensor, time: Tensor, context: list[KV], grid: Grid, mask: Tensor | None,
                past: KV | None, places: Places = None) -> tuple[Tensor, KV]:
        """x [B, F, S, dim] float32 with S tokens a latent frame."""
        narrow = context[0][0].dtype                # of the products: what was read of the text came out of one
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulations(time)
        y = modulate(self.norm1(x), shift1, scale1).to(narrow)
        y, kv = self.self_attn(y.flatten(1, 2), grid, mask, past, places)
        x = x + gate1 * y.view_as(x)
        x = x + self.cross_attn(self.norm3(x).to(narrow).flatten(1, 2), context).view_as(x)
        x = x + gate2 * self.ffn(modulate(self.norm2(x), shift2, scale2).to(narrow))
        return x, kv


class Head(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        self.norm = LayerNorm(c.dim, c.eps, elementwise_affine=False)
        self.head = nn.Linear(c.dim, c.latent_channels * c.patch_volume)
        self.modulation = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, F, S, dim], time [B, F, dim] -> [B, F, S, patch volume * latent channels]."""
        return self.head(self.read(x, time))

    def read(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + time[:, :, None])[:, :, :, None].unbind(2)
        return modulate(self.norm(x), shift, scale).to(self.head.weight.dtype)


class ImageEmbedding(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(c.clip_dim), nn.Linear(c.clip_dim, c.clip_dim), nn.GELU(),
                                  nn.Linear(c.clip_dim, c.dim), nn.LayerNorm(c.dim))

    def forward(self, clip: Tensor) -> Tensor:
        return self.proj(clip)


def sinusoid(x: Tensor, dim: int) -> Tensor:
    """[...] -> [..., dim] float32, cosines first; angles in float32, as in diffusers."""
    angle = x.float()[..., None] * rates(dim // 2, x.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class DiT(nn.Module):
    """Velocity field over video latents. Module names are Wan's own, so its checkpoints load without a map."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        c = self.config = config
        self.channels = c.channels
        wide = sum(self.channels[name] for name in c.inputs)
        self.patch_embedding = nn.Conv3d(wide, c.dim, c.patch, c.patch)
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, c.dim), nn.GELU(c.gelu), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        if c.clip_dim:
            self.img_emb = ImageEmbedding(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head = Head(c)
        if c.pull >= 0:
            self.gate = nn.Linear(c.dim, 2 * c.patch_volume)
        self.checkpoint = False         # True: recompute each block in the backward pass, to save memory
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Weights to train from: Wan's, with a head that says nothing yet."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for linear in (*self.text_embedding, *self.time_embedding):
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
        if self.config.pull >= 0:
            nn.init.zeros_(self.gate.weight)

    def forward(self, latents: Tensor, t: Tensor, text: Tensor | list, motion: Tensor | None = None,
                image: Tensor | None = None, *, mask: Tensor | None = None, past: list[KV] | None = None,
                clip: Tensor | None = None, places: Places = None, keys: list[KV] | None = None) -> Tensor:
        """Velocity (noise - data) of `latents` at noise level `t`.

        latents [B, F, C, h, w]; t [B, F] in [0, 1], 1 is pure noise; text [B, L, text_dim], or what `read` made of it;
        motion [B, F, Cm, h, w], zeros where nothing is drawn; image [B, F, Ci, h, w], frame 0 the given picture, then what
        the config's image_frames says (with mask channels they come first; of fewer frames than F the rest is zeros, or,
        for "grey", the last again); None: zeros.
        mask [F * S, F * S] bool or None (see everything); past: `ChunkCache.past()` or None (start of the video).
        places: of the frames of past and latents in time, if not 0, 1, 2, ... keys: a list that takes this pass' own keys
        and values, as `remember` gives them of a clean one.
        """
        x, time, grid, kvs = self.trunk(latents, t, text, motion, image, mask, past, clip, places, kept=keys is not None)
        if keys is not None:
            keys += kvs
        velocity = self.cells(self.head(x, time), grid).type_as(latents)
        if self.config.pull >= 0:
            gates = self.cells(self.gate(self.head.read(x, time)), grid)
            velocity = self.pulled(velocity, latents, t, motion, image, gates.type_as(latents).sigmoid())
        if self.config.image_frames == "clean" and image is not None:               # of the given frame the way is known
            way = (latents[:, :1] - image[:, :1]) / t[:, :1, None, None, None].clamp(min=1e-6)
            velocity = torch.cat([way.type_as(velocity), velocity[:, 1:]], dim=1)
        return velocity

    def cells(self, x: Tensor, grid: Grid) -> Tensor:
        """[B, F, S, patch volume * C] -> [B, F, C, h, w]"""
        pt, ph, pw = self.config.patch
        return rearrange(x, "b f (h w) (p q r c) -> b (f p) c (h q) (w r)", h=grid[1], w=grid[2], p=pt, q=ph, r=pw)

    def known(self, latents: Tensor, motion: Tensor | None, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """What an answer like `latents` may be known to be, [B, F, C, h, w], and where it is carried, [B, F, 1, h, w] bool.

        What the tracks carry; where they carry nothing, the given picture, if it stands beside "every" frame, else zeros.
        """
        c, channels = self.config, self.config.latent_channels
        known, near = torch.zeros_like(latents), torch.zeros_like(latents[:, :, :1], dtype=torch.bool)
        if image is not None and c.image_frames == "every":
            known = image[:, :1, -channels:].to(latents).expand_as(latents)
        if motion is not None:
            carried = motion[:, :, c.pull:c.pull + channels].to(latents)
            near = (carried != 0).any(dim=2, keepdim=True)
            known = torch.where(near, carried, known)
        return known, near

    def pulled(self, velocity: Tensor, latents: Tensor, t: Tensor, motion: Tensor | None, image: Tensor | None, gates: Tensor
               ) -> Tensor:
        """The velocity to a point between the answer, x0 = x_t - t v, and what is known of it: x0 + min(1, 2 t) g (b - x0).

        b is what is `known`. Gates g say for each cell how far, one for what is carried and one for the picture, gates
        [B, F, 2, h, w] in [0, 1]; in the half near the data not all the way, as x_t itself knows better. A small transformer
        need not learn to pass a picture through whole. Ours: the paper's model has no such path.
        """
        known, near = self.known(latents, motion, image)
        shown = image is not None and self.config.image_frames == "every"
        gate = torch.where(near, gates[:, :, :1], gates[:, :, 1:] * shown)
        t = t[:, :, None, None, None].to(latents)
        return velocity - (1 / t).clamp(max=2) * gate * (known - latents + t * velocity)

    def placed(self, past: list[KV], size: tuple[int, int], places: Places = None) -> list[Placed]:
        """The past of chunks whose latents are of this (h, w), for several passes: its keys are turned once, here."""
        rows, columns = self.config.token_grid(size)
        return [placed(pair, rows, columns, places) for pair in past]

    def remember(self, latents: Tensor, text: Tensor | list, motion: Tensor | None = None, image: Tensor | None = None, *,
                 past: list[KV] | None = None, clip: Tensor | None = None, places: Places = None) -> list[KV]:
        """Keys and values of a clean chunk (t = 0), one pair per layer, for `ChunkCache.push`."""
        t = latents.new_zeros(latents.shape[:2])
        return self.trunk(latents, t, text, motion, image, None, past, clip, places, keys_only=True)[-1]

    def read(self, text: Tensor, clip: Tensor | None = None) -> list[list[KV]]:
        """Text [B, L, text_dim] as the blocks read it; pass it in place of `text` while the prompt stays the same."""
        text = self.text_embedding(text.to(self.text_embedding[0].weight.dtype))
        if self.config.text_split:
            text, clip = text[:, 257:], text[:, :257]
        elif self.config.clip_dim:
            if clip is None:
                clip = text.new_zeros(len(text), 257, self.config.clip_dim)
            clip = self.img_emb(clip.to(self.img_emb.proj[1].weight.dtype))
        return [block.cross_attn.read(text, clip) for block in self.blocks]

    def trunk(self, latents, t, text, motion, image, mask, past, clip, places=None, keys_only=False, kept=True):
        if self.config.image_frames == "clean" and image is not None:
            latents = torch.cat([image[:, :1].to(latents).expand_as(latents[:, :1]), latents[:, 1:]], dim=1)
            t, image = torch.cat([torch.zeros_like(t[:, :1]), t[:, 1:]], dim=1), None
        x, grid = self.tokens(latents, motion, image, past)
        context = self.read(text, clip) if isinstance(text, Tensor) else text
        with torch.autocast(x.device.type, enabled=False):                          # float32 where the weights are
            time = self.time_embedding(sinusoid(1000 * t, self.config.freq_dim).to(self.time_embedding[0].weight.dtype))
            six = self.time_projection(time).unflatten(-1, (6, -1))                 # [B, F, 6, dim]
        x, kvs = x.float(), []
        for i, block in enumerate(self.blocks):
            held = past[i] if past else None                    # []: nothing is remembered of a video that has begun
            if keys_only and i + 1 == len(self.blocks):
                kvs.append(block.keys(x, six, context[i]))
                break
            if self.checkpoint and torch.is_grad_enabled():
                x, kv = checkpoint(block, x, six, context[i], grid, mask, held, places, use_reentrant=False)
            else:
                x, kv = block(x, six, context[i], grid, mask, held, places)
            if kept:                                            # else layer after layer gives its memory back
                kvs.append(kv)
        return x, time, grid, kvs

    def tokens(self, latents: Tensor, motion: Tensor | None, image: Tensor | None, past=None) -> tuple[Tensor, Grid]:
        """Inputs side by side, cut in patches and embedded: [B, F, S, dim]."""
        b, f, _, h, w = latents.shape
        given = {"noise": latents, "motion": motion}
        if image is not None:
            if self.config.image_frames == "grey":                      # the last frame stays as it is: a steady state
                image = image[:, torch.arange(f, device=image.device).clamp(max=image.shape[1] - 1)]
            else:
                image = F.pad(image, (0, 0, 0, 0, 0, 0, 0, f - image.shape[1]))
            given["mask"], given["image"] = image.split([image.shape[2] - self.channels["image"], self.channels["image"]],
                                                        dim=2)
            if self.config.image_frames == "every":                     # beside every frame; the mask says which one it is
                given["image"] = given["image"][:, :1].expand(-1, f, -1, -1, -1)
                given["mask"] = given["mask"] if past is None else None
        parts = []
        for name in self.config.inputs:
            part = given.get(name)
            if part is None:
                part = latents.new_zeros(b, f, self.channels[name], h, w)
            if part.shape != (b, f, self.channels[name], h, w):
                raise ValueError(f"{name} came as {list(part.shape)}, but these latents ask for "
                                 f"{[b, f, self.channels[name], h, w]}")
            parts.append(part.type_as(latents))
        pt, ph, pw = self.config.patch
        weight = self.patch_embedding.weight
        x = rearrange(torch.cat(parts, dim=2), "b (f p) c (h q) (w r) -> b f (h w) (c p q r)", p=pt, q=ph, r=pw)
        x, weight, base = x.to(weight.dtype), weight.flatten(1), self.config.base_channels * self.config.patch_volume
        if base:
            x = (F.linear(x[..., :base].contiguous(), weight[:, :base].contiguous(), self.patch_embedding.bias)
                 + F.linear(x[..., base:], weight[:, base:]))
        else:
            x = F.linear(x, weight, self.patch_embedding.bias)
        return x, (f // pt, h // ph, w // pw)
