"""Wan's family as kits: parity with diffusers, every layout of files, and the way back."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msk import checkpoints, wan
from msk.checkpoints import dit_config, fill_dit, read
from msk.cli import main
from msk.config import PRESETS, Geometry
from msk.dit import DiT
from msk.encoders import FullVAE, MixedVAE
from msk.flow import add_noise, to_x0
from msk.kit import Kit, load, save_weights
from msk.motion import TrackHead
from msk.stream import Stream
from msk.tinyvae import TinyVAE
from msk.tracks import Tracks

GOLDEN = Path(__file__).parent / "golden"
WAN = PRESETS["wan2.1-1.3b"]


def config_of(folder, **changes):
    data = json.loads((GOLDEN / folder / "config.json").read_text())
    return dit_config(data, replace(WAN.dit, **changes))


def opened(folder, config):
    dit = DiT(config).eval().requires_grad_(False)
    fill_dit(dit, read(GOLDEN / folder))
    return dit


# parity

def test_our_transformer_is_wan(close):
    """Diffusers' `WanTransformer3DModel` with random weights, one noise level a clip."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4,
                                             text_dim=10, freq_dim=16, ffn_dim=40, num_layers=3).eval().requires_grad_(False)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.15)
    ours = DiT(replace(WAN.dit, latent_channels=4, dim=48, heads=3, layers=3, ffn_dim=40, text_dim=10, freq_dim=16,
                       motion_channels=0, image_channels=0)).eval().requires_grad_(False)
    fill_dit(ours, theirs.state_dict())
    x, text, t = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 7, 10), torch.tensor([0.3, 0.8])
    want = theirs(x.transpose(1, 2), timestep=1000 * t, encoder_hidden_states=text, return_dict=False)[0].transpose(1, 2)
    close(ours(x, t[:, None].expand(2, 3), text), want)


def test_every_frame_may_have_its_own_noise_level_as_in_wan_2_2(close):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
                                             text_dim=10, freq_dim=16, ffn_dim=40, num_layers=2).eval().requires_grad_(False)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.15)
    ours = DiT(replace(WAN.dit, latent_channels=4, dim=32, heads=2, layers=2, ffn_dim=40, text_dim=10, freq_dim=16,
                       motion_channels=0, image_channels=0)).eval().requires_grad_(False)
    fill_dit(ours, theirs.state_dict())
    x, text, t = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 7, 10), torch.rand(2, 3)
    tokens = (1000 * t).repeat_interleave(6, dim=1)                                 # 2 x 3 tokens a frame
    want = theirs(x.transpose(1, 2), timestep=tokens, encoder_hidden_states=text, return_dict=False)[0].transpose(1, 2)
    close(ours(x, t, text), want)


@torch.no_grad()
def test_in_bf16_we_are_nearer_to_float32_than_diffusers(tmp_path):
    """Both keep what modulates in float32; the path past the blocks is float32 in Wan's own code and here, bf16 there."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4,
                                             text_dim=32, freq_dim=64, ffn_dim=512, num_layers=8).eval()
    for name, p in theirs.named_parameters():
        torch.nn.init.normal_(p, float(name.endswith("norm_q.weight") or name.endswith("norm_k.weight")),
                              p[0].numel() ** -0.5 if p.ndim > 1 else 0.02)
    ours = DiT(replace(WAN.dit, latent_channels=4, dim=128, heads=2, layers=8, ffn_dim=512, text_dim=32, freq_dim=64,
                       motion_channels=0, image_channels=0)).eval().requires_grad_(False)
    fill_dit(ours, theirs.state_dict())
    x, text, t = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 7, 32), torch.tensor([0.6])
    say = dict(timestep=1000 * t, return_dict=False)
    want = theirs(x.transpose(1, 2), encoder_hidden_states=text, **say)[0].transpose(1, 2)
    theirs.save_pretrained(tmp_path)
    half = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.blocks[0].scale_shift_table.dtype == torch.float32
    there = half(x.transpose(1, 2).bfloat16(), encoder_hidden_states=text.bfloat16(), **say)[0].transpose(1, 2).float()
    here = Kit(ours, torch.nn.Identity(), torch.nn.Identity(), None, WAN).to(dtype=torch.bfloat16).dit(
        x, t[:, None].expand(1, 3), text)
    off = [float((made - want).norm() / want.norm()) for made in (here, there)]
    assert off[0] < 0.75 * off[1]


def test_golden_text_to_video(golden, exact):
    dit = opened("diffusers_wan_t2v", config_of("diffusers_wan_t2v", motion_channels=0, image_channels=0))
    io = golden("diffusers_wan_t2v_io")
    x = io["hidden_states"].transpose(1, 2)
    for t in (999, 500, 0):
        out = dit(x, torch.full(x.shape[:2], t / 1000), io["encoder_hidden_states"])
        exact(out, io[f"out.t{t}"].transpose(1, 2))


def test_golden_image_to_video(golden, exact):
    inputs = "noise", "mask", "image"
    dit = opened("diffusers_wan_i2v", config_of("diffusers_wan_i2v", motion_channels=0, mask_channels=4, inputs=inputs))
    io = golden("diffusers_wan_i2v_io")
    x, image = io["hidden_states"].transpose(1, 2).split([16, 20], dim=2)
    for t in (999, 500, 0):
        out = dit(x, torch.full(x.shape[:2], t / 1000), io["encoder_hidden_states"], None, image,
                  clip=io["encoder_hidden_states_image"])
        exact(out, io[f"out.t{t}"].transpose(1, 2))


def test_the_given_frame_is_clean_and_its_way_is_known_as_in_wan_2_2(close):
    """Diffusers with latent 0 replaced and its tokens told 0; our step leads that frame straight to the picture."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
                                             text_dim=10, freq_dim=16, ffn_dim=40, num_layers=2).eval().requires_grad_(False)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.15)
    ours = DiT(replace(PRESETS["wan2.2-5b"].dit, latent_channels=4, motion_channels=0, inputs=("noise",), dim=32, heads=2,
                       layers=2, ffn_dim=40, text_dim=10, freq_dim=16)).eval().requires_grad_(False)
    fill_dit(ours, theirs.state_dict())
    noise, image, text = torch.randn(1, 3, 4, 4, 6), torch.randn(1, 1, 4, 4, 6), torch.randn(1, 7, 10)
    t = torch.full((1, 3), 0.6)
    x = add_noise(torch.cat([image, torch.zeros(1, 2, 4, 4, 6)], 1), noise, t)
    velocity = ours(x, t, text, None, image)
    told = torch.tensor([[0.0] * 6 + [600.0] * 12])
    want = theirs(torch.cat([image, x[:, 1:]], 1).transpose(1, 2), timestep=told, encoder_hidden_states=text,
                  return_dict=False)[0].transpose(1, 2)
    close(velocity[:, 1:], want[:, 1:])
    close(to_x0(x, velocity, t)[:, :1], image)
    assert torch.equal(ours.remember(x, text, None, image)[0][0], ours.remember(torch.cat([image, x[:, 1:]], 1), text)[0][0])


@pytest.mark.parametrize("name, layers", [("wan2.1-1.3b", 30), ("wan2.2-5b", 30), ("wantrack-1.3b", 30)])
def test_real_sizes_have_real_shapes(name, layers):
    with torch.device("meta"):
        dit = DiT(PRESETS[name].dit)
    state = dit.state_dict()
    columns = {"wan2.1-1.3b": 48, "wan2.2-5b": 96, "wantrack-1.3b": 52}[name]
    dim = 3072 if "5b" in name else 1536
    assert list(state["patch_embedding.weight"].shape) == [dim, columns, 1, 2, 2]
    assert f"blocks.{layers - 1}.ffn.2.weight" in state and f"blocks.{layers}.ffn.2.weight" not in state
    assert ("img_emb.proj.4.weight" in state) == (name == "wantrack-1.3b")
    if name == "wantrack-1.3b":
        assert sum(x.numel() for x in state.values()) + 30 * 1536 == 1_564_577_376 - sum(
            p.numel() for p in TrackHead(PRESETS[name].tracks, PRESETS[name].geometry).parameters())


# files as they are found

class Said(torch.nn.Module):
    """Features that depend on the prompt, or on the picture."""

    def __init__(self, *size):
        super().__init__()
        self.size = size

    def forward(self, told):
        return torch.stack([torch.full(self.size, float(len(x)) / 20) for x in told])


@pytest.fixture(scope="session")
def taehv(tmp_path_factory):
    """Untrained tiny autoencoders at their real widths, as files; taehv(16) for Wan 2.1, taehv(48) for 2.2."""
    folder, made = tmp_path_factory.mktemp("taehv"), {}

    def make(channels):
        if channels not in made:
            torch.manual_seed(0)
            vae = TinyVAE(PRESETS["wan2.2-5b" if channels == 48 else "wan2.1-1.3b"].vae)
            made[channels] = folder / f"tae{channels}.safetensors"
            save_weights({k: x for k, x in vae.state_dict().items() if k not in ("mean", "std")}, made[channels])
        return made[channels]

    return make


def weights(preset, **changes):
    """A small transformer of a preset's kind, as a checkpoint without columns for tracks holds it: Wan's names."""
    base = PRESETS[preset].dit
    config = replace(base, dim=128, heads=1, layers=2, ffn_dim=48, text_dim=24, freq_dim=32,
                     clip_dim=20 if base.clip_dim else 0, **changes)
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(x.shape, generator=g) * 0.05 for name, x in DiT(config).state_dict().items()}


def small(kit):
    """The same weights on a frame that a test can afford."""
    stride = kit.geometry.stride
    kit.preset = replace(kit.preset, geometry=Geometry(4 * stride, 6 * stride, stride=stride, fps=16))
    kit.track_head.geometry = kit.geometry
    kit.text, kit.clip = Said(512, kit.preset.dit.text_dim), Said(257, kit.preset.dit.clip_dim)
    return kit


NO_TRACKS = {"wan2.1-1.3b": dict(inputs=("noise",), image_channels=0, motion_channels=0),
             "wan2.1-i2v-14b": dict(inputs=("noise", "mask", "image"), motion_channels=0),
             "fun-inp-1.3b": dict(inputs=("noise", "mask", "image"), motion_channels=0),
             "fun-control-1.3b": {}, "wan2.2-5b": dict(inputs=("noise",), motion_channels=0)}
CLASSES = {True: "WanTransformer3DModel", False: "WanModel"}


@pytest.mark.parametrize("diffusers", [False, True], ids=["original", "diffusers"])
@pytest.mark.parametrize("name, columns", [("wan2.1-1.3b", 16), ("wan2.1-i2v-14b", 36), ("fun-inp-1.3b", 36),
                                           ("fun-control-1.3b", 48), ("wan2.2-5b", 48)])
def test_a_base_model_in_either_layout_is_a_kit_that_streams(name, columns, diffusers, tmp_path, taehv, monkeypatch):
    state, channels = weights(name, **NO_TRACKS[name]), PRESETS[name].dit.latent_channels
    assert state["patch_embedding.weight"].shape[1] == columns
    folder = tmp_path / "transformer" if diffusers else tmp_path
    folder.mkdir(exist_ok=True)
    config = {"num_attention_heads": 2, "eps": 1e-6} if diffusers else {"num_heads": 2, "in_dim": columns, "eps": 1e-6}
    (folder / "config.json").write_text(json.dumps({"_class_name": CLASSES[diffusers], **config}))
    named = checkpoints.to_diffusers_names(state) if diffusers else state
    files = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": sorted(named)[i::2] for i in range(2)}
    for file, held in files.items():
        save_weights({k: named[k] for k in held}, folder / file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {k: file for file, held in files.items() for k in held}}))
    monkeypatch.setenv("MSK_TAEHV", str(taehv(channels)))
    kit = small(load(tmp_path, "teacher", dtype=torch.float32, like="fun-inp-1.3b" if "inp" in name else None))
    want = PRESETS[name]
    assert kit.dit.config.heads == 2 and kit.dit.config.inputs == want.dit.inputs and kit.role == "teacher"
    assert kit.dit.config.image_frames == want.dit.image_frames and kit.preset.null_prompt == want.null_prompt
    wide = kit.dit.patch_embedding.weight
    assert torch.equal(wide[:, :columns], state["patch_embedding.weight"]) and wide[:, columns:].eq(0).all()
    stream = Stream(kit, "a fish", torch.rand(3, 40, 40))
    for frames in (9, 12):
        out = stream.step(Tracks.grid(kit.geometry, 16, frames))
        assert out.shape == (1, frames, 3, *((64, 96) if channels == 48 else (32, 48))) and out.isfinite().all()


def forcing(tmp_path, wrap="model."):
    """A checkpoint as Self Forcing's trainer writes it."""
    state = weights("wan2.1-1.3b", **NO_TRACKS["wan2.1-1.3b"])
    torch.save({"generator": {wrap + k: x for k, x in state.items()}, "critic": {wrap + k: x for k, x in state.items()},
                "generator_ema": {f"{wrap}_fsdp_wrapped_module.{k}": x + 1 for k, x in state.items()}, "step": 600},
               tmp_path / "self_forcing_dmd.pt")
    return state


def test_self_forcings_checkpoint_is_a_student_with_its_own_window(tmp_path, taehv, monkeypatch):
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    state, file = forcing(tmp_path), tmp_path / "self_forcing_dmd.pt"
    kit = small(load(file, dtype=torch.float32))
    assert kit.role == "student" and kit.name == "self_forcing_dmd"
    assert kit.preset.stream == PRESETS["self-forcing-1.3b"].stream
    assert torch.equal(kit.dit.blocks[1].ffn[0].weight, state["blocks.1.ffn.0.weight"] + 1)     # the averaged ones
    plain = load(file, dtype=torch.float32, which="generator", like="causal-forcing-1.3b")
    assert torch.equal(plain.dit.blocks[1].ffn[0].weight, state["blocks.1.ffn.0.weight"])
    stream = Stream(kit, "a fish")
    assert [stream.step().shape[1] for _ in range(8)] == [9] + [12] * 7
    stream.settle()
    assert stream._roll.cache.past(3)[0][0].shape[1] == 18 * 6                      # 21 latent frames, and these are three


def test_longlive_is_a_base_and_a_lora_in_one_folder(tmp_path, taehv, monkeypatch, close):
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    (tmp_path / "models").mkdir()
    state = weights("wan2.1-1.3b", **NO_TRACKS["wan2.1-1.3b"])
    lora = {f"base_model.model.blocks.0.self_attn.q.lora_{side}.weight": torch.randn(size)
            for side, size in (("A", (4, 128)), ("B", (128, 4)))}
    torch.save({"generator_lora": lora, "critic_lora": lora}, tmp_path / "models/lora.pt")
    torch.save({"generator": {f"model.{k}": x for k, x in state.items()}}, tmp_path / "models/longlive_base.pt")
    kit = small(load(tmp_path, dtype=torch.float32))
    a, b = (lora[f"base_model.model.blocks.0.self_attn.q.lora_{side}.weight"] for side in "AB")
    close(kit.dit.blocks[0].self_attn.q.weight, state["blocks.0.self_attn.q.weight"] + b @ a)
    assert kit.preset.stream == PRESETS["longlive-1.3b"].stream
    stream = Stream(kit, "a fish")
    for _ in range(6):
        assert stream.step().isfinite().all()
    stream.settle()
    assert stream._roll.cache.places(3) == (0, 1, 2, *range(12, 21))                # three sinks, where they were


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_wantracks_exports_are_kits_without_surgery(kind, tmp_path, taehv, golden, monkeypatch, close):
    """Student and teacher, with biases and without, with norm_added_q and without; the file name is not diffusers'."""
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    (tmp_path / "transformer").mkdir()
    data = json.loads((GOLDEN / "trackwan_tiny/transformer/config.json").read_text())
    state = read(GOLDEN / "trackwan_tiny/transformer")
    if kind == "teacher":
        data["_class_name"] = "TrackWanTransformer3DModel"
        del data["track_config"]["use_bias"]
        state = {k: x for k, x in state.items() if not k.startswith("track_encoder") or not k.endswith("bias")}
        state = {k: x for k, x in state.items() if "norm_added_q" not in k}
    (tmp_path / "transformer/config.json").write_text(json.dumps(data))
    save_weights(state, tmp_path / "transformer/model.safetensors")
    early = load(tmp_path, dtype=torch.float32, like="wantrack-1.3b-early")
    assert early.dit.config.text_split and early.clip is None
    kit = load(tmp_path, dtype=torch.float32)
    assert kit.role == kind and kit.preset.tracks.bias == (kind == "student") and kit.preset.null_prompt is None
    assert kit.dit.config == replace(PRESETS["wantrack-1.3b"].dit, dim=64, heads=2, layers=2, ffn_dim=96, text_dim=24,
                                     freq_dim=32, clip_dim=20)
    assert torch.equal(kit.track_head.convs[1].weight, state["track_encoder.proj.weight"])
    assert (kit.preset.stream.sink, kit.preset.stream.budget, kit.preset.stream.chunk) == (1, 6, 3)
    io = golden("trackwan_bidir")
    close(kit.dit(io["in.noise"], torch.ones(1, 5), io["in.text"], None, io["cond20"].transpose(1, 2), clip=io["in.clip"]),
          io["t1000.v_no_motion"])


def test_what_is_no_wan_is_said(tmp_path, taehv, monkeypatch):
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    state = weights("wan2.1-1.3b", **NO_TRACKS["wan2.1-1.3b"])
    odd = {**state, "patch_embedding.weight": torch.zeros(128, 20, 1, 2, 2)}
    save_weights(odd, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="20 input and 16 latent channels are no layout that is known.*which preset"):
        load(tmp_path / "odd.safetensors")
    save_weights({**state, "ref_conv.weight": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown \(ref_conv.weight\)"):
        load(tmp_path / "more.safetensors")
    save_weights({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a holds no Wan transformer"):
        load(tmp_path / "a.safetensors")
    (tmp_path / "train/dcp").mkdir(parents=True)
    (tmp_path / "train/dcp/__0_0.distcp").touch()
    with pytest.raises(ValueError, match="in 1 parts, whose index is code.*dcp_to_torch .*dcp weights.pt"):
        load(tmp_path / "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no kit called"):
        load(tmp_path / "empty")


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A text-to-video pipeline in diffusers' layout, at toy size."""
    pytest.importorskip("diffusers")
    monkeypatch.delenv("MSK_TAEHV", raising=False)
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan/transformer").symlink_to(GOLDEN / "diffusers_wan_t2v")
    (tmp_path / "wan/vae").symlink_to(GOLDEN / "diffusers_wan_vae")
    return tmp_path / "wan"


def test_a_pipeline_folder_is_a_kit_that_streams(pipeline):
    kit = small(load(pipeline, "teacher", dtype=torch.float32))
    assert kit.preset.dit.layers == 2 and kit.dit.patch_embedding.in_channels == 48 and isinstance(kit.vae, FullVAE)
    stream = Stream(kit, "a fish", torch.rand(3, 40, 40))
    for frames in (9, 12, 12):
        out = stream.step(Tracks.grid(kit.geometry, 16, frames))
        assert out.shape == (1, frames, 3, 32, 48) and out.isfinite().all() and out.min() >= 0 and out.max() <= 1


def test_nothing_is_fetched_that_could_not_be_used(tmp_path, taehv, monkeypatch, capsys):
    """Neither Wan's autoencoder beside one of another build than TAEHV's, nor without the package that opens it."""
    monkeypatch.setattr(wan, "beside", lambda *_: pytest.fail("something was fetched"))
    monkeypatch.delenv("MSK_TAEHV", raising=False)
    own = replace(WAN, vae=replace(WAN.vae, encoder_width=8, decoder_widths=(32, 16, 8, 8)))
    save_weights({k: x for k, x in TinyVAE(own.vae).state_dict().items() if k not in ("mean", "std")},
                 tmp_path / "taew2_1.safetensors")
    vae, _ = wan.outside(own, tmp_path)
    assert isinstance(vae, TinyVAE) and vae.config == own.vae and capsys.readouterr().err == ""
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    monkeypatch.setattr(wan, "need", lambda _: (_ for _ in ()).throw(ImportError("diffusers is needed")))
    vae, _ = wan.outside(WAN, tmp_path)
    assert isinstance(vae, TinyVAE) and "diffusers is needed" in capsys.readouterr().err


def test_a_tiny_decoder_takes_the_full_ones_place(pipeline, taehv, monkeypatch):
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    kit = small(load(pipeline, dtype=torch.float32))
    assert isinstance(kit.vae, MixedVAE) and isinstance(kit.vae.tiny, TinyVAE)
    assert Stream(kit, "a fish").step().shape == (1, 9, 3, 32, 48)


def test_lighttae_is_told_by_its_name(taehv, tmp_path, monkeypatch):
    (tmp_path / "lighttaew2_1.safetensors").symlink_to(taehv(16))
    (tmp_path / "taew2_2.safetensors").symlink_to(taehv(48))
    monkeypatch.delenv("MSK_TAEHV", raising=False)
    light = wan.tiny_vae(WAN, tmp_path)
    assert light.mean.tolist() == pytest.approx(wan.WAN_MEAN) and light.std.tolist() == pytest.approx(wan.WAN_STD)
    assert wan.tiny_vae(PRESETS["wan2.2-5b"], tmp_path).mean.eq(0).all()
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKLWan(base_dim=4).config
    assert (theirs.latents_mean, theirs.latents_std) == (wan.WAN_MEAN, wan.WAN_STD)


@pytest.mark.parametrize("like", ["wantrack-1.3b", "wantrack-14b"])
def test_a_wantrack_file_of_either_size_is_known_by_its_weights(like):
    """At full size, without memory: frame size, stream and licence follow."""
    base = PRESETS[like]
    with torch.device("meta"):
        state = {**DiT(base.dit).state_dict(),
                 "track_encoder.temporal_conv.weight": torch.zeros(16, 64, 4, 1, 1),
                 "track_encoder.proj.weight": torch.zeros(16, 16, 1, 1, 1), "track_encoder.proj.bias": torch.zeros(16)}
    for names in (state, checkpoints.to_diffusers_names(state), checkpoints.rename(state, checkpoints.FASTVIDEO)):
        assert wan.recognise(names, {}) == base


def test_a_preset_with_an_address_is_fetched_and_opened(tmp_path, taehv, monkeypatch):
    """`msk demo --model wantrack-1.3b`: the student's repository, at a commit where one is asked for."""
    monkeypatch.setenv("MSK_TAEHV", str(taehv(16)))
    (tmp_path / "transformer").symlink_to(GOLDEN / "trackwan_tiny/transformer")
    asked = []
    monkeypatch.setattr(wan, "fetch", lambda *what: asked.append(what) or tmp_path)
    for name, role in (("wantrack-1.3b", "student"), ("wantrack-1.3b@abc", "teacher"), ("wantrack-1.3b-early", "teacher")):
        kit = load(name, role, dtype=torch.float32)
        assert (kit.role, kit.name, kit.dit.config.dim) == (role, name.partition("@")[0], 64)
        assert kit.dit.config.text_split == ("early" in name)
    assert asked == [("H1yori233/Track-v0", None, ["transformer/*"]),
                     ("noctuashap/TrackWan-1.3B-I2V-synth-stage2", "abc", ["transformer/*"]),
                     ("noctuashap/TrackWan-1.3B-I2V-synth-stage2", None, ["transformer/*"])]


def test_no_address_and_no_network_are_one_sentence_each(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no public address is known for the student of wan2.2-5b"):
        load("wan2.2-5b", "student")
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match="gdhe17/Self-Forcing .*could not be fetched"):
        load("self-forcing-1.3b")


# and back

@pytest.mark.parametrize("name", ["wan2.1-1.3b", "fun-control-1.3b", "wantrack-1.3b", "wan2.2-5b"])
def test_what_we_save_diffusers_loads_and_computes_alike(name, tmp_path, close):
    diffusers = pytest.importorskip("diffusers")
    base = PRESETS[name]
    preset = replace(base, dit=replace(base.dit, dim=64, heads=2, layers=2, ffn_dim=48, text_dim=24, freq_dim=32,
                                       clip_dim=20 if base.dit.clip_dim else 0),
                     geometry=Geometry(32, 48, base.geometry.stride))
    vae = FullVAE.open(GOLDEN / "diffusers_wan_vae")
    torch.manual_seed(0)
    kit = Kit(DiT(preset.dit), TrackHead(preset.tracks, preset.geometry), vae, None, preset, "teacher").eval()
    for p in kit.dit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    wan.export(kit, tmp_path)
    wan.export(kit, tmp_path, shard="200KB")                                        # over it, and in several files
    assert len(list((tmp_path / "transformer").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    theirs = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "transformer").eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    c = preset.dit
    noise = lambda channels: torch.randn(1, 3, channels, 4, 6, generator=g)
    x, text, t = noise(c.latent_channels), torch.randn(1, 512, 24, generator=g), torch.full((1, 3), 0.7)
    image = noise(c.mask_channels + 16) if c.image_channels else torch.zeros(1, 3, 16, 4, 6)
    motion = noise(c.motion_channels)
    clip = torch.randn(1, 257, 20, generator=g) if c.clip_dim else None
    given = {"noise": x, "mask": image[:, :, :-16], "image": image[:, :, -16:], "motion": motion}
    inputs = torch.cat([given[part] for part in c.inputs], dim=2).transpose(1, 2)
    want = theirs(inputs, timestep=torch.tensor([700.0]), encoder_hidden_states=text,
                  encoder_hidden_states_image=clip, return_dict=False)[0].transpose(1, 2)
    close(kit.dit(x, t, text, motion, image if c.image_channels else None, clip=clip), want)
    again, latents = load(tmp_path, dtype=torch.float32), torch.randn(1, 2, 16, 2, 3, generator=g)
    assert again.preset == preset and again.role == "teacher" and isinstance(again.vae, FullVAE)
    their_vae = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "vae").eval().requires_grad_(False)
    raw = (latents * vae.std.view(-1, 1, 1) + vae.mean.view(-1, 1, 1)).transpose(1, 2)
    for decoder in (vae, again.vae):
        close(decoder.decode(latents)[0], (their_vae.decode(raw).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1))
    for part in ("dit", "track_head"):
        state = getattr(again, part).state_dict()
        assert all(torch.equal(state[k], v) for k, v in getattr(kit, part).state_dict().items())


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.1-i2v-14b", "wan2.2-5b"])
def test_a_widened_base_computes_what_the_base_computes(name, tmp_path, taehv, monkeypatch, capsys):
    """Exactly, whatever is drawn: the new columns are zero, and the track head is not (or neither would ever learn)."""
    channels = PRESETS[name].dit.latent_channels
    monkeypatch.setenv("MSK_TAEHV", str(taehv(channels)))
    state = weights(name, **NO_TRACKS[name])
    save_weights(state, tmp_path / "base.safetensors")
    assert main(["widen", str(tmp_path / "base.safetensors"), "--out", str(tmp_path / "wide")]) == 0
    assert "input channels (noise" in capsys.readouterr().out
    kit = load(tmp_path / "wide", dtype=torch.float32)
    base = DiT(replace(kit.dit.config, base_channels=0, **NO_TRACKS[name])).eval().requires_grad_(False)
    fill_dit(base, state)
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, 3, channels, 4, 6, generator=g), torch.rand(1, 3, generator=g)
    text = torch.randn(1, 9, 24, generator=g)
    motion = torch.randn(1, 3, kit.dit.config.motion_channels, 4, 6, generator=g)
    image = torch.randn(1, 3, 20, 4, 6, generator=g) if "i2v" in name else None
    clip = torch.randn(1, 257, 20, generator=g) if "i2v" in name else None
    assert torch.equal(kit.dit(x, t, text, motion, image, clip=clip), base(x, t, text, None, image, clip=clip))
    assert all(conv.weight.abs().max() > 0 for conv in kit.track_head.convs)
