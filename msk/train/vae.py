"""The tiny VAE. Reconstruction, gradients of the picture, and a small patch critic for crispness."""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Geometry
from ..tinyvae import Grow, MemBlock, Pool, TinyVAE
from ..world import World


class PatchCritic(nn.Module):
    """Scores patches of single frames: high for true ones (hinge loss)."""

    def __init__(self, width: int = 32):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(
            norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2),
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2),
            norm(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)), nn.LeakyReLU(0.2),
            norm(nn.Conv2d(2 * width, 1, 3, 1, 1)))

    def forward(self, frames: Tensor) -> Tensor:
        """[M, 3, H, W] in [0, 1] -> [M, 1, H / 4, W / 4]."""
        return self.net(frames * 2 - 1)


def clips(geometry: Geometry, batch: int, frames: int = 5, full: float = 0.35, crop: float = 0.5, hurried: float = 0.,
          seed: int = 0, device: str | torch.device = "cpu") -> Iterator[Tensor]:
    """Endless batches [B, T, 3, H, W], a share `full` of them from the full world; each clip is cut to `crop` of its size.

    Many small crops teach more than a few whole frames: what a batch lacks first is variety. hurried: share of clips whose
    things go as fast as a hand drags them, cut out about the nearest.
    """
    worlds, many = (World(geometry, "full"), World(geometry, "calm")), round(batch * full)
    dice = torch.Generator().manual_seed(seed)
    size = torch.tensor([geometry.width, geometry.height])
    cut = (size * crop / geometry.stride).round().clamp(min=1).int() * geometry.stride
    while True:
        seed += 1
        found = []
        for world, count in zip(worlds, (many, batch - many)):
            for fast, n in ((True, round(count * hurried)), (False, count - round(count * hurried))):
                if not n:
                    continue
                scene, _ = world.scene(n, frames, (seed + 450_000 * fast) % 900_000, device)
                corner = torch.rand(n, 2, generator=dice) * (size - cut + 1)
                if fast:
                    scene = scene.hurried(torch.Generator(device=device).manual_seed(seed))
                    nearest = scene.there.shape[1] - 1 - scene.there.flip(1).int().argmax(dim=1)
                    middle = scene.centre[range(n), frames // 2, nearest].cpu()
                    corner = (middle + 1) / 2 * size + (corner - (size - cut) / 2) / 2 - cut / 2
                corner = corner.long().clamp(min=0).minimum(size - cut)
                found += [x[..., y:y + cut[1], j:j + cut[0]] for x, (j, y) in zip(scene.render(), corner.tolist())]
        yield torch.stack(found)


def slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences along columns, rows and time."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :], x[:, 1:] - x[:, :-1]


def vae_loss(vae: TinyVAE, frames: Tensor, noise: float = 0.10, critic: PatchCritic | None = None, adversarial: float = 0.,
             calibrated: bool = False) -> tuple[Tensor, dict, Tensor]:
    """Loss, logs and the reconstruction.

    Latents are scaled to zero mean and unit variance per channel over the batch (`calibrate` fixes the scale afterwards),
    unless they are `calibrated`, and decoded with a little noise on them, so that the decoder forgives a sampler's small
    errors.
    """
    latents = vae.encode(frames).float()
    over = (0, 1, 3, 4)
    if not calibrated:
        latents = (latents - latents.mean(over, keepdim=True)) / latents.std(over, keepdim=True).clamp_min(1e-3)
    decoded = vae.decode(latents + noise * torch.randn_like(latents), clamp=False)[0].float()
    l1 = (decoded - frames).abs().mean()
    mse = F.mse_loss(decoded, frames)
    edges = sum((a - b).abs().mean() for a, b in zip(slopes(decoded), slopes(frames)))
    loss = l1 + 4 * mse + edges
    if critic is not None:
        loss = loss - adversarial * critic(decoded.flatten(0, 1)).mean()
    with torch.no_grad():
        psnr = -10 * F.mse_loss(decoded.clamp(0, 1), frames).log10()
    return loss, {"l1": l1.item(), "psnr": psnr.item()}, decoded


def critic_loss(critic: PatchCritic, frames: Tensor, decoded: Tensor) -> Tensor:
    true, made = critic(frames.flatten(0, 1)), critic(decoded.detach().clamp(0, 1).flatten(0, 1))
    return F.relu(1 - true).mean() + F.relu(1 + made).mean()


@torch.no_grad()
def calibrate(vae: TinyVAE, batches: Iterator[Tensor], count: int = 24) -> None:
    """Fold the latents' scale over data into the encoder's last layer: they come out as the decoder learnt to read them."""
    latents = torch.cat([vae.encode(next(batches)).float() for _ in range(count)])
    mean, std = latents.mean(dim=(0, 1, 3, 4)), latents.std(dim=(0, 1, 3, 4)).clamp_min(1e-4)
    last = vae.encoder[-1]
    last.weight.div_(std[:, None, None, None])
    last.bias.copy_((last.bias - mean) / std)


@torch.no_grad()
def near_identity(vae: TinyVAE, noise: float = 0.5) -> None:
    """Start as a plain subsampling and enlarging of the picture, plus noise: minutes of training are saved.

    Every convolution passes its first channels on; latents enter the decoder as plus and minus, since ReLUs follow.
    """
    def eye(layer: nn.Conv2d, groups: int = 1, share: float = 1.) -> None:
        layer.weight.mul_(noise)
        n_out, n_in = layer.weight.shape[:2]
        middle = layer.weight.shape[-1] // 2
        for i in range(min(n_out, n_in)):
            layer.weight[i, i, middle, middle] += share

    for block in (m for m in vae.modules() if isinstance(m, MemBlock)):
        block.conv[-1].weight.mul_(.1)
    for layer in [*vae.encoder, *vae.decoder]:
        if isinstance(layer, nn.Conv2d):
            eye(layer)
        elif isinstance(layer, Pool):
            layer.conv.weight.mul_(noise)
            n = layer.conv.weight.shape[0]
            for part in range(layer.times):
                layer.conv.weight[range(n), range(part * n, part * n + n), 0, 0] += 1 / layer.times
        elif isinstance(layer, Grow):
            layer.conv.weight.mul_(noise)
            n = layer.conv.weight.shape[1]
            for part in range(layer.times):
                layer.conv.weight[range(part * n, part * n + n), range(n), 0, 0] += 1
    squares, c = vae.config.pixel_shuffle**2, vae.config.latent_channels
    order = [colour * squares + place for place in range(squares) for colour in range(3)]           # red, green, blue first
    first, last, enter = vae.encoder[0], vae.decoder[-1], vae.decoder[1]
    for i in range(min(len(order), first.weight.shape[0])):
        first.weight[i, i, 1, 1] -= 1
        first.weight[i, order[i], 1, 1] += 1
    double = min(c, enter.weight.shape[0] // 2, last.weight.shape[1] // 2)
    enter.weight[range(double, 2 * double), range(double), 1, 1] -= 1
    last.weight.mul_(.2)
    for pixel in range(len(order)):
        i = order.index(pixel)
        i = i if i < double else i % 3                                                              # its colour, at least
        last.weight[pixel, i, 1, 1] = .2
        last.weight[pixel, double + i, 1, 1] = -.2
