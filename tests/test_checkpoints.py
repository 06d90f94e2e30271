"""Checkpoints as they are found: names, wrappers, shards, LoRAs; and refusals that name everything."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msk import checkpoints
from msk.config import PRESETS, VAEConfig
from msk.dit import DiT
from msk.kit import save_weights
from msk.tinyvae import TinyVAE

GOLDEN = Path(__file__).parent / "golden"


def toy():
    torch.manual_seed(0)
    return DiT(replace(PRESETS["toy"].dit, motion_channels=0, image_channels=0, inputs=("noise",)))


# names

@pytest.mark.parametrize("theirs", [checkpoints.DIFFUSERS, checkpoints.FASTVIDEO])
def test_golden_names_of_three_families(theirs):
    """WanTrack's first block and everything outside the blocks: Wan's name, diffusers', FastVideo's."""
    rows = [row for row in json.loads((GOLDEN / "wan_names.json").read_text()) if None not in row]
    state = {row[theirs]: torch.full((1,), float(i)) for i, row in enumerate(rows)}
    ours = checkpoints.to_wan_names(state)
    assert {name: int(x) for name, x in ours.items()} == {row[0]: i for i, row in enumerate(rows)}
    assert checkpoints.rename(ours, theirs).keys() == state.keys()
    assert checkpoints.to_diffusers_names(state).keys() == {row[1] for row in rows}
    assert checkpoints.to_wan_names(ours).keys() == ours.keys()


def test_names_there_and_back():
    state = checkpoints.read(GOLDEN / "diffusers_wan_i2v")
    ours = checkpoints.to_wan_names(state)
    assert {"img_emb.proj.1.weight", "blocks.0.cross_attn.norm_k_img.weight", "blocks.1.norm3.bias", "head.modulation",
            "blocks.0.modulation", "blocks.0.self_attn.o.bias"} <= ours.keys()
    back = checkpoints.to_diffusers_names(ours)
    assert back.keys() == state.keys() and all(torch.equal(back[name], x) for name, x in state.items())


# files

def test_training_checkpoints_are_unwrapped(tmp_path):
    state = toy().state_dict()
    wrapped = {f"model._fsdp_wrapped_module.{name}".replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): x
               for name, x in state.items()}
    torch.save({"generator": {"x": torch.zeros(1)}, "generator_ema": wrapped, "step": 600}, tmp_path / "sf.pt")
    assert checkpoints.read(tmp_path / "sf.pt").keys() == state.keys()
    torch.save({"generator": {"model": state}}, tmp_path / "nested.pt")
    assert checkpoints.read(tmp_path / "nested.pt").keys() == state.keys()
    torch.save({f"model.diffusion_model.{name}": x for name, x in state.items()}, tmp_path / "comfy.pt")
    assert checkpoints.read(tmp_path / "comfy.pt").keys() == state.keys()
    torch.save(state, tmp_path / "bare.pt")                                         # "model." stays where it is a name
    assert checkpoints.read(tmp_path / "bare.pt").keys() == state.keys()


def test_the_averaged_weights_come_first_and_the_others_when_asked_for(tmp_path):
    plain, averaged = toy().state_dict(), {name: x + 1 for name, x in toy().state_dict().items()}
    torch.save({"generator": plain, "critic": plain, "generator_ema": averaged}, tmp_path / "sf.pt")
    name = "head.head.bias"
    assert torch.equal(checkpoints.read(tmp_path / "sf.pt")[name], averaged[name])
    assert torch.equal(checkpoints.read(tmp_path / "sf.pt", "generator")[name], plain[name])
    with pytest.raises(ValueError, match="no weights called 'ema'.*it holds generator, critic, generator_ema"):
        checkpoints.read(tmp_path / "sf.pt", "ema")
    flat = {"roles.student.transformer." + name: x for name, x in plain.items()}
    torch.save({**flat, "roles.critic.transformer.head.head.bias": torch.ones(1), "step": 3}, tmp_path / "flat.pt")
    torch.save({"roles": {"student": {"transformer": plain}}, "optimizers": {"lr": 1e-6}}, tmp_path / "nested.pt")
    for file in ("flat.pt", "nested.pt"):                                           # FastVideo's trainer, made one file
        assert checkpoints.read(tmp_path / file).keys() == plain.keys()


def test_shards_are_joined(tmp_path):
    state = toy().state_dict()
    names = sorted(state)
    halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for file, held in halves.items():
        save_weights({name: state[name] for name in held}, tmp_path / file)
    with pytest.raises(ValueError, match="2 weights files and no index"):
        checkpoints.read(tmp_path)
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoints.read(tmp_path).keys() == state.keys()


def test_shards_that_are_pickles_are_joined_and_a_lost_one_is_named(tmp_path):
    state = toy().state_dict()
    names = sorted(state)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, held in halves.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    joined = checkpoints.read(tmp_path)
    assert joined.keys() == state.keys() and torch.equal(joined["head.head.bias"], state["head.head.bias"])
    (tmp_path / "pytorch_model-2.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks pytorch_model-2.bin, of the 2 files that pytorch_model.bin.index"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize("file", ["trap.pt", "trap.pth", "trap.bin"])
def test_a_checkpoint_never_runs_code(tmp_path, monkeypatch, file):
    class Trap:
        def __reduce__(self):
            import os
            return os.mkdir, ("sprung",)

    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, file)
    with pytest.raises(ValueError, match="could not be read as weights"):
        checkpoints.read(file)
    assert not (tmp_path / "sprung").exists()


def lora_of(state, rank=4):
    """As PEFT writes it: a pair for each linear layer of each block."""
    g, lora = torch.Generator().manual_seed(1), {}
    for name, x in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and x.ndim == 2:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            lora[f"{path}.lora_A.weight"] = torch.randn(rank, x.shape[1], generator=g)
            lora[f"{path}.lora_B.weight"] = torch.randn(len(x), rank, generator=g)
    return lora


def test_a_lora_is_added_to_every_linear_layer_it_was_trained_on(close):
    state = toy().state_dict()
    lora = lora_of(state)
    merged = checkpoints.merge_lora(state, lora)
    for name, x in state.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        changed = f"{path}.lora_A.weight" in lora
        close(merged[name], x + lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"] if changed else x)
    name = "blocks.0.ffn.0.weight"
    half = checkpoints.merge_lora(state, lora, alpha=2.0)
    close(half[name] - state[name], (merged[name] - state[name]) / 2)
    named = {k.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): x for k, x in lora.items()}
    assert torch.equal(checkpoints.merge_lora(state, named)[name], merged[name])


def test_a_lora_without_its_base_is_refused():
    state = toy().state_dict()
    lora = lora_of(state)
    less = {name: x for name, x in state.items() if "blocks.1.ffn" not in name}
    with pytest.raises(ValueError, match="the LoRA changes .*blocks.1.ffn.*give the base it was trained on"):
        checkpoints.merge_lora(less, lora)
    with pytest.raises(ValueError, match="holds only lora_A of blocks.0.self_attn.q"):
        checkpoints.merge_lora(state, {k: x for k, x in lora.items() if "blocks.0.self_attn.q.lora_B" not in k})
    with pytest.raises(ValueError, match="head.head.bias is no part of a LoRA"):
        checkpoints.merge_lora(state, {"head.head.bias": torch.zeros(1)})


# into modules

def test_new_inputs_start_deaf(close):
    base, wide = toy(), DiT(PRESETS["toy"].dit)
    base.head.head.weight.data.normal_()
    checkpoints.fill_dit(wide, base.state_dict())
    x, t, text = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3), torch.randn(1, 5, 16)
    with torch.no_grad():
        motion = torch.randn(1, 3, wide.config.motion_channels, 4, 4)
        close(wide(x, t, text, motion, torch.randn(1, 3, 4, 4, 4)), base(x, t, text), atol=1e-6)


def test_what_does_not_fit_is_said():
    state = DiT(PRESETS["toy"].dit).state_dict()
    count = sum(PRESETS["toy"].dit.channels.values())
    with pytest.raises(ValueError, match=f"takes {count} input channels, but this model has only 4"):
        checkpoints.fill_dit(toy(), state)
    with pytest.raises(ValueError, match=r"1 missing \(head.head.bias\); 1 unknown \(stray\)"):
        checkpoints.fill_dit(DiT(PRESETS["toy"].dit), {**{k: x for k, x in state.items() if k != "head.head.bias"},
                                               "stray": torch.zeros(1)}, "this file")
    with pytest.raises(ValueError, match="is no Wan transformer"):
        checkpoints.fill_dit(toy(), {"a": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="no .safetensors or .bin in"):
        checkpoints.read(GOLDEN.parent)
    with pytest.raises(ValueError, match="no state dict"):
        checkpoints.unwrap({"step": 3})


def test_every_key_that_does_not_fit_is_named():
    state = DiT(PRESETS["toy"].dit).state_dict()
    short = {name: x for name, x in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"\d+ missing") as caught:
        checkpoints.fill_dit(DiT(PRESETS["toy"].dit), {**short, "ref_conv.weight": torch.zeros(1), "other": torch.zeros(1)})
    said = "\n".join(caught.value.__notes__)
    assert all(name in said for name in state.keys() - short.keys()) and "unknown: other, ref_conv.weight" in said


def test_what_no_pass_uses_may_be_there_or_not(close):
    """norm_added_q and the table freqs: in some files, used by none."""
    config = replace(PRESETS["toy"].dit, clip_dim=12)
    state = DiT(config).state_dict()
    spare = {"blocks.0.cross_attn.norm_added_q.weight": torch.ones(48), "freqs": torch.ones(4)}
    for extra in ({}, spare):
        dit = DiT(config)
        checkpoints.fill_dit(dit, {**state, **extra})
        assert torch.equal(dit.head.head.bias, state["head.head.bias"])


def test_of_taehvs_extra_frames_the_last_are_kept(golden):
    state = golden("taehv/narrow_weights")
    grown = state["decoder.7.conv.weight"]
    vae = TinyVAE(VAEConfig(encoder_width=8, decoder_widths=(32, 16, 8, 8)))
    checkpoints.fill_tiny(vae, {**state, "decoder.7.conv.weight": torch.cat([torch.zeros_like(grown), grown])})
    assert torch.equal(vae.decoder[7].conv.weight, grown) and vae.std.eq(1).all() and vae.mean.eq(0).all()


# kits

@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A text-to-video pipeline in diffusers' layout, at toy size."""
    pytest.importorskip("diffusers")
    monkeypatch.delenv("MSK_TAEHV", raising=False)
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan/transformer").symlink_to(GOLDEN / "diffusers_wan_t2v")
    (tmp_path / "wan/vae").symlink_to(GOLDEN / "diffusers_wan_vae")
    return tmp_path / "wan"


def test_lighttae_decodes_latents_at_their_own_scale(golden, close):
    """The same weights behind the other convention: mean and deviation are undone on the way in, and made on the way out."""
    state, io = golden("taehv/narrow_weights"), golden("taehv/narrow_io")
    config = VAEConfig(encoder_width=8, decoder_widths=(32, 16, 8, 8), fill_end=True)
    plain, light = TinyVAE(config).requires_grad_(False), TinyVAE(config).requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(16, generator=g), torch.rand(16, generator=g) + 0.5
    checkpoints.fill_tiny(plain, state)
    checkpoints.fill_tiny(light, state, mean=mean.tolist(), std=std.tolist())
    at = lambda x: (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    close(light.decode(at(io["latents"]))[0], plain.decode(io["latents"])[0])
    close(light.decode(at(io["latents"]))[0], io["decode.parallel"])
    close(light.encode(io["video"]), at(io["encode.parallel"]))


def test_sizes_are_seen_in_the_weights_but_for_the_heads():
    config = replace(PRESETS["toy"].dit, gelu="tanh")
    state = DiT(config).state_dict()
    seen = checkpoints.sizes(state, {"num_heads": 2}, replace(config, dim=1, ffn_dim=1, layers=9, text_dim=1, freq_dim=2))
    assert seen == config
    with pytest.raises(ValueError, match="48 is no whole number of heads of 128"):
        checkpoints.sizes(state, {}, config)
