"""Checkpoints as they are found: files, shards, wrappers, averaged weights and LoRAs, under three families of names.

Our modules bear Wan's own names, so most of this is renaming, and refusing what does not fit.
"""
from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import DiTConfig, TrackConfig
from .dit import DiT
from .motion import TrackHead
from .tinyvae import TinyVAE
from .weights import fill, first_line, read_weights

State = dict[str, Tensor]

# (Wan, diffusers, FastVideo's training checkpoints): what begins so is renamed; None: as in the column before
_NAMES = [
    ("patch_embedding.", None, "patch_embedding.proj."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1.", "condition_embedder.text_embedder.fc_in."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2.", "condition_embedder.text_embedder.fc_out."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1.", "condition_embedder.time_embedder.mlp.fc_in."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2.", "condition_embedder.time_embedder.mlp.fc_out."),
    ("time_projection.1.", "condition_embedder.time_proj.", "condition_embedder.time_modulation.linear."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1.", None),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj.", "condition_embedder.image_embedder.ff.fc_in."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2.", "condition_embedder.image_embedder.ff.fc_out."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2.", None),
    ("head.head.", "proj_out.", None),
    ("head.modulation", "scale_shift_table", None),
]
_BLOCK_NAMES = [
    ("modulation", "scale_shift_table", None),
    ("ffn.0.", "ffn.net.0.proj.", "ffn.fc_in."),
    ("ffn.2.", "ffn.net.2.", "ffn.fc_out."),
    ("norm3.", "norm2.", "self_attn_residual_norm.norm."),
    *((f"self_attn.{a}.", f"attn1.{b}.", f"{c}.") for a, b, c in (
        ("q", "to_q", "to_q"), ("k", "to_k", "to_k"), ("v", "to_v", "to_v"), ("o", "to_out.0", "to_out"),
        ("norm_q", "norm_q", "norm_q"), ("norm_k", "norm_k", "norm_k"))),
    *((f"cross_attn.{a}.", f"attn2.{b}.", f"attn2.{c}.") for a, b, c in (
        ("q", "to_q", "to_q"), ("k", "to_k", "to_k"), ("v", "to_v", "to_v"), ("o", "to_out.0", "to_out"),
        ("norm_q", "norm_q", "norm_q"), ("norm_k", "norm_k", "norm_k"), ("k_img", "add_k_proj", "add_k_proj"),
        ("v_img", "add_v_proj", "add_v_proj"), ("norm_k_img", "norm_added_k", "norm_added_k"))),
]
WAN, DIFFUSERS, FASTVIDEO = range(3)
# Wan2.2_VAE.pth's, and diffusers': stages hold layers, the last of them changes the size.
_NEWER_VAE_NAMES = [
    (r"(down|up)samples\.(\d)\.\1samples\.\d\.(resample|time_conv)\.", r"\1_blocks.\2.\1sampler.\3."),
    (r"(down|up)samples\.(\d)\.\1samples\.(\d)\.", r"\1_blocks.\2.resnets.\3."),
    (r"middle\.1\.", "mid_block.attentions.0."), (r"middle\.0\.", "mid_block.resnets.0."),
    (r"middle\.2\.", "mid_block.resnets.1."), (r"residual\.0\.", "norm1."), (r"residual\.2\.", "conv1."),
    (r"residual\.3\.", "norm2."), (r"residual\.6\.", "conv2."), (r"shortcut\.", "conv_shortcut."),
    (r"coder\.conv1\.", "coder.conv_in."), (r"head\.0\.", "norm_out."), (r"head\.2\.", "conv_out."),
    (r"^conv1\.", "quant_conv."), (r"^conv2\.", "post_quant_conv."),
]
# Of Wan's own umT5 file, and transformers': what stands alone, and in each block.
_UMT5_NAMES = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_UMT5_BLOCK_NAMES = {
    "norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm", "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1", "ffn.fc2": "layer.1.DenseReluDense.wo",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    **{f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
}
# Of the half that sees in Wan's own CLIP file, and transformers'.
_CLIP_NAMES = {
    "cls_embedding": "embeddings.class_embedding", "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding", "pre_norm": "pre_layrnorm", "post_norm": "post_layernorm",
}
_CLIP_BLOCK_NAMES = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_STUDENT = "roles.student.transformer."      # FastVideo's trainer, beside optimizers and other roles
_PREFIXES = ("module.", "model.", "diffusion_model.")          # the last is ComfyUI's
_HOLDERS = ("student_ema", "generator_ema", "ema", "student", "generator", "generator_lora", "model", "state_dict", "roles",
            "transformer")


# names

def spoken(state: State) -> int:
    """Which family's names these are."""
    if "patch_embedding.proj.weight" in state:
        return FASTVIDEO
    return DIFFUSERS if any(name.startswith("condition_embedder.") for name in state) else WAN


def rename(state: State, to: int) -> State:
    """The same weights under another family's names."""
    source = spoken(state)
    if source == to:
        return dict(state)

    def column(row: tuple, which: int) -> str:
        return row[which] if row[which] is not None else column(row, which - 1)

    def swap(name: str, rows: list) -> str:
        for row in rows:
            if name.startswith(old := column(row, source)):
                return column(row, to) + name[len(old):]
        return name

    renamed = {}
    for name, x in state.items():
        block, number, rest = (name.split(".", 2) + ["", ""])[:3]
        renamed[f"blocks.{number}.{swap(rest, _BLOCK_NAMES)}" if block == "blocks" and rest else swap(name, _NAMES)] = x
    return renamed


def to_wan_names(state: State) -> State:
    return rename(state, WAN)


def to_diffusers_names(state: State) -> State:
    return rename(state, DIFFUSERS)


def newer_vae_name(name: str) -> str:
    """A name in Wan2.2_VAE.pth as diffusers has it."""
    for was, now in _NEWER_VAE_NAMES:
        name = re.sub(was, now, name)
    return name


def umt5_state(state: State) -> State:
    """Wan's own umT5 under transformers' names."""
    renamed = {}
    for name, x in state.items():
        block, number, rest = (name.split(".", 2) + ["", ""])[:3]
        if block == "blocks" and (now := _UMT5_BLOCK_NAMES.get(rest.removesuffix(".weight"))):
            name = f"encoder.block.{number}.{now}.weight"
        renamed[_UMT5_NAMES.get(name, name)] = x
    return renamed


def clip_vision_state(state: State) -> State:
    """Of Wan's own CLIP what sees, under transformers' names and in float32, without the last projection."""
    renamed = {}
    for name, x in state.items():
        part, _, name = name.partition(".")
        if part != "visual" or name == "head":
            continue
        x = x.float()
        if not name.startswith("transformer."):
            first, dot, rest = name.partition(".")
            renamed[_CLIP_NAMES.get(first, first) + dot + rest] = x.flatten() if first == "cls_embedding" else x.squeeze(0)
            continue
        _, number, rest = name.split(".", 2)
        what, of = rest.rsplit(".", 1)
        block = f"encoder.layers.{number}"
        if what == "attn.to_qkv":
            renamed |= {f"{block}.self_attn.{one}_proj.{of}": own for one, own in zip("qkv", x.chunk(3))}
        else:
            renamed[f"{block}.{_CLIP_BLOCK_NAMES.get(what, what)}.{of}"] = x
    return renamed


# files

def unwrap(loaded: dict, which: str | None = None) -> State:
    """The weights in a training checkpoint: the averaged ones first, or those called `which`; wrappers' prefixes gone."""
    if which is not None and not isinstance(loaded.get(which), dict):
        held = [name for name, x in loaded.items() if isinstance(x, dict)]
        raise ValueError(f"no weights called {which!r} in this checkpoint: it holds {', '.join(held) or 'only one set'}")
    for key in (which,) if which else _HOLDERS:
        if isinstance(loaded.get(key), dict):
            return unwrap(loaded[key])
    state = {}
    for name, x in loaded.items():
        for wrapper in _WRAPPERS:
            name = str(name).replace(wrapper, "")
        state[name] = x
    state = {name.removeprefix(_STUDENT): x for name, x in state.items() if name.startswith(_STUDENT)} or state
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): x for name, x in state.items()}
    strangers = [name for name, x in state.items() if not isinstance(x, Tensor)]
    if strangers or not state:
        raise ValueError(f"no state dict: {', '.join(map(str, strangers[:3])) or 'nothing'} where tensors were wanted")
    return state


def read(path, which: str | None = None) -> State:
    """Weights from a file (.safetensors, or .pt, .pth, .bin without running code) or a folder (whole or in shards).

    which: the set to take from a training checkpoint ("generator", ...); by default the averaged one, where there is one.
    """
    path = Path(path)
    if path.is_dir():
        return unwrap({name: x for shard in _shards(path) for name, x in read(shard).items()})
    if path.suffix == ".safetensors":
        return unwrap(read_weights(path))
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{path.name} could not be read as weights ({first_line(error)}): wanted "
                         ".safetensors, or a .pt of tensors alone") from error
    return unwrap(loaded, which)


def _shards(folder: Path) -> list[Path]:
    """The weights files of a folder: those that its index joins, or the only one there; .bin where no .safetensors is."""
    for kind in ("safetensors", "bin"):
        here, index = sorted(folder.glob(f"*.{kind}")), sorted(folder.glob(f"*.{kind}.index.json"))
        if index:
            named = sorted(set(json.loads(index[0].read_text())["weight_map"].values()))
            if absent := [name for name in named if not (folder / name).is_file()]:
                raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}, of the {len(named)} files that "
                                        f"{index[0].name} names: fetch them")
            return [folder / name for name in named]
        if len(here) > 1:
            raise ValueError(f"{folder} holds {len(here)} weights files and no index that joins them: name one of "
                             f"{', '.join(p.name for p in here)}")
        if here:
            return here
    raise FileNotFoundError(f"no .safetensors or .bin in {folder}: give the folder of a transformer, or one weights file")


def is_lora(state: State) -> bool:
    return any(".lora_A." in name or name.endswith(".lora_A") for name in state)


def merge_lora(state: State, lora: State, alpha: float | None = None) -> State:
    """Weights with a PEFT LoRA's B A added, alpha / rank times (once, if alpha is not said: so is LongLive's)."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, x in lora.items():
        target, found, side = name.replace(".default", "").partition(".lora_")
        if not found or side[:1] not in "AB":
            raise ValueError(f"{name} is no part of a LoRA: wanted names with lora_A and lora_B")
        while target not in (known := {k.removesuffix(".weight") for k in state}) and "." in target:    # base_model.model.
            target = target.split(".", 1)[1]
        if target not in known:
            raise ValueError(f"the LoRA changes {name}, which the weights do not have: give the base it was trained on")
        pairs.setdefault(target, {})[side[0]] = x
    merged = dict(state)
    for target, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise ValueError(f"the LoRA holds only lora_{next(iter(pair))} of {target}: fetch it again")
        weight = state[f"{target}.weight"]
        scale = 1.0 if alpha is None else alpha / pair["A"].shape[0]
        merged[f"{target}.weight"] = (weight.float() + scale * pair["B"].float() @ pair["A"].float()).to(weight.dtype)
    return merged


# into modules

def widen(state: State, channels: int) -> State:
    """Zero columns for inputs that a checkpoint has never seen: they are the last ones, and it stays deaf to them."""
    weight = state["patch_embedding.weight"]
    if weight.shape[1] > channels:
        raise ValueError(f"the checkpoint takes {weight.shape[1]} input channels, but this model has only {channels}: "
                         "name all its inputs in DiTConfig.inputs")
    return {**state, "patch_embedding.weight": F.pad(weight, (0, 0, 0, 0, 0, 0, 0, channels - weight.shape[1]))}


def fill_dit(dit: DiT, state: State, source: str = "the checkpoint") -> None:
    """Any Wan-shaped checkpoint into `dit`: nothing missing, nothing left over.

    Left aside by name: the track encoder, and what no forward pass uses (norm_added_q, the table freqs).
    """
    state = to_wan_names(state)
    if "patch_embedding.weight" not in state:
        raise ValueError(f"{source} holds no patch_embedding.weight, so it is no Wan transformer")
    unused = {name for name in state if name.endswith(".norm_added_q.weight") or name == "freqs"
              or name.startswith("track_encoder.")}
    state = {name: x for name, x in state.items() if name not in unused}
    fill(dit, widen(state, dit.patch_embedding.in_channels), source)


def fill_track_head(head: TrackHead, state: State, source: str = "the checkpoint") -> None:
    """WanTrack's track encoder: its strided convolution in time is our packing and first 1x1x1 convolution."""
    own = {name.removeprefix("track_encoder."): x for name, x in state.items() if name.startswith("track_encoder.")}
    renamed = {}
    for name, x in own.items():
        name = name.replace("temporal_conv.", "convs.0.").replace("proj.", "convs.1.")
        renamed[name] = x.flatten(1)[..., None, None, None] if name == "convs.0.weight" else x
    fill(head, renamed, f"the track encoder of {source}")


def fill_tiny(vae: TinyVAE, state: State, source: str = "the checkpoint", mean: list[float] | None = None,
              std: list[float] | None = None) -> None:
    """A TAEHV file. It works on normalised latents; LightTAE's does not, so there Wan's mean and deviation go along.

    Of extra frames the last are kept.
    """
    own = vae.state_dict()
    kept = {name: x[-own[name].shape[0]:] if name in own and name.startswith("decoder") and name.endswith(".conv.weight")
            else x for name, x in state.items()}
    fill(vae, {"mean": own["mean"] if mean is None else torch.tensor(mean),
               "std": own["std"] if std is None else torch.tensor(std), **kept}, source)


# sizes

def dit_config(data: dict, base: DiTConfig) -> DiTConfig:
    """Sizes from a diffusers config.json, layout of the inputs from `base`."""
    heads = data["num_attention_heads"]
    return replace(base, latent_channels=data["out_channels"], dim=heads * data["attention_head_dim"], heads=heads,
                   ffn_dim=data["ffn_dim"], layers=data["num_layers"], text_dim=data["text_dim"],
                   freq_dim=data["freq_dim"], patch=tuple(data["patch_size"]), eps=data["eps"],
                   clip_dim=data.get("image_dim") or 0)


def sizes(state: State, data: dict, base: DiTConfig) -> DiTConfig:
    """Sizes from the weights themselves (Wan's names), layout of the inputs from `base`.

    Only the number of heads cannot be seen in them: it comes from a config.json, diffusers' or Wan's, or is dim / 128.
    """
    patch = state["patch_embedding.weight"]
    dim, shape = len(patch), tuple(patch.shape[2:])
    heads = data.get("num_attention_heads") or data.get("num_heads") or dim // 128
    if not heads or dim % heads:
        raise ValueError(f"a width of {dim} is no whole number of heads of 128: put its config.json beside the weights")
    clip = state.get("img_emb.proj.1.weight")
    return replace(base, latent_channels=len(state["head.head.weight"]) // prod(shape), dim=dim, heads=heads, patch=shape,
                   ffn_dim=len(state["blocks.0.ffn.0.weight"]), text_dim=state["text_embedding.0.weight"].shape[1],
                   layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
                   freq_dim=state["time_embedding.0.weight"].shape[1], eps=data.get("eps", 1e-6),
                   clip_dim=clip.shape[1] if clip is not None else 0)


def track_config(data: dict, state: State, base: TrackConfig) -> TrackConfig:
    """WanTrack's track_config; whether it has biases, and how wide it is, the weights know better."""
    weight = state["track_encoder.temporal_conv.weight"]
    return replace(base, id_dim=weight.shape[1], channels=len(state["track_encoder.proj.weight"]), hidden=len(weight),
                   max_id=data.get("max_track_id", base.max_id), bias="track_encoder.proj.bias" in state)
