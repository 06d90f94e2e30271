"""The transformer against diffusers' Wan, and against itself: masked, remembered, widened, checkpointed."""
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import msk.dit
from msk.attention import capture, chunk_mask
from msk.cache import ChunkCache
from msk.config import PRESETS
from msk.dit import DiT, sinusoid


def streamed(dit, latents, text, motion, image, chunk, sink, window, t=0.0):
    """Velocity chunk by chunk through a past; every chunk is remembered as it came."""
    cache, out = ChunkCache(sink, window), []
    for i in range(0, latents.shape[1], chunk):
        now = slice(i, i + chunk)
        piece, past = latents[:, now], cache.past()
        level = torch.full(piece.shape[:2], t)
        out.append(dit(piece, level, text, motion[:, now], image[:, now], past=past))
        cache.push(dit.remember(piece, text, motion[:, now], image[:, now], past=past))
    return torch.cat(out, 1)


def masked(dit, latents, text, motion, image, chunk, sink, window):
    tokens = latents.shape[-1] * latents.shape[-2] // 4
    return dit(latents, torch.zeros(latents.shape[:2]), text, motion, image,
               mask=chunk_mask(latents.shape[1], tokens, chunk, sink, window))


CASES = [(1, 1, 3), (2, 1, 4), (0, 2, 7), (0, 1, 6), (1, 3, 5), (0, 0, 3)]


@torch.no_grad()
def test_streaming_gives_what_the_mask_gives(make_dit, clip, close):
    dit = make_dit()
    for sink, window, chunks in CASES:                  # up to the first eviction with sinks, any length without
        c = clip(2 * chunks)
        close(streamed(dit, *c, 2, sink, window), masked(dit, *c, 2, sink, window))


@torch.no_grad()
@pytest.mark.parametrize("places", [None, (0, 1, 5, 6, 7, 8)])
def test_a_past_whose_keys_were_turned_once_says_the_same_to_the_last_bit(make_dit, clip, places, monkeypatch):
    dit, (latents, text, motion, image) = make_dit(), clip(6)
    t = torch.zeros(latents.shape[0], 2)
    past = dit.remember(latents[:, :4], text, motion[:, :4], image[:, :4])
    rest = latents[:, 4:], t, text, motion[:, 4:], image[:, 4:]
    plain, turned = dit(*rest, past=past, places=places), dit.placed(past, latents.shape[-2:], places)
    lengths, turn = [], msk.dit.rope
    monkeypatch.setattr(msk.dit, "rope", lambda x, *args, **where: lengths.append(x.shape[1]) or turn(x, *args, **where))
    assert torch.equal(dit(*rest, past=turned, places=places), plain)
    assert max(lengths) < past[0][0].shape[1]                           # nothing as long as the past was turned again


@torch.no_grad()
def test_after_the_first_eviction_the_sink_holds_its_place_and_only_then_they_part(make_dit, clip, close):
    dit, c = make_dit(), clip(10)
    for block in dit.blocks:
        block.self_attn.norm_k.weight *= 20             # sharp attention: places matter
    a, b = streamed(dit, *c, 2, 1, 1), masked(dit, *c, 2, 1, 1)
    close(a[:, :6], b[:, :6])                           # chunks 0, 1, 2: nothing forgotten yet
    assert (a[:, 6:] - b[:, 6:]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-3
    # held: chunk 4 sees sink, chunk 3 and itself as frames 0..5, however late it is
    latents, text, motion, image = c
    cache = ChunkCache(1, 1)
    kvs = []
    for i in range(4):
        now, past = slice(2 * i, 2 * i + 2), cache.past()
        kvs.append(dit.remember(latents[:, now], text, motion[:, now], image[:, now], past=past))
        cache.push(kvs[-1])
    near = [tuple(torch.cat(pair, 1) for pair in zip(first, third)) for first, third in zip(kvs[0], kvs[3])]
    again = dit(latents[:, 8:], torch.zeros(2, 2), text, motion[:, 8:], image[:, 8:], past=near)
    close(again, a[:, 8:])


@torch.no_grad()
def test_a_mask_that_hides_nothing_is_no_mask(make_dit, clip, close):
    dit, (x, text, motion, image), t = make_dit(), clip(4), torch.rand(2, 4)
    close(dit(x, t, text, motion, image, mask=torch.ones(16, 16, dtype=torch.bool)), dit(x, t, text, motion, image))


@torch.no_grad()
def test_memory_and_work_are_constant_however_long_the_video(make_dit, clip):
    dit, (x, text, motion, _) = make_dit(), clip(2)
    cache, sizes = ChunkCache(1, 1), []
    for _ in range(12):
        cache.push(dit.remember(x, text, motion, past=cache.past()))
        sizes.append(cache.past()[0][0].shape[1])
    assert sizes == [8] + [16] * 11


@torch.no_grad()
def test_remembering_gives_the_keys_of_a_full_clean_pass(make_dit, clip, close):
    dit, (x, text, motion, image) = make_dit(), clip(3)
    full = dit.trunk(x, torch.zeros(2, 3), text, motion, image, None, None, None)[-1]
    for (k, v), (k_full, v_full) in zip(dit.remember(x, text, motion, image), full, strict=True):
        close(k, k_full)
        close(v, v_full)


@torch.no_grad()
def test_a_widened_untrained_teacher_is_the_base_model(make_dit, clip, close):
    base, wide = make_dit(motion_channels=0, image_channels=0, inputs=("noise",)), make_dit()
    state = base.state_dict()
    weight = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, wide.config.motion_channels + 4))
    wide.load_state_dict(state)
    x, text, motion, image = clip(3)
    t = torch.rand(2, 3)
    assert torch.equal(wide(x, t, text, motion, image), wide(x, t, text))           # deaf to what it was not taught
    close(wide(x, t, text, motion, image), base(x, t, text), atol=1e-6)


@torch.no_grad()
def test_what_is_not_given_is_zeros(make_dit, clip):
    dit, (x, text, motion, image), t = make_dit(), clip(3), torch.rand(2, 3)
    assert torch.equal(dit(x, t, text), dit(x, t, text, 0 * motion, 0 * image))
    assert torch.equal(dit(x, t, text, motion, image[:, :1]), dit(x, t, text, motion, image))


@torch.no_grad()
def test_the_order_of_the_inputs_is_data(make_dit, clip, close):
    a, b = make_dit(), make_dit(inputs=("noise", "image", "motion"))
    state = a.state_dict()
    noise, motion, image = state["patch_embedding.weight"].split([4, a.config.motion_channels, 4], dim=1)
    state["patch_embedding.weight"] = torch.cat([noise, image, motion], dim=1)
    b.load_state_dict(state)
    x, text, drawn, given = clip(3)
    t = torch.rand(2, 3)
    close(a(x, t, text, drawn, given), b(x, t, text, drawn, given))


@torch.no_grad()
def test_text_read_once_is_text(make_dit, clip, close):
    dit, (x, text, motion, image), t = make_dit(), clip(3), torch.rand(2, 3)
    close(dit(x, t, dit.read(text), motion, image), dit(x, t, text, motion, image), atol=1e-6)


@torch.no_grad()
def test_every_frame_has_a_noise_level_of_its_own(make_dit, clip):
    dit, (x, text, *_) = make_dit(), clip(3)
    t = torch.full((2, 3), 0.5)
    later = t.clone()
    later[:, 2] = 0.9
    assert not torch.allclose(dit(x, t, text)[:, 2], dit(x, later, text)[:, 2])


def test_gradients_are_the_same_with_checkpointing(make_dit, clip, close):
    dit, (x, text, motion, image), t = make_dit(), clip(3), torch.rand(2, 3)
    past = dit.remember(x, text, motion, image)
    past = [(k.detach(), v.detach()) for k, v in past]
    grads = []
    for dit.checkpoint in (False, True):
        dit.zero_grad()
        dit(x, t, text, motion, image, past=past).square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in dit.named_parameters()})
    for name in grads[0]:
        close(grads[0][name], grads[1][name], atol=1e-6)


def test_an_untrained_head_says_nothing_and_still_learns(clip):
    from msk.config import PRESETS
    from msk.dit import DiT
    dit, (x, text, motion, image) = DiT(PRESETS["toy"].dit), clip(3)
    out = dit(x, torch.rand(2, 3), text, motion, image)
    assert out.abs().max() == 0
    (out - 1).square().mean().backward()
    assert dit.head.head.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_bf16_stays_near_float32(make_dit, clip):
    dit, (x, text, motion, image), t = make_dit(), clip(3), torch.rand(2, 3)
    want = dit(x, t, text, motion, image)
    with torch.autocast("cpu", torch.bfloat16):
        cast = dit(x, t, text, motion, image)
    half = dit.bfloat16()(x, t, text, motion, image)
    for got in (cast, half):
        assert got.dtype == torch.float32 and (got - want).norm() / want.norm() < 0.05


@torch.no_grad()
@torch.no_grad()
def test_only_a_pass_that_is_remembered_holds_the_keys_of_all_layers(make_dit, clip):
    dit, (latents, text, motion, image) = make_dit(layers=6), clip(3)
    made, alive = [], []

    def look(block, given, answer):
        made.append(weakref.ref(answer[1][0]))
        alive.append(sum(keys() is not None for keys in made))

    for block in dit.blocks:
        block.register_forward_hook(look)
    dit(latents, torch.ones(2, 3), text, motion, image)
    assert max(alive) <= 2
    dit(latents, torch.ones(2, 3), text, motion, image, keys=(kept := []))
    assert alive[-1] >= 6 and len(kept) == 6


def test_attention_maps_come_one_per_layer(make_dit, clip, close):
    dit, (x, text, *_) = make_dit(), clip(3)
    with capture() as maps:
        dit(x, torch.rand(2, 3), text)
    assert [tuple(m.shape) for m in maps] == [(2, 12, 12)] * len(dit.blocks)
    close(maps[0].sum(-1), torch.ones(2, 12))


def test_time_is_told_in_cosines_first(close):
    e = sinusoid(torch.tensor([3.0]), 8)
    rates = 10_000.0 ** (-torch.arange(4) / 4)
    close(e[0], torch.cat([torch.cos(3 * rates), torch.sin(3 * rates)]))


def gated(bias: float, **changes) -> DiT:
    """A small transformer whose gates all stand at one place; its other weights are the same each time."""
    dit = DiT(replace(PRESETS["toy"].dit, pull=8, **changes))
    generator = torch.Generator().manual_seed(4)
    state = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in dit.state_dict().items()}
    dit.load_state_dict(state | {"gate.weight": torch.zeros_like(state["gate.weight"]),
                                 "gate.bias": torch.full_like(state["gate.bias"], bias)})
    return dit.requires_grad_(False)


@pytest.mark.parametrize("t, reach", [(1., 1.), (.6, 1.), (.25, .5)])
def test_an_open_gate_answers_with_what_is_carried_and_near_the_data_goes_only_part_of_the_way(close, t, reach):
    open_, shut = gated(30.), gated(-30.)
    x, text, motion = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 5, 16), torch.randn(2, 3, 16, 4, 4)
    level = torch.full((2, 3), t)
    motion[:, :, 8:12, :, 2:] = 0                                               # nothing is carried there
    plain = x - t * shut(x, level, text, motion)
    carried = motion[:, :, 8:12]
    close(x - t * open_(x, level, text, motion), plain + reach * (carried - plain) * (carried != 0), atol=1e-4)


def test_where_nothing_is_carried_an_open_gate_answers_with_the_picture_that_stands_beside_every_frame(close):
    open_ = gated(30., image_frames="every")
    x, text, motion, image = (torch.randn(1, 3, n, 4, 4) for n in (4, 16, 16, 4))
    text, motion[:, :, 8:12, :, 2:] = torch.randn(1, 5, 16), 0
    ones, still = torch.ones(1, 3), image[:, :1].expand(-1, 3, -1, -1, -1)
    carried = motion[:, :, 8:12]
    close(x - open_(x, ones, text, motion, image), torch.where(carried != 0, carried, still), atol=1e-4)
    close(x - open_(x, ones, text, None, image), still, atol=1e-4)
