"""WanTrack's teacher and student: golden tensors of the original, then the stream that plays them."""
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from msk import checkpoints, motion
from msk.attention import budget_mask, rope
from msk.cache import FrameCache
from msk.config import PRESETS, Geometry, StreamConfig, TrackConfig, VAEConfig
from msk.dit import DiT
from msk.flow import schedule, to_x0, twice_shifted
from msk.guidance import Condition, joint_guidance
from msk.kit import Kit
from msk.motion import TrackHead, splat
from msk.stream import Roll, Stream, draw, given, rollout
from msk.tinyvae import TinyVAE
from msk.tracks import Tracks

GOLDEN = Path(__file__).parent / "golden"
BASE = PRESETS["wantrack-1.3b"]
SMALL = Geometry(48, 64, fps=24)
PLANS = {"p1333": (1, 6), "p3333": (3, 5), "p4333": (4, 5)}             # latent frames in the first block, blocks


@pytest.fixture(scope="module")
def model():
    """The golden checkpoint: transformer and track head."""
    folder = GOLDEN / "trackwan_tiny/transformer"
    data, state = json.loads((folder / "config.json").read_text()), checkpoints.read(folder)
    dit = DiT(checkpoints.dit_config(data, BASE.dit)).eval().requires_grad_(False)
    checkpoints.fill_dit(dit, state)
    head = TrackHead(checkpoints.track_config(data["track_config"], state, BASE.tracks), SMALL).requires_grad_(False)
    checkpoints.fill_track_head(head, state)
    return dit, head


def tracks_of(io):
    points = io["in.track_points"] * torch.tensor([64.0, 48.0])
    return Tracks(points, io["in.track_visibility"] > 0.5, io["in.track_ids"].long())


# the original's own numbers

def test_golden_teacher(model, golden, exact):
    """52 channels, CLIP, tracks and joint guidance: a clip of five latent frames."""
    (dit, head), io = model, golden("trackwan_bidir")
    motion = head(tracks_of(io))
    exact(motion, io["track_map"].transpose(1, 2))
    image, text = io["cond20"].transpose(1, 2), io["in.text"]
    cond = Condition(text, motion, image, torch.zeros_like(text), io["in.clip"])
    exact(torch.cat([io["in.noise"], image, motion], 2), io["t1000.input52"].transpose(1, 2))
    for level, t in (("1000", 1.0), ("947.368", 18 / 19), ("500", 0.5)):
        t = torch.full((1, 5), t, dtype=torch.float64)                              # float32 would round it
        exact(dit(io["in.noise"], t, text, motion, image, clip=cond.clip), io[f"t{level}.v_full"])
        exact(dit(io["in.noise"], t, text, None, image, clip=cond.clip), io[f"t{level}.v_no_motion"])
        exact(dit(io["in.noise"], t, cond.null_text, motion, image, clip=cond.clip), io[f"t{level}.v_no_text"])
        exact(joint_guidance(dit, io["in.noise"], t, cond, 3.0, 1.5), io[f"t{level}.v_joint_wt3_wm1.5"])
        exact(joint_guidance(dit, io["in.noise"], t, cond, 3.0, 0.0), io[f"t{level}.v_textcfg_wt3"])
    t = torch.ones(1, 5)
    exact(dit(io["in.noise"], t, text, motion, image), io["t1000.v_no_clip"])    # no CLIP is zeros, embedded
    unseen = head(tracks_of(io).hide(slice(None)))                                  # biases tell two nothings apart
    exact(dit(io["in.noise"], t, text, unseen, image, clip=cond.clip), io["t1000.v_all_invisible"])


def golden_head(golden, bias):
    io = {name.removeprefix(f"{bias}."): x for name, x in golden("track_encoder").items() if name.startswith(f"{bias}.")}
    head = TrackHead(TrackConfig(hidden=16, splat="round", bias=bias == "bias", linear=True, alone=True), Geometry(40, 72))
    checkpoints.fill_track_head(head, {f"track_encoder.{k.removeprefix('weights.')}": x for k, x in io.items()
                                       if "weights" in k})
    points = io["A.points"] * torch.tensor([72.0, 40.0])
    return head.requires_grad_(False), io, Tracks(points, io["A.visibility"] > 0, io["A.ids"].long())


@pytest.fixture(autouse=True)
def rounded_as_where_the_golden_tensors_were_made(monkeypatch):
    """The last digit of exp is another on other machines, and times a large id it is seen (0.004). Of the rates of ids, the
    golden tensors know the nearest float32 to each, but of the fourth the one above it."""
    ours = motion.rates

    def rates(count, device):
        exact = (torch.arange(count) * (-math.log(10_000) / count)).double().exp().float()
        exact[3] = torch.nextafter(exact[3], torch.tensor(1.))
        assert (exact / ours(count, device).cpu() - 1).abs().max() < 3e-7
        return exact.to(device)
    monkeypatch.setattr(motion, "rates", rates)


def test_golden_ids(golden, exact):
    from msk.motion import embed_ids
    io = golden("track_encoder")
    ids = next(x for name, x in io.items() if name.startswith("id_embed.") and not x.is_floating_point())
    want = next(x for name, x in io.items() if name.startswith("id_embed.") and x.is_floating_point())
    exact(embed_ids(ids, 64), want.view(*ids.shape, 64))


@pytest.mark.parametrize("bias", ["bias", "nobias"])
def test_golden_track_encoder(golden, exact, bias):
    head, io, ours = golden_head(golden, bias)
    faint = (io["A.visibility"] > 0) & (io["A.visibility"] < 1)     # one is seen by a quarter: mix two affine maps
    mixed = lambda tracks: 0.75 * head(tracks.hide(faint)) + 0.25 * head(tracks)
    exact(mixed(ours), io["A.track_map"].transpose(1, 2))
    exact(head(ours.hide(slice(None))), io["A.track_map_all_invisible"].transpose(1, 2))
    arange = ours.with_ids(torch.arange(8)[None])
    exact(mixed(arange), io["A.track_map_default_ids"].transpose(1, 2))


@pytest.mark.parametrize("bias", ["bias", "nobias"])
def test_golden_raster(golden, exact, bias):
    """Before the convolutions: where points meet they add, those outside are at the edge, halves go to the even cell."""
    head, io, ours = golden_head(golden, bias)
    faint = (io["A.visibility"] > 0) & (io["A.visibility"] < 1)
    stamps = lambda tracks: splat(tracks, head.geometry, head.config)
    exact(0.75 * stamps(ours.hide(faint)) + 0.25 * stamps(ours), io["A.raster"].transpose(1, 2))


def test_golden_track_encoder_of_two_long_clips(golden, exact):
    head, io, _ = golden_head(golden, "bias")
    head.geometry = Geometry(32, 48)
    points = io["B.points"] * torch.tensor([48.0, 32.0])
    exact(head(Tracks(points, io["B.visibility"] > 0.5, io["B.ids"].long())), io["B.track_map"].transpose(1, 2))


@pytest.mark.parametrize("bias", ["bias", "nobias"])
def test_golden_windows_of_the_track_encoder_are_what_a_stream_encodes(golden, exact, bias):
    """A chunk's map needs its own pixel frames only: the first latent its one, the next three their twelve."""
    head, io, ours = golden_head(golden, bias)
    faint = (io["A.visibility"] > 0) & (io["A.visibility"] < 1)
    for name, (a, b) in {"A.window_0_1": (0, 1), "A.window_1_3": (1, 13)}.items():
        part, seldom = ours.frames(a, b), faint[:, a:b]
        mixed = 0.75 * head(part.hide(seldom), start=a == 0) + 0.25 * head(part, start=a == 0)
        exact(mixed, io[name].transpose(1, 2))


def cases():
    from safetensors import safe_open
    with safe_open(GOLDEN / "trackwan_causal_steps.safetensors", "pt") as file:
        return sorted({tuple(name.split(".")[:3]) for name in file.keys() if ".b0." in name})


@pytest.mark.parametrize("policy, sink, plan", cases())
def test_golden_student(model, golden, exact, policy, sink, plan):
    """Every block: two noise levels against the past, then the clean pass; and what is remembered in the end."""
    (dit, head), io = model, golden("trackwan_causal_steps")
    first, blocks = PLANS[plan]
    absolute = policy == "absolute"
    config = StreamConfig(first=first, sink=int(sink[-1]), budget=6, places="absolute" if absolute else "held")
    motion, image = head(tracks_of(io)), io["cond20"].transpose(1, 2)
    text = dit.read(io["in.text"], io["in.clip"])
    roll, case = Roll(dit, text, config), f"{policy}.{sink}.{plan}"
    cache = roll.cache
    for i in range(blocks):
        now = slice(*config.span(i))
        new = now.stop - now.start
        past, where = cache.past(new), {"places": cache.places(new)} if absolute else {}
        told = motion[:, now], given(dit, image, now)
        for level in (1000, 667):
            t = torch.full((1, new), level / 1000, dtype=torch.float64)
            exact(dit(io["in.noise"][:, now], t, text, *told, past=past, **where), io[f"{case}.b{i}.t{level}.v"])
        cache.push(dit.remember(io["in.clean"][:, now], text, *told, past=past, **where), new)
        assert io[f"{case}.b{i}.cache_idx"].tolist() == [12 * cache.made, 12 * min(cache.made, 6)]
    k, v = cache.past(0)[0]
    k = rope(k, (6, 3, 4), cache.places(0)) if absolute else k
    exact(k, io[f"{case}.final_cache_k_layer0"])
    exact(v, io[f"{case}.final_cache_v_layer0"])


def test_the_golden_condition_is_the_picture_behind_its_mask(golden):
    io = golden("trackwan_causal_steps")
    mask, latents = io["cond20"].transpose(1, 2).split([4, 16], dim=2)
    assert mask[:, 0].eq(1).all() and mask[:, 1:].eq(0).all()
    assert torch.equal(latents, io["in.first_frame_latent"].reshape(latents.shape)) or \
        torch.equal(latents, io["in.first_frame_latent"].transpose(1, 2))


# noise levels

def test_levels_of_training_and_of_the_original_app():
    thousandths = lambda levels: [round(1000 * t, 2) for t in levels]
    assert thousandths(schedule(4, 6.0)) == [1000, 947.37, 857.14, 666.67]
    assert thousandths(twice_shifted(1000, 6.0)[::250]) == [1000, 947.70, 858.36, 671.05]


def test_the_teachers_levels_are_diffusers_schedulers(close):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)
    scheduler.set_timesteps(30)
    close(torch.tensor([*twice_shifted(30, 6.0), 0.0]), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("twice, levels", [(True, twice_shifted(3, 6.0)), (False, schedule(3, 6.0))])
def test_a_teacher_is_sampled_at_the_levels_it_was_made_for(kit, monkeypatch, twice, levels):
    from msk import generate
    seen, plain = [], generate.sample

    def noted(*given, **how):
        for step in plain(*given, **how):
            seen.append(step.t)
            yield step

    monkeypatch.setattr(generate, "sample", noted)
    teacher = replace(kit, preset=replace(kit.preset, sample_steps=3, shifted_twice=twice))
    (frames,) = generate.by_teacher(teacher, "a fish", torch.rand(3, 48, 64), None, 5)
    assert frames.shape == (5, 3, 48, 64) and seen == levels
    assert PRESETS["wantrack-1.3b"].shifted_twice and not PRESETS["wan2.1-1.3b"].shifted_twice


def test_the_transformer_is_told_whole_thousandths_and_the_path_is_exact(model):
    seen, dit = [], model[0]

    class Notes(torch.nn.Module):
        config = dit.config

        def forward(self, x, t, *_, **__):
            seen.append(round(1000 * float(t[0, 0]), 4))
            return torch.zeros_like(x)

    noise = torch.randn(1, 4, 16, 6, 8)
    list(rollout(Notes(), noise, None, None, None, replace(BASE.stream, places="held")))
    assert seen == [1000, 947, 857, 666]
    app = replace(BASE.stream, first=1, levels=tuple(twice_shifted(1000, 6.0)[::250]))              # as README says
    seen.clear()
    assert next(rollout(Notes(), noise, None, None, None, app)).shape[1] == 1 and seen == [1000, 947, 858, 671]
    assert torch.equal(to_x0(noise, torch.zeros_like(noise), torch.ones(1, 4)), noise)


# memory in frames

def marked(start, frames, tokens=2):
    """Keys that say which frame they belong to."""
    index = torch.arange(start, start + frames).repeat_interleave(tokens).float()
    return [(index.view(1, -1, 1, 1), index.view(1, -1, 1, 1))]


@pytest.mark.parametrize("sink, budget, first, chunk", [(1, 6, 4, 3), (1, 6, 1, 3), (0, 6, 3, 3), (3, 12, 3, 3),
                                                        (2, 9, 1, 2), (1, 4, 3, 3), (0, 21, 3, 3)])
def test_what_is_remembered_is_what_the_mask_shows(sink, budget, first, chunk):
    config, frames = StreamConfig(first=first, chunk=chunk, sink=sink, budget=budget), 30
    mask = budget_mask(frames, 1, config)
    cache, index = FrameCache(sink, budget), 0
    while (span := config.span(index))[1] <= frames:
        new = span[1] - span[0]
        past = cache.past(new)
        held = [] if past is None else past[0][0][0, ::2, 0, 0].int().tolist()
        assert [*held, *range(*span)] == mask[span[0]].nonzero().flatten().tolist() == list(cache.places(new))
        cache.push(marked(span[0], new), new)
        index += 1


def test_memory_is_constant_and_holds_no_more_than_its_frames():
    cache, sizes = FrameCache(1, 6), []
    for i in range(50):
        cache.push(marked(3 * i, 3), 3)
        sizes.append(sum(x.untyped_storage().nbytes() for x in cache.past(0)[0]))
    assert len(set(sizes[2:])) == 1 and cache.nbytes == sizes[-1]


def test_with_absolute_places_streaming_gives_what_the_mask_gives_however_long(make_dit, clip, close):
    """A clean clip under the mask, against its chunks one after the other: far past the first eviction."""
    dit, (latents, text, motion, image) = make_dit(), clip(13)
    config = StreamConfig(first=1, chunk=3, sink=1, budget=6, places="absolute")
    t = torch.full((2, 13), 0.4)
    with torch.no_grad():
        masked = dit(latents, t, text, motion, image, mask=budget_mask(13, 4, config))
        cache, made = FrameCache(1, 6), []
        for index in range(5):
            now = slice(*config.span(index))
            new = now.stop - now.start
            told = latents[:, now], t[:, now], text, motion[:, now], image[:, now]
            past, places = cache.past(new), cache.places(new)
            made.append(dit(*told, past=past, places=places))
            cache.push(dit.trunk(*told, None, past, None, places)[-1], new)
    close(torch.cat(made, 1), masked)


def test_a_budget_that_does_not_hold_a_chunk_says_what_would():
    with pytest.raises(ValueError, match="budget of 3 latent frames does not hold 1 sinks and a chunk of 3.*use 4"):
        StreamConfig(budget=3)
    with pytest.raises(ValueError, match='"absolute" with a budget'):
        StreamConfig(places="absolute")


# the image branch

def test_early_teachers_read_257_words_through_the_image_branch(model, close):
    """And the rest as text; by hand, block by block."""
    dit = model[0]
    dit_split = DiT(replace(dit.config, text_split=True)).eval().requires_grad_(False)
    dit_split.load_state_dict(dit.state_dict())
    text = torch.randn(1, 512, 24, generator=torch.Generator().manual_seed(0))
    words = dit.text_embedding(text)
    for kvs, block in zip(dit_split.read(text), dit.blocks):
        attention = block.cross_attn
        (k, v), (k_img, v_img) = kvs
        close(k.flatten(2), attention.norm_k(attention.k(words[:, 257:])))
        close(k_img.flatten(2), attention.norm_k_img(attention.k_img(words[:, :257])))
        close(v.flatten(2), attention.v(words[:, 257:]))
        close(v_img.flatten(2), attention.v_img(words[:, :257]))
    x, t = torch.randn(1, 2, 16, 6, 8), torch.ones(1, 2)
    assert not torch.allclose(dit_split(x, t, text), dit(x, t, text))


# the stream

class Said(torch.nn.Module):
    """Features that depend on the prompt, or on the picture."""

    def __init__(self, *size):
        super().__init__()
        self.size = size

    def forward(self, told):
        seeds = [len(p) for p in told] if isinstance(told, list) else [int(1000 * x.mean()) for x in told]
        return torch.stack([torch.randn(*self.size, generator=torch.Generator().manual_seed(s)) for s in seeds])


@pytest.fixture(scope="module")
def kit(model):
    """The golden checkpoint as a kit that can stream, with a small untrained autoencoder."""
    dit, head = model
    torch.manual_seed(0)
    vae = TinyVAE(VAEConfig(encoder_width=8, decoder_widths=(16, 16, 8, 8), blocks=1, fill_end=True))
    preset = replace(BASE, geometry=SMALL, dit=dit.config, tracks=head.config)
    return Kit(dit, head, vae, Said(512, 24), preset, clip=Said(257, 20)).eval()


def handles(total):
    """Over `total` pixel frames: one dragged and let go, one pinned, one put down late and dragged at once."""
    t = torch.arange(total).float()
    xy = torch.stack([torch.stack([8 + t % 40, 12 + 0 * t], -1), torch.tensor([50.0, 30.0]).expand(total, 2),
                      torch.stack([20 + 0 * t, 8 + t % 30], -1)], 1)[None]
    visible = torch.ones(1, total, 3, dtype=torch.bool)
    visible[:, 20:, 0] = False
    visible[:, :31, 2] = False
    return Tracks(xy, visible, torch.tensor([[7, 99_000, 512]]))


@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_stream_far_past_31_latents_is_the_whole_clip_cut_in_chunks(kit, close, first):
    """Tracks encoded window by window, the condition in its steady state, the memory rolling: against one long clip."""
    config, picture = replace(kit.preset.stream, first=first, steps=1), torch.rand(3, 48, 64)
    stream, chunks = Stream(kit, "a fish", picture, seed=5, config=config), 13
    total = kit.geometry.pixel_frames(config.span(chunks)[0])
    tracks, shown, at = handles(total), [], 0
    for i in range(chunks):
        wanted = stream.frames_wanted
        assert wanted == (12 if i else 4 * first - 3)
        shown.append(stream.step(tracks.frames(at, at + wanted)))
        at += wanted
    assert config.span(chunks - 1)[1] > 31 and at == total
    motion, image = kit.motion(tracks, None), kit.encode_image(picture)
    image = torch.cat([image, image[:, -1:].expand(-1, motion.shape[1] - image.shape[1], -1, -1, -1)], 1)
    g, roll, made = torch.Generator().manual_seed(5), Roll(kit.dit, kit.dit.read(kit.text(["a fish"]), kit.clip(
        F.interpolate(picture[None], (48, 64)))), config), []
    for i in range(chunks):
        now = slice(*config.span(i))
        noise = draw(torch.empty(1, now.stop - now.start, 16, 6, 8), g)
        made.append(roll.next(noise, motion[:, now], image[:, now], generator=g))
    close(torch.cat(shown, 1), kit.vae.decode(torch.cat(made, 1))[0])


def test_a_step_costs_the_same_however_long_the_video(kit):
    """The same number of frames is encoded, attended to and remembered in every step after the window has filled."""
    stream, sizes = Stream(kit, "a fish", torch.rand(3, 48, 64)), []
    inner, counts = kit.track_head.forward, []
    kit.track_head.forward = lambda tracks, *rest: counts.append(tracks.xy.shape[1]) or inner(tracks, *rest)
    try:
        for _ in range(14):
            stream.step(Tracks.grid(kit.geometry, 16, stream.frames_wanted))
            stream.settle()
            past = stream._roll.cache.past(3)
            sizes.append((stream._roll.cache.nbytes, past[0][0].shape[1]))
    finally:
        del kit.track_head.forward
    assert len(set(sizes[1:])) == 1 and sizes[-1][1] == 3 * 12                      # sink and two frames, 12 tokens each
    assert counts == [13] + [12] * 13


def test_a_handle_put_down_late_says_from_there_on_what_it_would_say_in_a_clip(kit, close):
    total = 49
    tracks = handles(total)
    whole = kit.motion(tracks, None)
    close(kit.motion(tracks.frames(37, 49), None, start=False), whole[:, 10:13], atol=1e-6)
    empty = kit.motion(tracks.hide(slice(None)), None)
    late = kit.motion(tracks.hide(torch.tensor([True, True, False])), None)
    same = (late == empty).flatten(2).all(-1)[0]
    assert same[:8].all() and not same[9:].any()                                    # frame 31 lies in latent 8 (29 to 32)
    let_go = kit.motion(tracks.hide(torch.tensor([False, True, True])), None)
    gone = (let_go == empty).flatten(2).all(-1)[0]
    assert not gone[:5].any() and gone[6:].all()                                    # frame 20 is the last of latent 5
    pinned = kit.motion(tracks.hide(torch.tensor([True, False, True])), None)
    close(pinned[:, 1:], pinned[:, 1:2].expand_as(pinned[:, 1:]), atol=1e-6)        # it says the same in every frame


def test_silence_is_hidden_tracks_for_the_student_and_a_zero_map_for_the_teacher(kit):
    stream = lambda **changes: Stream(kit, "a fish", seed=3, config=replace(kit.preset.stream, steps=1, **changes))
    hidden = handles(13).hide(slice(None))
    assert torch.equal(stream().step(), stream().step(hidden))
    assert torch.equal(stream().step(), stream().step(Tracks.empty(1, 13)))
    assert not torch.allclose(stream(silence="zero").step(), stream().step())
    cond = kit.condition(["a fish"], handles(13), torch.rand(3, 48, 64))
    assert cond.without_motion().motion is None and cond.null_text.eq(0).all() and cond.clip.shape == (1, 257, 20)


def test_the_picture_reaches_every_chunk_through_grey_frames_and_clip(kit):
    picture = torch.rand(3, 48, 64)
    latents = kit.encode_image(picture)
    f = kit.vae.forgets
    assert latents.shape == (1, f, 20, 6, 8)
    assert latents[:, 0, :4].eq(1).all() and latents[:, 1:, :4].eq(0).all()
    assert latents[:, 1, 4:].abs().max() > 0                                        # grey is not nothing
    cut = given(kit.dit, latents, slice(f - 1, f + 2))
    assert torch.equal(cut, latents[:, -1:].expand(-1, 3, -1, -1, -1))
    assert kit.encode_clip(None) is None and kit.encode_clip(picture).shape == (1, 257, 20)


def test_a_tiny_encoder_has_forgotten_the_picture_when_it_says_so(close):
    torch.manual_seed(0)
    vae = TinyVAE(VAEConfig(encoder_width=8, decoder_widths=(8, 8, 8, 8), blocks=2, fill_end=True)).requires_grad_(False)
    frames = torch.full((1, vae.config.time_stride * (vae.forgets + 3) + 1, 3, 16, 16), 0.5)
    frames[:, 0] = torch.rand(3, 16, 16)
    latents = vae.encode(frames)
    steady = latents[:, vae.forgets - 1:]
    close(steady, steady[:, :1].expand_as(steady), atol=1e-6)
    assert not torch.allclose(latents[:, 1], latents[:, -1])
