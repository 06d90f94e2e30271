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

from .checkpoints import clip_vision_state, newer_vae_name, read, umt5_state
from .kit import best_dtype, memory_gib
from .tinyvae import TinyVAE
from .weights import fetch, fill, read_weights, save_weights

ONE_AT_A_TIME = threading.RLock()       # diffusers' autoencoder keeps its past in itself; two open encoders may not fit
UMT5_BYTES = 11.4e9                     # of umT5-XXL's encoder in bfloat16
OWN_UMT5 = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"         # encoder and tokenizer in Wan's own folders
OWN_CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
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
        """A folder of diffusers', or Wan's own Wan2.1_VAE.pth or Wan2.2_VAE.pth."""
        kind = need("diffusers").AutoencoderKLWan
        if not Path(place).is_file():
            return FullVAE(kind.from_pretrained(place))
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
        state, more = read(place), {}
        if any(name.startswith("encoder.downsamples.0.downsamples.") for name in state):
            state = {newer_vae_name(name): x for name, x in state.items()}
            more = dict(decoder_base_dim=state["decoder.conv_out.weight"].shape[1], is_residual=True, patch_size=2,
                        in_channels=12, out_channels=12, scale_factor_spatial=16, temperal_downsample=[False, True, True],
                        latents_mean=NEWER_MEAN, latents_std=NEWER_STD)
        else:
            state = convert_wan_vae_to_diffusers(state)
        vae = kind(base_dim=len(state["encoder.conv_in.weight"]), z_dim=len(state["quant_conv.weight"]) // 2, **more)
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


# Wan 2.2's latents, channel by channel, over its training data: its Wan2.2_VAE.pth does not hold these.
NEWER_MEAN = [-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
              0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
              -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
              -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667]
NEWER_STD = [0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
             0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
             0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
             0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744]


class MixedVAE(nn.Module):
    """Wan's own encoder, which pictures were given through in training, and a tiny decoder, which is fast."""

    def __init__(self, full: FullVAE, tiny: TinyVAE):
        super().__init__()
        self.full, self.tiny, self.forgets = full, tiny, full.forgets
        self.encode, self.decode = full.encode, tiny.decode


class UMT5(nn.Module):
    """Wan's text encoder: prompts -> [B, 512, 4096], zeros after the last token.

    The encoder (11 GB) is opened when a prompt is new, and let go; its words' features are kept in `prompts_kept`.
    folder: holds tokenizer/ and text_encoder/, or Wan's own file and google/umt5-xxl/, or is missing them and they are
    fetched from `repo`.
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
        transformers, device = need("transformers"), self.where.device
        if own := self.own:
            file, words = own
        else:
            folder = beside(self.folder, "text_encoder", self.repo, ["text_encoder/*", "tokenizer/*"])
            file, words = folder / "text_encoder", folder / "tokenizer"
        if best_dtype(device) == torch.float16:                                 # which umT5 does not bear
            device = torch.device("cpu")
        tokenizer = transformers.AutoTokenizer.from_pretrained(words)
        size = min(UMT5_BYTES, sum(p.stat().st_size for p in ([file] if own else file.iterdir())))
        dtype = narrow(device, size)
        encoder = own_umt5(file).to(dtype) if own else transformers.UMT5EncoderModel.from_pretrained(file, dtype=dtype)
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

    @property
    def own(self) -> tuple[Path, Path] | None:
        """Wan's own file and its tokenizer's folder, where those are what the folder holds."""
        file, words = (self.folder / name for name in OWN_UMT5)
        return (file, words) if file.is_file() and words.is_dir() and not (self.folder / "text_encoder").is_dir() else None

    def kept(self, prompt: str) -> Path:
        """The file for this prompt's features by this encoder."""
        here = self.folder / "text_encoder"
        here = list(here.iterdir()) if here.is_dir() else [self.own[0]] if self.own else []
        which = sorted(f"{p.name} {p.stat().st_size}" for p in here) or self.repo
        name = hashlib.sha256(f"{KEPT} {which} {self.length} {prompt}".encode()).hexdigest()[:24]
        return prompts_kept() / f"{name}.safetensors"


def own_umt5(file: Path) -> nn.Module:
    """Wan's own file of umT5's encoder as transformers' model; its sizes are those of the weights."""
    transformers, state = need("transformers"), read(file)
    buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
    (vocabulary, width), (inner, _) = state["token_embedding.weight"].shape, state["blocks.0.attn.q.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    config = transformers.UMT5Config(vocab_size=vocabulary, d_model=width, d_kv=inner // heads, num_heads=heads,
                                     d_ff=len(state["blocks.0.ffn.fc1.weight"]), num_layers=blocks,
                                     relative_attention_num_buckets=buckets)
    with torch.device("meta"):
        encoder = transformers.UMT5EncoderModel(config)
    state = umt5_state(state)
    fill(encoder, {**state, "encoder.embed_tokens.weight": state["shared.weight"]}, str(file))
    return encoder


class CLIP(nn.Module):
    """CLIP ViT-H/14 without its last layer: pictures [B, 3, H, W] in [0, 1] -> [B, 257, 1280]. Opened for it, and let go."""

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, folder, repo: str = ""):
        super().__init__()
        self.folder, self.repo = Path(folder), repo
        self.register_buffer("where", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        device = self.where.device
        folder = self.folder if self.own else beside(self.folder, "image_encoder", self.repo, ["image_encoder/*"])
        with ONE_AT_A_TIME:
            encoder = (own_clip(self.own) if self.own else need("transformers").CLIPVisionModel.from_pretrained(
                folder / "image_encoder", dtype=torch.float32))
            device = with_room(device, sum(p.nbytes for p in encoder.parameters()))
            x = self.prepare(pixels.to(device), encoder.config.image_size)
            seen = encoder.to(device).eval()(pixel_values=x, output_hidden_states=True).hidden_states[-2]
            del encoder
        let_go(self.where.device)
        return seen.to(self.where.device)

    @property
    def own(self) -> Path | None:
        """Wan's own file, where that is what the folder holds."""
        file = self.folder / OWN_CLIP
        return file if file.is_file() and not (self.folder / "image_encoder").is_dir() else None

    def prepare(self, pixels: Tensor, size: int = 224) -> Tensor:
        """The shorter side made `size` pixels, the middle cut out, normalised: what CLIP was trained on."""
        h, w = pixels.shape[-2:]
        tall, wide = (size, int(size * w / h)) if h < w else (int(size * h / w), size)
        x = F.interpolate(pixels.float(), (tall, wide), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (tall - size) // 2, (wide - size) // 2
        x = x[..., top:top + size, left:left + size]
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def own_clip(file: Path) -> nn.Module:
    """The half of Wan's own CLIP file that sees, as transformers' model; the half that reads is left aside, and so is the
    last projection, which nobody asks for."""
    transformers, state = need("transformers"), clip_vision_state(read(file))
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    places = len(state["embeddings.position_embedding.weight"])
    blocks = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]), num_hidden_layers=blocks,
        num_attention_heads=width // 80, image_size=patch * round((places - 1) ** 0.5), patch_size=patch, hidden_act="gelu")
    with torch.device("meta"):
        encoder = transformers.CLIPVisionModel(config)
    inner = getattr(encoder, "vision_model", encoder)           # newer versions have no such part
    fill(inner, state, str(file))
    inner.embeddings.position_ids = torch.arange(places)[None]
    return encoder


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
