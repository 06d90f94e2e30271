"""Tiny video autoencoder: 2D convolutions, plus one frame of memory per block. Layers are numbered as in TAEHV's files.

Inside, frames lie time-major, [T * B, C, H, W]: then the frame before is a slice, and a batch costs no transpose.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VAEConfig


def conv(n_in: int, n_out: int, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=bias)


def laid_out_as(model: Tensor, x: Tensor) -> Tensor:
    """x, channels last in memory if `model` is: joining frames undoes it, and each convolution would turn them."""
    last = model.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Residual block that also sees its own previous input frame."""

    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Sequential(conv(2 * n, n), nn.ReLU(), conv(n, n), nn.ReLU(), conv(n, n))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat([x, before], dim=1)) + x)


def remembering(n: int, count: int, after_relu: bool = False) -> list[nn.Module]:
    """`count` memory blocks; where there are none, what each of them ends with: a ReLU."""
    return [MemBlock(n) for _ in range(count)] or ([] if after_relu else [nn.ReLU()])


class Pool(nn.Module):
    """`times` frames become one."""

    def __init__(self, n: int, times: int):
        super().__init__()
        self.times, self.conv = times, nn.Conv2d(n * times, n, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.times > 1:
            parts = x.unflatten(0, (-1, self.times, batch)).unbind(1)
            x = laid_out_as(x, torch.cat(parts, dim=2).flatten(0, 1))
        return self.conv(x)


class Grow(nn.Module):
    """One frame becomes `times` frames, and each cell `space` x `space` cells.

    TAEHV enlarges first; a 1x1 convolution does not mind, and after it there is less to compute.
    """

    def __init__(self, n: int, times: int, space: int):
        super().__init__()
        self.times, self.space, self.conv = times, space, nn.Conv2d(n, n * times, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.conv(x)
        if self.times > 1:
            parts = [part.unflatten(0, (-1, batch)) for part in x.chunk(self.times, dim=1)]
            x = laid_out_as(x, torch.stack(parts, dim=1).flatten(0, 2))
        return F.interpolate(x, scale_factor=self.space, mode="nearest") if self.space > 1 else x


class TinyVAE(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        c = self.config = config
        pixels, n = 3 * c.pixel_shuffle**2, c.encoder_width
        encoder_blocks, decoder_blocks = c.stages
        encoder = [conv(pixels, n), nn.ReLU()]
        for times, space, count in zip(reversed(c.times), reversed(c.spaces), encoder_blocks):
            encoder += [Pool(n, times), conv(n, n, bias=not count, stride=space), *remembering(n, count)]
        self.encoder = nn.Sequential(*encoder, conv(n, c.latent_channels))
        widths = c.decoder_widths
        decoder = [Clamp(), conv(c.latent_channels, widths[0]), nn.ReLU()]
        for i, (times, space, count) in enumerate(zip(c.times, c.spaces, decoder_blocks)):
            decoder += [*remembering(widths[i], count, after_relu=i == 0), nn.Identity(), Grow(widths[i], times, space),
                        conv(widths[i], widths[i + 1], bias=not all(decoder_blocks))]
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), conv(widths[-1], pixels))
        nn.init.constant_(self.decoder[-1].bias, 0.5)                   # grey
        self.register_buffer("mean", torch.zeros(c.latent_channels))    # of the encoder's output, over data
        self.register_buffer("std", torch.ones(c.latent_channels))

    @property
    def forgets(self) -> int:
        """Latent frames after which the encoder knows nothing more of a picture: each memory block looks back by one."""
        return 2 + sum(self.config.stages[0])

    def encode(self, frames: Tensor) -> Tensor:
        """frames [B, T, 3, H, W] in [0, 1], T = 1 + 4 (F - 1) -> latents [B, F, C, h, w], about unit variance.

        Frame 0 is repeated to fill the first group of four, as the decoder drops three frames there (TAEHV's encoder has
        learned it the other way round: `VAEConfig.fill_end`).
        """
        extra = self.config.time_stride - 1
        if (frames.shape[1] - 1) % (extra + 1):
            raise ValueError(f"{frames.shape[1]} frames do not fill whole latent frames: use 1 + {extra + 1} n of them")
        if self.config.fill_end:
            x = torch.cat([frames, frames[:, -1:].expand(-1, extra, -1, -1, -1)], dim=1)
        else:
            x = torch.cat([frames[:, :1].expand(-1, extra, -1, -1, -1), frames], dim=1)
        return (self.encode_groups(x) - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def encode_alone(self, frames: Tensor) -> Tensor:
        """frames [B, 4 F, 3, H, W] -> latents [B, F, C, h, w], each group of four as if nothing had been before it."""
        groups = frames.unflatten(1, (-1, self.config.time_stride)).flatten(0, 1)
        x = (self.encode_groups(groups) - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        return x.unflatten(0, (len(frames), -1)).squeeze(2)

    def encode_groups(self, frames: Tensor) -> Tensor:
        """frames [B, 4 F, 3, H, W] -> latents [B, F, C, h, w] as the last layer gives them."""
        x = self._enter(F.pixel_unshuffle(frames, self.config.pixel_shuffle), self.encoder[0].weight)
        x, _ = self._walk(self.encoder, x, len(frames), None)
        return self._leave(x, len(frames))

    def decode(self, latents: Tensor, past: list[Tensor] | None = None, clamp: bool = True) -> tuple[Tensor, list[Tensor]]:
        """latents [B, F, C, h, w] -> frames [B, T, 3, H, W] in [0, 1], and the past for the next chunk.

        T is 1 + 4 (F - 1) for the first chunk of a video (past is None) and 4 F afterwards; cut anywhere, the frames
        are the same.
        """
        x = latents * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)
        x, seen = self._walk(self.decoder, self._enter(x, self.decoder[1].weight), len(latents), past)
        frames = F.pixel_shuffle(self._leave(x, len(latents)).contiguous(), self.config.pixel_shuffle)
        if past is None:
            frames = frames[:, self.config.time_stride - 1:]            # the first latent frame is one pixel frame
        return (frames.clamp(0, 1) if clamp else frames), seen

    def _enter(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [T * B, C, H, W], in the weights' own type and memory format."""
        return laid_out_as(weight, x.transpose(0, 1).flatten(0, 1).to(weight.dtype))

    def _leave(self, x: Tensor, batch: int) -> Tensor:
        return x.float().unflatten(0, (-1, batch)).transpose(0, 1)

    def _walk(self, layers: nn.Sequential, x: Tensor, batch: int, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []
        for layer in layers:
            if isinstance(layer, MemBlock):
                last = torch.zeros_like(x[:batch]) if past is None else past[len(seen)]
                seen.append(x[-batch:].clone())         # a view would keep all of x
                x = layer(x, torch.cat([last, x[:-batch]]))
            elif isinstance(layer, (Pool, Grow)):
                x = layer(x, batch)
            else:
                x = layer(x)
        return x, seen
