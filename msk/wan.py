"""Kits from Wan's family: whatever file or folder there is -> what it is -> a `Kit`; and back, in diffusers' layout."""
from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from .checkpoints import (
    DIFFUSERS,
    State,
    fill_dit,
    fill_tiny,
    fill_track_head,
    is_lora,
    merge_lora,
    read,
    rename,
    sizes,
    to_wan_names,
    track_config,
)
from .config import PRESETS, DiTConfig, Preset, VAEConfig
from .dit import DiT
from .encoders import CLIP, UMT5, FullVAE, MixedVAE, beside, need
from .fast import prepare
from .kit import Kit, assets, best_dtype, device_of, known
from .motion import TrackHead
from .offload import asked, lend, wanted
from .tinyvae import TinyVAE
from .weights import fetch, fill, read_weights, save_weights, write_whole

# Where the transformer of a preset lies on the hub: its repository, and the files in it (the last may be a LoRA).
SOURCES = {
    ("wan2.1-1.3b", "teacher"): ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", ["transformer/*"]),
    ("wan2.1-i2v-14b", "teacher"): ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", ["transformer/*"]),
    ("wan2.2-5b", "teacher"): ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", ["transformer/*"]),
    ("fun-control-1.3b", "teacher"): ("alibaba-pai/Wan2.1-Fun-1.3B-Control", ["diffusion_pytorch_model.safetensors"]),
    ("fun-inp-1.3b", "teacher"): ("alibaba-pai/Wan2.1-Fun-1.3B-InP", ["diffusion_pytorch_model.safetensors"]),
    ("self-forcing-1.3b", "student"): ("gdhe17/Self-Forcing", ["checkpoints/self_forcing_dmd.pt"]),
    ("causal-forcing-1.3b", "student"): ("zhuhz22/Causal-Forcing", ["chunkwise/causal_forcing.pt"]),
    ("longlive-1.3b", "student"): ("Efficient-Large-Model/LongLive-1.3B", ["models/longlive_base.pt", "models/lora.pt"]),
    ("wantrack-1.3b", "student"): ("H1yori233/Track-v0", ["transformer/*"]),
    ("wantrack-1.3b", "teacher"): ("noctuashap/TrackWan-1.3B-I2V-synth-stage2", ["transformer/*"]),
    ("wantrack-1.3b-early", "teacher"): ("noctuashap/TrackWan-1.3B-I2V-synth-stage2", ["transformer/*"]),
}
# Commits that others are known to have run; a repository without one here stays at the commit that came first.
COMMITS = {"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "0fad780a534b6463e45facd96134c9f345acfa5b"}
# Autoencoder and CLIP, by latent channels; umT5 is the same for all, and half as large in 2.2's repository.
PARTS = {16: "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 48: "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}
WORDS = PARTS[48]
# Input channels at the patch embedding, latent channels -> the preset whose inputs these are.
LAYOUTS = {(16, 16): "wan2.1-1.3b", (36, 16): "wan2.1-i2v-14b", (48, 16): "fun-control-1.3b", (48, 48): "wan2.2-5b"}
OURS = "msk.json"           # beside transformer/ in what `export` writes: the preset and the role


# opening

def load(name: str, role: str = "teacher", device=None, dtype: torch.dtype | None = None,
         revision: str | None = None) -> Kit:
    """A big preset with its public weights; where those know no tracks, its track columns are zero, its head untrained."""
    known(name)
    if (name, role) not in SOURCES:
        known_to = [f"load({n!r}, {r!r})" for n, r in SOURCES]
        raise FileNotFoundError(f"no public address is known for the {role} of {name}: give the file or folder of its "
                                f"weights to load, or use {', '.join(known_to)}")
    asked(known(name).dit.layers)                       # before gigabytes come for it
    repo, files = SOURCES[name, role]
    folder = fetch(repo, revision or COMMITS.get(repo), files)
    parts = [read(folder / file.removesuffix("/*")) for file in files]
    state, data = _with_lora(parts, repo), _config(folder / "transformer")
    return assemble(recognise(state, data, like=name, name=name), state, role, folder, repo, device, dtype)


def open_path(path, role: str = "student", device=None, dtype: torch.dtype | None = None, like: str | None = None,
              which: str | None = None) -> Kit:
    """Whatever weights lie there: a pipeline or transformer of diffusers', Wan's own folder, one file, a base with its LoRA.

    like: the preset whose stream, null prompt and geometry the weights were made with, where the file cannot say it.
    which: the set in a training checkpoint ("generator", "generator_ema"); by default the averaged one.
    """
    path = Path(path)
    ours = path / OURS
    if ours.is_file():
        data = json.loads(ours.read_text())
        preset = Preset.from_dict(data["preset"])
        return assemble(preset, read(path / "transformer"), data["role"], path, str(path), device, dtype)
    data, state, training = _gather(path, which)
    if role == "student" and not training and "track_config" not in data:
        print(f"{path} does not say that it was distilled: a stream of it looks right only if it was; role='teacher' "
              "(--teacher) makes whole clips", file=sys.stderr)
    preset = recognise(state, data, training, like, path.stem if path.is_file() else path.name)
    if "track_config" in data:                                                  # an export says which of the two it is
        role = "student" if "Causal" in data.get("_class_name", "") else "teacher"
    return assemble(preset, state, role, path if path.is_dir() else path.parent, str(path), device, dtype)


def _gather(path: Path, which: str | None) -> tuple[dict, State, str]:
    """config.json (or nothing), the weights, and what training wrote them: "" if none is seen, "forcing" or "lora"."""
    if path.is_file():
        state = read(path, which)
        return _config(path.parent), state, "forcing" if path.suffix in (".pt", ".pth") else ""
    if (path / "transformer_2").is_dir():
        raise ValueError(f"{path} is two experts in one (as Wan 2.2 A14B), and msk does not change between them: give the "
                         "path of one transformer")
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    if list(inner.glob("*.safetensors")) or list(inner.glob("*.bin")):
        return _config(inner), read(inner), ""
    files = [p for folder in (path, path / "models", path / "checkpoints") for p in sorted(folder.glob("*.pt"))]
    if parts := [*path.glob("*.distcp"), *path.glob("dcp/*.distcp")]:
        raise ValueError(f"{path} is a training checkpoint in {len(parts)} parts, whose index is code to be run: make "
                         "one file of it, if you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
                         f"{parts[0].parent} weights.pt")
    if not files:
        raise FileNotFoundError(f"{path} holds no weights: wanted .safetensors or .bin there or in transformer/, or .pt "
                                "files there, in models/ or in checkpoints/")
    states = sorted((read(file, which) for file in files), key=is_lora)
    return _config(path), _with_lora(states, str(path)), "lora" if is_lora(states[-1]) else "forcing"


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}


def _with_lora(states: list[State], source: str) -> State:
    """One set of weights, with a LoRA where one came along."""
    bases, loras = [s for s in states if not is_lora(s)], [s for s in states if is_lora(s)]
    if len(bases) != 1 or len(loras) > 1:
        raise ValueError(f"{source} holds {len(bases)} sets of weights and {len(loras)} LoRAs: name one weights file")
    return merge_lora(bases[0], loras[0]) if loras else bases[0]


def recognise(state: State, data: dict, training: str = "", like: str | None = None, name: str = "") -> Preset:
    """Which model these weights are: sizes from the weights themselves, the meaning of their inputs from their number."""
    ours = to_wan_names(state)
    if "patch_embedding.weight" not in ours or "head.head.weight" not in ours:
        raise ValueError(f"{name or 'the checkpoint'} holds no Wan transformer: wanted patch_embedding and a head among "
                         f"{', '.join(sorted(ours)[:3])}, ...")
    tracked = "track_encoder.proj.weight" in ours
    patch = ours["patch_embedding.weight"]
    inside, out = patch.shape[1], len(ours["head.head.weight"]) // patch[0, 0].numel()
    if like is None:
        like = LAYOUTS.get((inside, out)) if not tracked else next(
            (p.name for p in PRESETS.values() if p.name.startswith("wantrack") and p.dit.dim == len(patch)), "wantrack-1.3b")
        like = {"forcing": "self-forcing-1.3b", "lora": "longlive-1.3b"}.get(training, like) if inside == 16 else like
    if like is None:
        raise ValueError(f"{inside} input and {out} latent channels are no layout that is known "
                         f"({', '.join(f'{a} and {b}' for a, b in LAYOUTS)}, or WanTrack's 52): say which preset it is like")
    base = known(like)
    tracks = track_config(data.get("track_config", {}), ours, base.tracks) if tracked else base.tracks
    dit = sizes(ours, data, base.dit)
    return replace(base, name=name or base.name, dit=replace(dit, motion_channels=tracks.channels), tracks=tracks)


def assemble(preset: Preset, state: State, role: str, parts: Path, source: str, device=None,
             dtype: torch.dtype | None = None) -> Kit:
    """Recognised weights as a kit. On CUDA the clock decides on attention, and MSK_FAST=1 compiles (see `fast.prepare`).

    Blocks that the GPU has no room for, or as many as MSK_OFFLOAD says, wait in the CPU's memory (see `offload`).
    """
    device = device_of(device)
    asked(preset.dit.layers)
    known_columns = to_wan_names(state)["patch_embedding.weight"].shape[1]
    if known_columns < sum(preset.dit.channels[name] for name in preset.dit.inputs):
        preset = replace(preset, dit=replace(preset.dit, base_channels=known_columns))
    with torch.device("meta"):
        dit = DiT(preset.dit)
    fill_dit(dit, state, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)                                                    # an untrained head is the same every time
        head = TrackHead(preset.tracks, preset.geometry)
    if any(name.startswith("track_encoder.") for name in state):
        fill_track_head(head, state, source)
    elif (parts / "track_head.safetensors").is_file():
        fill(head, read_weights(parts / "track_head.safetensors"), str(parts / "track_head.safetensors"))
    elif not preset.dit.base_channels:                  # every column is trained, on something else: be silent till taught
        nn.init.zeros_(head.convs[-1].weight)
    kit = Kit(dit, head, *outside(preset, parts), preset, role, outside_clip(preset.dit, parts))
    kit, dtype = kit.eval(), dtype or best_dtype(device)
    if waiting := wanted(kit, device, dtype):
        print(f"{waiting} of {len(dit.blocks)} blocks wait in the CPU's memory and come for each pass", file=sys.stderr)
        lend(kit, waiting, device, dtype)
    else:
        kit.to(device, dtype)
    for full in kit.vae.modules() if device.type == "cuda" and kit.dtype == torch.bfloat16 else ():
        if isinstance(full, FullVAE):                   # decoded for each chunk; what is encoded, once, stays in float32
            full.vae.decoder.to(kit.dtype)
            full.vae.post_quant_conv.to(kit.dtype)
    if device.type == "cuda":
        prepare(kit, "inductor" if os.environ.get("MSK_FAST", "0") not in ("", "0") else None)
    return kit


# what comes from outside

def outside(preset: Preset, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Autoencoder and text encoder of a big preset: from its folder, else from the hub.

    A tiny decoder takes the full one's place if a TAEHV lies among the assets, in the folder or at $MSK_TAEHV; pictures are
    encoded by the full one, as in training, where it can be had.
    """
    repo = PARTS.get(preset.vae.latent_channels, "")
    text = UMT5(folder, WORDS if repo else "")
    places = [folder / "vae", folder / {48: "Wan2.2_VAE.pth"}.get(preset.vae.latent_channels, "Wan2.1_VAE.pth")]
    full = next((place for place in places if place.exists()), None)
    tiny = tiny_vae(preset, folder)
    if full is None and tiny is not None and preset.vae.decoder_widths != VAEConfig().decoder_widths:
        return tiny, text                   # of another build than TAEHV's: the model's own, nothing else knows its latents
    try:
        need("diffusers")                   # before half a gigabyte is fetched for it
        if full is None:
            full = beside(folder, "vae", repo, ["vae/*"]) / "vae"
        full = FullVAE.open(full)
    except (ConnectionError, FileNotFoundError, ImportError) as error:
        if tiny is None:
            raise
        print(f"pictures are encoded by TAEHV, not by the autoencoder of training: {error}", file=sys.stderr)
        return tiny, text
    return (MixedVAE(full, tiny) if tiny else full), text


def tiny_vae(preset: Preset, folder: Path) -> TinyVAE | None:
    """TAEHV's decoder (and encoder) for this preset's latents, if one is here; LightTAE's by its file name."""
    name = {16: "taew2_1", 48: "taew2_2"}.get(preset.vae.latent_channels, "taehv")
    files = [f"{light}{name}{suffix}" for light in ("", "light") for suffix in (".safetensors", ".pth")]
    asked = os.environ.get("MSK_TAEHV")
    for place in [Path(asked)] if asked else [where / file for where in (folder, assets()) for file in files]:
        if place.is_file():
            vae = TinyVAE(preset.vae)
            scale = {}
            if place.name.startswith("light"):
                if preset.vae.latent_channels != len(WAN_MEAN):
                    raise ValueError(f"{place.name} works on latents as they are, and for {preset.vae.latent_channels} "
                                     "channels their scale is not known here: use TAEHV's file")
                scale = {"mean": WAN_MEAN, "std": WAN_STD}
            fill_tiny(vae, read(place), str(place), **scale)
            return vae
    return None


def outside_clip(dit: DiTConfig, folder: Path) -> nn.Module | None:
    return CLIP(folder, PARTS[16]) if dit.clip_dim and not dit.text_split else None


# Wan 2.1's latents, channel by channel, over its training data: the numbers in its autoencoder's config.
WAN_MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
WAN_STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
           3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]


# and back

def export(kit: Kit, folder, shard: str = "10GB") -> Path:
    """A kit in diffusers' layout: its `WanTransformer3DModel` reads transformer/, and `msk.load` all of it.

    shard: more than this goes into several files and an index. The first input channels are the base's own; columns for
    tracks come last or where the base had its control.
    """
    folder = Path(folder)
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    c, patch = kit.dit.config, kit.dit.patch_embedding
    config = {"_class_name": "WanTransformer3DModel", "in_channels": patch.in_channels, "out_channels": c.latent_channels,
              "num_attention_heads": c.heads, "attention_head_dim": c.dim // c.heads, "ffn_dim": c.ffn_dim,
              "num_layers": c.layers, "text_dim": c.text_dim, "freq_dim": c.freq_dim, "patch_size": list(c.patch),
              "eps": c.eps, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
              "image_dim": c.clip_dim or None, "added_kv_proj_dim": c.dim if c.clip_dim else None}
    write_whole(folder / "transformer" / "config.json", json.dumps(config, indent=2).encode())
    _save_in_shards(rename(kit.dit.state_dict(), DIFFUSERS), folder / "transformer", shard)
    save_weights(kit.track_head.state_dict(), folder / "track_head.safetensors")
    full = kit.vae.full if isinstance(kit.vae, MixedVAE) else kit.vae
    if isinstance(full, FullVAE):
        full.vae.save_pretrained(folder / "vae")
    write_whole(folder / OURS, json.dumps({"role": kit.role, "preset": kit.preset.to_dict()}, indent=2).encode())
    return folder


def _save_in_shards(state: State, folder: Path, most: str) -> None:
    """As diffusers names them: one file, or so many and the index that joins them."""
    from huggingface_hub import split_torch_state_dict_into_shards
    for old in folder.glob("diffusion_pytorch_model*.safetensors*"):
        old.unlink()
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=most)
    for file, names in plan.filename_to_tensors.items():
        save_weights({name: state[name] for name in names}, folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_whole(folder / "diffusion_pytorch_model.safetensors.index.json", json.dumps(index, indent=2).encode())
