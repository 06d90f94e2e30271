"""Wan's full autoencoder, umT5 and CLIP, against diffusers and transformers at toy sizes."""
import re
from pathlib import Path

import pytest
import torch

from msk import encoders
from msk.encoders import CLIP, UMT5, FullVAE, MixedVAE
from msk.tinyvae import TinyVAE

GOLDEN = Path(__file__).parent / "golden"


# the autoencoder

def test_the_full_autoencoder_is_wans_and_streams(golden, exact):
    pytest.importorskip("diffusers")
    vae, io = FullVAE.open(GOLDEN / "diffusers_wan_vae").eval().requires_grad_(False), golden("diffusers_wan_vae_io")
    latents = vae.encode(io["video"].transpose(1, 2) / 2 + 0.5)
    exact(latents, io["encode.mean_normalized"].transpose(1, 2))
    want = (io["decode"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    exact(vae.decode(latents)[0], want)
    past, frames = None, []
    for piece in latents.split([1, 2, 1], dim=1):
        out, past = vae.decode(piece, past)
        frames.append(out)
    assert [f.shape[1] for f in frames] == [1, 8, 4]
    exact(torch.cat(frames, 1), want)
    exact(vae.decode(latents[:, :1])[0], (io["decode_first_latent"].transpose(1, 2) / 2 + 0.5).clamp(0, 1))


def test_a_picture_and_grey_frames_are_encoded_as_wan_does_and_then_forgotten(golden, close, exact):
    pytest.importorskip("diffusers")
    vae, io = FullVAE.open(GOLDEN / "diffusers_wan_vae").eval().requires_grad_(False), golden("diffusers_wan_vae_io")
    at = lambda mean: (mean.transpose(1, 2) - vae.mean.view(-1, 1, 1)) / vae.std.view(-1, 1, 1)
    video = io["cond_video"].transpose(1, 2) / 2 + 0.5
    assert video[:, 1:].eq(0.5).all()
    exact(vae.encode(video), at(io["cond.mean"]))
    exact(vae.encode(video)[:, :1], at(io["single_frame.mean"]))                    # the first latent sees nothing later
    long = torch.cat([video[:, :1], video[:, 1:2].expand(-1, 4 * (vae.forgets + 2), -1, -1, -1)], 1)
    latents = vae.encode(long)
    steady = latents[:, vae.forgets - 1:]
    close(steady, steady[:, :1].expand_as(steady), atol=1e-6)
    assert not torch.allclose(latents[:, 4], latents[:, -1], atol=1e-4)


def test_the_2_2_autoencoder_folds_its_pixels(close):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(base_dim=4, decoder_base_dim=4, z_dim=8, is_residual=True, in_channels=12,
                                        out_channels=12, patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 8,
                                        latents_std=[2.0] * 8).eval().requires_grad_(False)
    vae, latents = FullVAE(theirs), torch.randn(1, 3, 8, 2, 2)
    want = theirs.decode((latents * 2 + 0.1).transpose(1, 2)).sample.transpose(1, 2) / 2 + 0.5
    close(vae.decode(latents)[0], want)


def original(name):
    """A diffusers name of the autoencoder as Wan's own file has it."""
    layers = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
              "conv_shortcut": "shortcut"}
    name = re.sub(r"(mid_block|down_blocks|up_blocks)(.*?)\.(norm1|conv1|norm2|conv2|conv_shortcut)\.",
                  lambda m: f"{m[1]}{m[2]}.{layers[m[3]]}.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle.1").replace("down_blocks", "downsamples")
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)
    name = name.replace("norm_out", "head.0").replace("conv_out", "head.2").replace("conv_in", "conv1")
    return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")


def test_wans_own_autoencoder_file_is_read(tmp_path, close):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16).eval().requires_grad_(False)
    torch.save({original(name): x for name, x in theirs.state_dict().items()}, tmp_path / "Wan2.1_VAE.pth")
    vae = FullVAE.open(tmp_path / "Wan2.1_VAE.pth").requires_grad_(False)
    state = vae.vae.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in theirs.state_dict().items())


def test_wans_newer_autoencoder_file_is_read(tmp_path, close):
    """Wan2.2_VAE.pth: stages within stages, pixels folded, and a scale of the latents that only the paper's code holds."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=8, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_spatial=16, temperal_downsample=[False, True, True], latents_mean=encoders.NEWER_MEAN,
        latents_std=encoders.NEWER_STD).eval().requires_grad_(False)

    def named(name):
        for now, was in (("mid_block.resnets.0", "middle.0"), ("mid_block.resnets.1", "middle.2"), ("norm_out", "head.0"),
                         ("mid_block.attentions.0", "middle.1"), ("conv_out", "head.2"), ("conv_in", "conv1"),
                         ("norm1", "residual.0"), ("norm2", "residual.3"), ("conv2", "residual.6"),
                         ("conv_shortcut", "shortcut")):
            name = name.replace(now, was)
        name = name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
        name = re.sub(r"resnets\.(\d)\.conv1", r"resnets.\1.residual.2", name)
        name = re.sub(r"middle\.(\d)\.conv1", r"middle.\1.residual.2", name)
        name = re.sub(r"(down|up)_blocks\.(\d)\.(resnets\.)?", r"\1samples.\2.\1samples.", name)
        return name.replace("downsampler", "2").replace("upsampler", "3")

    state = {named(name): x for name, x in theirs.state_dict().items()}
    assert {"encoder.downsamples.1.downsamples.0.shortcut.weight", "encoder.downsamples.0.downsamples.2.resample.1.bias",
            "decoder.upsamples.0.upsamples.3.time_conv.bias", "decoder.upsamples.3.upsamples.2.residual.6.weight",
            "encoder.middle.0.residual.2.weight", "decoder.head.0.gamma", "conv1.bias", "decoder.conv1.bias"} <= state.keys()
    torch.save(state, tmp_path / "Wan2.2_VAE.pth")
    vae, frames = FullVAE.open(tmp_path / "Wan2.2_VAE.pth").requires_grad_(False), torch.rand(1, 5, 3, 32, 32)
    assert all(torch.equal(x, vae.vae.state_dict()[name]) for name, x in theirs.state_dict().items())
    raw = theirs.encode((2 * frames - 1).transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    close(vae.encode(frames) * vae.std.view(-1, 1, 1) + vae.mean.view(-1, 1, 1), raw)
    assert vae.encode(frames).shape == (1, 2, 48, 2, 2) and len(vae.std) == 48
    assert vae.decode(vae.encode(frames))[0].shape == frames.shape


def test_a_mixed_autoencoder_encodes_like_one_and_decodes_like_the_other(close):
    pytest.importorskip("diffusers")
    from msk.config import VAEConfig
    full = FullVAE.open(GOLDEN / "diffusers_wan_vae").eval().requires_grad_(False)
    tiny = TinyVAE(VAEConfig(encoder_width=8, decoder_widths=(8, 8, 8, 8), fill_end=True)).requires_grad_(False)
    vae, frames = MixedVAE(full, tiny), torch.rand(1, 5, 3, 16, 16)
    latents = vae.encode(frames)
    close(latents, full.encode(frames))
    close(vae.decode(latents)[0], tiny.decode(latents)[0])
    assert vae.forgets == full.forgets and len(list(vae.parameters())) > len(list(full.parameters()))


# prompts

@pytest.fixture
def umt5(tmp_path, monkeypatch):
    """A folder with a toy umT5 and its tokenizer; features are kept beside it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setenv("MSK_CACHE", str(tmp_path / "cache"))
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "fish": 3, "red": 4}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>",
                                         unk_token="<unk>").save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    config = transformers.UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.UMT5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def test_prompts_reach_umt5_and_padding_is_zero(umt5, close):
    import transformers
    text = UMT5(umt5, length=6)(["fish  fish", "fish", ""])
    assert text.shape == (3, 6, 16) and text.dtype == torch.float32
    assert text[0, 3:].abs().max() == 0 and text[0, 2].abs().max() > 0 and text[1, 2:].abs().max() == 0
    assert text[2, 0].abs().max() > 0                           # the empty prompt is its end mark, and no zeros
    theirs = transformers.UMT5EncoderModel.from_pretrained(umt5 / "text_encoder")
    want = theirs(torch.tensor([[3, 1, 0, 0, 0, 0]]), torch.tensor([[1, 1, 0, 0, 0, 0]])).last_hidden_state[0, :2]
    close(text[1, :2], want, atol=0.05 if encoders.best_dtype("cpu") == torch.bfloat16 else 1e-5)


def test_the_encoder_is_let_go_and_what_it_said_is_kept(umt5, monkeypatch):
    encoder = UMT5(umt5, length=6)
    first = encoder(["fish", "red fish"])
    assert not list(encoder.parameters()) and len(list((umt5 / "cache/prompts").iterdir())) == 2
    asked = []
    monkeypatch.setattr(UMT5, "encode", lambda self, prompts: asked.extend(prompts) or [torch.ones(1, 16)] * len(prompts))
    assert torch.equal(UMT5(umt5, length=6)(["red  fish", "fish"]), first.flip(0)) and not asked
    encoder(["fish", "red", "red"])
    assert asked == ["red"]                                     # only what is new, and once
    assert encoder.kept("fish") != UMT5(umt5, length=7).kept("fish")


def test_wans_own_file_of_umt5_is_read(umt5, tmp_path, close):
    """As it lies in Wan's own folders: another naming of the same encoder, and its tokenizer beside it."""
    from safetensors.torch import load_file
    want = UMT5(umt5, length=6)(["red fish"])
    names = {"layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding", "layer.0.layer_norm": "norm1",
             "layer.0.SelfAttention.": "attn.", "layer.1.layer_norm": "norm2", "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
             "layer.1.DenseReluDense.wi_1": "ffn.fc1", "layer.1.DenseReluDense.wo": "ffn.fc2", "encoder.block": "blocks",
             "encoder.final_layer_norm": "norm", "shared": "token_embedding"}
    state = {}
    for name, x in load_file(umt5 / "text_encoder/model.safetensors").items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = x
    assert {"token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.ffn.gate.0.weight", "norm.weight"} <= state.keys()
    folder = tmp_path / "wan"
    (folder / "google").mkdir(parents=True)
    (umt5 / "tokenizer").rename(folder / "google/umt5-xxl")
    torch.save({k: x for k, x in state.items() if "embed_tokens" not in k}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    own = UMT5(folder, length=6)
    assert own.kept("red fish") != UMT5(umt5, length=6).kept("red fish")
    close(own(["red fish"]), want)


def test_one_string_is_not_a_list_and_a_missing_encoder_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MSK_CACHE", str(tmp_path))
    with pytest.raises(TypeError, match="give a list"):
        UMT5(tmp_path)("a fish")
    with pytest.raises(FileNotFoundError, match="holds no text_encoder/: put that part"):
        UMT5(tmp_path)(["a fish"])


# pictures

def test_clip_sees_what_transformers_sees(tmp_path, close):
    transformers = pytest.importorskip("transformers")
    from PIL import Image
    config = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                                           image_size=28, patch_size=14, projection_dim=8)
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModel(config).eval()
    theirs.save_pretrained(tmp_path / "image_encoder")
    g = torch.Generator().manual_seed(1)
    small = torch.rand(1, 3, 6, 9, generator=g)
    pixels = torch.nn.functional.interpolate(small, (60, 104), mode="bicubic").clamp(0, 1)
    image = Image.fromarray((pixels[0].permute(1, 2, 0) * 255).round().byte().numpy())
    crop = {"height": 28, "width": 28}
    seen = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop)(image, return_tensors="pt")
    clip = CLIP(tmp_path)
    close(clip.prepare(pixels, 28), seen["pixel_values"], atol=0.03)                # they round to bytes, twice
    with torch.no_grad():
        want = theirs(pixel_values=clip.prepare(pixels, 28), output_hidden_states=True).hidden_states[-2]
    close(clip(pixels), want)
    assert clip(pixels).shape == (1, 5, 16) and not list(clip.parameters())         # one for the whole, four patches


def test_wans_own_file_of_clip_is_read(tmp_path, close):
    """As it lies in Wan's own folders: q, k and v in one, another naming, and a half that reads beside the one that sees."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(hidden_size=160, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                                           image_size=28, patch_size=14, hidden_act="gelu")
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModel(config).eval().requires_grad_(False)
    inner = getattr(theirs, "vision_model", theirs)
    for p in inner.parameters():
        torch.nn.init.normal_(p, std=0.1)
    state = {"log_scale": torch.zeros(()), "textual.a.weight": torch.zeros(2), "visual.head": torch.zeros(160, 8),
             "visual.cls_embedding": inner.embeddings.class_embedding.view(1, 1, -1),
             "visual.pos_embedding": inner.embeddings.position_embedding.weight[None],
             "visual.patch_embedding.weight": inner.embeddings.patch_embedding.weight}
    pairs = [("visual.pre_norm", inner.pre_layrnorm), ("visual.post_norm", inner.post_layernorm)]
    for i, layer in enumerate(inner.encoder.layers):
        at, a = f"visual.transformer.{i}", layer.self_attn
        pairs += [(f"{at}.norm1", layer.layer_norm1), (f"{at}.norm2", layer.layer_norm2), (f"{at}.attn.proj", a.out_proj),
                  (f"{at}.mlp.0", layer.mlp.fc1), (f"{at}.mlp.2", layer.mlp.fc2)]
        for of in ("weight", "bias"):
            state[f"{at}.attn.to_qkv.{of}"] = torch.cat([getattr(x, of) for x in (a.q_proj, a.k_proj, a.v_proj)])
    state |= {f"{name}.{of}": getattr(module, of) for name, module in pairs for of in ("weight", "bias")}
    torch.save({name: x.detach().half() for name, x in state.items()}, tmp_path / encoders.OWN_CLIP)
    for p in inner.parameters():
        p.copy_(p.half().float())
    clip, pixels = CLIP(tmp_path), torch.rand(1, 3, 28, 28)
    want = theirs(pixel_values=clip.prepare(pixels, 28), output_hidden_states=True).hidden_states[-2]
    close(clip(pixels), want)


def test_an_encoder_that_a_gpu_has_no_room_for_works_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    cuda = torch.device("cuda")
    assert encoders.with_room(cuda, 900) == cuda and encoders.with_room(cuda, 950).type == "cpu"
