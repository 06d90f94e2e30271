"""What comes with Wan and stays outside our own models: its full autoencoder, umT5 for prompts, CLIP for pictures.

The two big encoders are opened for one prompt or picture, and let go; what they said of a prompt is kept on disk.
"""
from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import read
from .kit import best_dtype, memory_gib
from .tinyvae import TinyVAE
from .weights import fetch, fill, read_weights, save_weights

ONE_AT_A_TIME = threading.RLock()       # diffusers' autoencoder keeps its past in itself; two open encoders may not fit
UMT5_BYTES = 11.4e9                     # of umT5-XXL's encoder in bfloat16
KEPT = 2                                # which way prompts' features were made: others are not taken from the disk


class FullVAE(nn.Module):
    """Wan's own autoencoder (diffusers' `AutoencoderKLWan`) with the manners of `TinyVAE`: its past goes in and out."""

    forgets = 31            # latent frames after which a picture has left its encoder's memory: exactly, for its topology

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean), persistent=False)
        self.register_buffer("std", torch.tensor(vae.config.latents_std), persistent=False)

    @staticmethod
    def open(place) -> FullVAE:
        """A folder of diffusers', or Wan 2.1's own Wan2.1_VAE.pth."""
        kind = need("diffusers").AutoencoderKLWan
        if not Path(place).is_file():
            return FullVAE(kind.from_pretrained(place))
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
        state = convert_wan_vae_to_diffusers(read(place))
        vae = kind(base_dim=len(state["encoder.conv_in.weight"]), z_dim=len(state["quant_conv.weight"]) // 2)
        fill(vae, state, str(place))
        return FullVAE(vae)

    def encode(self, frames: Tensor) -> Tensor:
        """frames [B, T, 3, H, W] in [0, 1] -> latents [B, F, C, h, w], normalised; the mean, not a sample."""
        x = (frames * 2 - 1).transpose(1, 2).to(self.vae.quant_conv.weight.dtype)
        with ONE_AT_A_TIME:
            latents = self.vae.encode(x).latent_dist.mean.transpose(1, 2).float()
        return (latents - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def decode(self, latents: Tensor, past: list | None = None) -> tuple[Tensor, list]:
        """latents [B, F, C, h, w] -> frames [B, T, 3, H, W] in [0, 1], and the past for the next chunk."""
        x = latents * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)
        x = self.vae.post_quant_conv(x.transpose(1, 2).to(self.vae.post_quant_conv.weight.dtype))
        with ONE_AT_A_TIME:
            self.vae.clear_cache()
            seen, frames = list(past if past is not None else self.vae._feat_map), []
        for i in range(x.shape[2]):
            start = {"first_chunk": True} if past is None and i == 0 else {}
            frames.append(self.vae.decoder(x[:, :, i:i + 1], feat_cache=seen, feat_idx=[0], **start))
        x = torch.cat(frames, 2).transpose(1, 2).float()                        # [B, T, C, H, W]
        if self.vae.config.patch_size is not None:                              # 2.2 folds columns before rows
            p = self.vae.config.patch_size
            x = F.pixel_shuffle(x.unflatten(2, (-1, p, p)).transpose(3, 4).flatten(2, 4), p)
        return (x / 2 + 0.5).clamp(0, 1), seen


class MixedVAE(nn.Module):
    """Wan's own encoder, which pictures were given through in training, and a tiny decoder, which is fast."""

    def __init__(self, full: FullVAE, tiny: TinyVAE):
        super().__init__()
        self.full, self.tiny, self.forgets = full, tiny, full.forgets
        self.encode, self.decode = full.encode, tiny.decode


class UMT5(nn.Module):
    """Wan's text encoder: prompts -> [B, 512, 4096], zeros after the last token.

    The encoder (11 GB) is opened when a prompt is new, and let go; its words' features are kept in `prompts_kept`.
    folder: holds tokenizer/ and text_encoder/, or is missing them and they are fetched from `repo`.
    """

    def __init__(self, folder, repo: str = "", length: int = 512):
        super().__init__()
        self.folder, self.repo, self.length = Path(folder), repo, length
        self.register_buffer("where", torch.zeros(()), persistent=False)

    def forward(self, prompts: list[str]) -> Tensor:
        if isinstance(prompts, str):
            raise TypeError(f"prompts came as one string, {prompts[:40]!r}: give a list, one prompt per clip")
        prompts = [" ".join(p.split()) for p in prompts]
        features = {p: read_weights(place)["features"] for p in set(prompts) if (place := self.kept(p)).is_file()}
        new = [p for p in dict.fromkeys(prompts) if p not in features]
        if new:
            with ONE_AT_A_TIME:
                features |= dict(zip(new, self.encode(new)))
            let_go(self.where.device)
        rows = [F.pad(features[p].float(), (0, 0, 0, self.length - len(features[p]))) for p in prompts]
        return torch.stack(rows).to(self.where.device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> list[Tensor]:
        """Per prompt [words, text_dim]: what umT5 says of its real words, which is also written to disk."""
        folder = beside(self.folder, "text_encoder", self.repo, ["text_encoder/*", "tokenizer/*"])
        transformers, device = need("transformers"), self.where.device
        if best_dtype(device) == torch.float16:                                 # which umT5 does not bear
            device = torch.device("cpu")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
        size = min(UMT5_BYTES, sum(p.stat().st_size for p in (folder / "text_encoder").iterdir()))
        encoder = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=narrow(device, size))
        encoder.set_input_embeddings(encoder.shared)            # some versions leave the tied copy as it was made: zeros
        device = with_room(device, sum(p.nbytes for p in encoder.parameters()))
        encoder = encoder.to(device).eval()
        made = []
        for prompt in prompts:
            words = tokenizer([prompt], padding="max_length", truncation=True, max_length=self.length,
                              return_tensors="pt").to(device)
            said = encoder(words.input_ids, words.attention_mask).last_hidden_state[0]
            made.append(said[:int(words.attention_mask.sum())].cpu())
            self.kept(prompt).parent.mkdir(parents=True, exist_ok=True)
            save_weights({"features": made[-1]}, self.kept(prompt))
        return made

    def kept(self, prompt: str) -> Path:
        """The file for this prompt's features by this encoder."""
        here = self.folder / "text_encoder"
        which = sorted(f"{p.name} {p.stat().st_size}" for p in here.iterdir()) if here.is_dir() else self.repo
        name = hashlib.sha256(f"{KEPT} {which} {self.length} {prompt}".encode()).hexdigest()[:24]
        return prompts_kept() / f"{name}.safetensors"


class CLIP(nn.Module):
    """CLIP ViT-H/14 without its last layer: pictures [B, 3, H, W] in [0, 1] -> [B, 257, 1280]. Opened for it, and let go."""

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, folder, repo: str = ""):
        super().__init__()
        self.folder, self.repo = Path(folder), repo
        self.register_buffer("where", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        folder, device = beside(self.folder, "image_encoder", self.repo, ["image_encoder/*"]), self.where.device
        with ONE_AT_A_TIME:
            encoder = need("transformers").CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32)
            device = with_room(device, sum(p.nbytes for p in encoder.parameters()))
            x = self.prepare(pixels.to(device), encoder.config.image_size)
            seen = encoder.to(device).eval()(pixel_values=x, output_hidden_states=True).hidden_states[-2]
            del encoder
        let_go(self.where.device)
        return seen.to(self.where.device)

    def prepare(self, pixels: Tensor, size: int = 224) -> Tensor:
        """The shorter side made `size` pixels, the middle cut out, normalised: what CLIP was trained on."""
        h, w = pixels.shape[-2:]
        tall, wide = (size, int(size * w / h)) if h < w else (int(size * h / w), size)
        x = F.interpolate(pixels.float(), (tall, wide), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (tall - size) // 2, (wide - size) // 2
        x = x[..., top:top + size, left:left + size]
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def narrow(device: torch.device, size: int) -> torch.dtype:
    """What umT5 is opened in, `size` bytes in bfloat16: what the device computes fastest, unless memory bids half of it.

    Raises MemoryError where even that does not fit: the system would end the process without a word.
    """
    free, dtype = memory_gib()[0] * 2**30, best_dtype(device)
    if device.type == "cpu" and free:
        if free < 1.1 * size:
            raise MemoryError(f"umT5 needs {size / 1e9:.0f} GB of memory for a new prompt, and {free / 1e9:.0f} are free: "
                              f"read the prompt on a larger machine, and copy {prompts_kept()} from there")
        if dtype == torch.float32 and free < 2.2 * size:
            return torch.bfloat16
    return dtype


def with_room(device: torch.device, size: int) -> torch.device:
    """The device, or the CPU where it has no room for so many bytes and a little work."""
    let_go(device)                                              # what torch itself holds back is free, too
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.1 * size:
        return torch.device("cpu")
    return device


def let_go(device: torch.device) -> None:
    """Give back to the system what an encoder has left behind on a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def prompts_kept() -> Path:
    """Where prompts' features lie: $MSK_CACHE or ~/.cache/msk."""
    return Path(os.environ.get("MSK_CACHE") or Path.home() / ".cache" / "msk") / "prompts"


def beside(folder: Path, part: str, repo: str, patterns: list[str]) -> Path:
    """`folder` if it holds the part of a pipeline, else the same from the hub."""
    if (folder / part).is_dir():
        return folder
    if not repo:
        raise FileNotFoundError(f"{folder} holds no {part}/: put that part of a Wan pipeline in diffusers' layout there")
    return fetch(repo, None, patterns)


def need(package: str):
    try:
        return __import__(package)
    except ImportError as error:
        raise ImportError(f'{package} is needed for real Wan weights: pip install "msk[wan]"') from error
