"""The tiny autoencoder against TAEHV's own tensors, and cut in every way."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msk.config import PRESETS, VAEConfig
from msk.tinyvae import TinyVAE

NARROW = VAEConfig(encoder_width=8, decoder_widths=(32, 16, 8, 8), fill_end=True)


@pytest.fixture(scope="module")
def taehv(golden):
    vae = TinyVAE(NARROW).eval().requires_grad_(False)
    left = vae.load_state_dict(golden("taehv/narrow_weights"), strict=False)
    assert set(left.missing_keys) == {"mean", "std"} and not left.unexpected_keys
    return vae, golden("taehv/narrow_io")


def small(seed=0):
    torch.manual_seed(seed)
    return TinyVAE(PRESETS["toy"].vae).eval().requires_grad_(False)


def by(vae, latents, sizes):
    past, out = None, []
    for piece in latents.split(sizes, 1):
        frames, past = vae.decode(piece, past)
        out.append(frames)
    return torch.cat(out, 1), [len(f[0]) for f in out]


def test_it_decodes_what_taehv_decodes(taehv, exact):
    vae, io = taehv
    exact(vae.decode(io["latents"])[0], io["decode.parallel"])
    exact(vae.decode(io["latents"])[0], io["decode.sequential"])
    raw = io["decode.raw_parallel_untrimmed_unclamped"]                             # three frames more, before the first
    exact(vae.decode(io["latents"], clamp=False)[0], raw[:, 3:])


@pytest.mark.parametrize("sizes, key", [([1] * 6, "stream_1_by_1"), ([1, 3, 2], "stream_1_3_2")])
def test_it_streams_what_taehv_streams(taehv, exact, sizes, key):
    vae, io = taehv
    frames, counts = by(vae, io["latents"], sizes)
    exact(frames, io[f"decode.{key}"])
    assert counts == io[f"{key}_counts"].tolist()


def test_it_encodes_what_taehv_encodes(taehv, exact):
    vae, io = taehv
    exact(vae.encode(io["video"]), io["encode.parallel"])


def test_its_layers_have_taehvs_names_and_shapes():
    want = json.loads((Path(__file__).parent / "golden/taehv/full_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        state = TinyVAE(VAEConfig()).state_dict()
    assert {k: list(v.shape) for k, v in state.items() if k not in ("mean", "std")} == want


@pytest.mark.parametrize("sizes", [[1, 5], [3, 3], [2, 1, 1, 2], [5, 1], [1] * 6])
def test_the_same_frames_however_the_clip_is_cut(sizes, close):
    vae, latents = small(), torch.randn(2, 6, 4, 3, 4)
    frames, counts = by(vae, latents, sizes)
    close(frames, vae.decode(latents)[0], atol=1e-5)
    assert counts == [4 * n - 3 * (i == 0) for i, n in enumerate(sizes)]


def test_a_batch_is_its_clips(close):
    vae, latents, video = small(), torch.randn(3, 4, 4, 3, 4), torch.rand(3, 9, 3, 16, 24)
    close(vae.decode(latents)[0][1:2], vae.decode(latents[1:2])[0], atol=1e-5)
    close(vae.encode(video)[1:2], vae.encode(video[1:2]), atol=1e-5)


@pytest.mark.parametrize("preset", ["toy", "tiny"])
def test_sizes_go_there_and_back(preset):
    vae, g = TinyVAE(PRESETS[preset].vae), PRESETS[preset].geometry
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 9, 3, g.height, g.width))
        assert latents.shape == (1, 3, vae.config.latent_channels, *g.latent_size)
        assert vae.decode(latents)[0].shape == (1, 9, 3, g.height, g.width)


def test_time_flows_one_way(close):
    vae, video = small(), torch.rand(1, 13, 3, 16, 24)
    changed = video.clone()
    changed[:, 9:] = 0                                  # latent frame 3 stands for pixel frames 9..12
    a, b = vae.encode(video), vae.encode(changed)
    close(a[:, :3], b[:, :3], atol=1e-6)
    assert not torch.allclose(a[:, 3], b[:, 3])
    x, y = torch.randn(2, 1, 4, 4, 3, 4)
    y[:, :3] = x[:, :3]
    close(vae.decode(x)[0][:, :9], vae.decode(y)[0][:, :9], atol=1e-6)


def test_latents_are_normalised_by_what_the_kit_measured(close):
    vae, video = small(), torch.rand(1, 9, 3, 16, 24)
    raw, frames = vae.encode(video), vae.decode(vae.encode(video))[0]
    vae.mean, vae.std = torch.tensor([0.1, 0.2, -0.3, 0.0]), torch.tensor([0.5, 2.0, 1.0, 0.1])
    close(vae.encode(video), (raw - vae.mean.view(-1, 1, 1)) / vae.std.view(-1, 1, 1))
    close(vae.decode(vae.encode(video))[0], frames, atol=1e-5)


def test_memory_formats_and_bf16_are_only_speed(close):
    vae, latents = small(), torch.randn(2, 3, 4, 3, 4)
    want = vae.decode(latents)[0]
    close(vae.to(memory_format=torch.channels_last).decode(latents)[0], want, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (vae.decode(latents)[0] - want).abs().max() < 0.02
    vae.decoder.bfloat16()
    frames, past = vae.decode(latents)
    assert frames.dtype == torch.float32 and past[0].dtype == torch.bfloat16 and (frames - want).abs().max() < 0.02


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_convolution_is_given_frames_laid_out_as_its_weights_are(layout, batch):
    vae, laid_out = small().to(memory_format=layout), []
    see = lambda layer, given: laid_out.append(given[0].is_contiguous(memory_format=layout))
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(see)
    latents = vae.encode(torch.rand(batch, 9, 3, 32, 32))
    vae.decode(latents)
    assert len(laid_out) > 10 and all(laid_out)


def test_it_learns_from_frames_beyond_black_and_white():
    torch.manual_seed(0)
    vae = TinyVAE(PRESETS["toy"].vae)
    frames, _ = vae.decode(vae.encode(torch.rand(1, 5, 3, 16, 16)), clamp=False)
    (frames - 2).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_frames_that_fill_no_latent_frame_are_refused():
    with pytest.raises(ValueError, match="8 frames do not fill"):
        small().encode(torch.rand(1, 8, 3, 16, 24))


def test_a_stage_may_do_without_memory(close):
    """Then the encoder sees each group of four frames by itself, and only the decoder has a past."""
    torch.manual_seed(0)
    config = replace(PRESETS["toy"].vae, blocks=(0, 1, 2), encoder_blocks=0)
    vae, video = TinyVAE(config).eval().requires_grad_(False), torch.rand(2, 13, 3, 16, 24)
    assert config.stages == ((0, 0, 0), (0, 1, 2)) and vae.forgets == 2
    whole = vae.encode(video)
    close(vae.encode_alone(video[:, 1:]), whole[:, 1:], atol=1e-6)
    close(vae.encode(video[:, 4:])[:, 1:], whole[:, 2:], atol=1e-6)
    frames, past = vae.decode(whole)
    assert len(past) == 3
    close(by(vae, whole, [1, 2, 1])[0], frames, atol=1e-5)


def test_groups_alone_know_nothing_of_what_was_before(close):
    vae, video = small(), torch.rand(2, 8, 3, 16, 24)                               # with memory, in both halves
    alone = vae.encode_alone(video)
    close(alone[:, 1:], vae.encode_alone(video[:, 4:]))
    assert (alone[:, 1] - vae.encode_groups(video)[:, 1]).abs().max() > 1e-4
