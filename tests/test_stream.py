"""The one rollout, and the stream that plays it."""
import gc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch

from msk import bench
from msk.cache import ChunkCache
from msk.config import PRESETS, StreamConfig
from msk.flow import add_noise, schedule, to_x0
from msk.kit import Kit
from msk.models import toy
from msk.stream import Roll, Stream, denoise, draw, elapsed, given, rollout
from msk.tracks import Tracks

PAIRS = StreamConfig(chunk=2)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


class Counted(torch.nn.Module):
    """A transformer that notes every pass: with gradient or without, clean or not."""

    def __init__(self, dit):
        super().__init__()
        self.dit, self.config, self.passes = dit, dit.config, []

    def forward(self, *args, **kwargs):
        self.passes.append("grad" if torch.is_grad_enabled() else "plain")
        return self.dit(*args, **kwargs)

    def placed(self, *args, **kwargs):
        return self.dit.placed(*args, **kwargs)

    def remember(self, *args, **kwargs):
        self.passes.append("clean" + ("!" if torch.is_grad_enabled() else ""))
        return self.dit.remember(*args, **kwargs)


def test_the_rollout_that_trains_is_the_rollout_that_plays(make_dit, clip, close):
    dit, (noise, text, motion, image) = make_dit(), clip(8)
    played = torch.cat(list(rollout(dit, noise, text, motion, image, PAIRS, generator=seeded())), 1)
    trained = torch.cat(list(rollout(dit, noise, text, motion, image, PAIRS, grad_at=2, generator=seeded())), 1)
    close(played, trained.detach())
    assert not played.requires_grad and trained.requires_grad


def test_the_stream_plays_the_rollout(kit, close):
    stream, chunks = Stream(kit, "a red fish", seed=5), 4
    shown = torch.cat([stream.step() for _ in range(chunks)], 1)
    g, c = torch.Generator().manual_seed(5), kit.preset.stream
    text, (h, w) = kit.encode_text(["a red fish"]), kit.geometry.latent_size
    roll, made = Roll(kit.dit, text, c), []
    for _ in range(chunks):                             # each chunk's noise is drawn when its turn comes
        noise = draw(torch.empty(1, c.chunk, kit.dit.config.latent_channels, h, w), g)
        made.append(roll.next(noise, None, None, generator=g))
    close(shown, kit.vae.decode(torch.cat(made, 1))[0])


def test_exactly_one_step_of_each_chunk_has_a_graph_and_one_clean_pass_follows(make_dit, clip):
    counted, (noise, text, motion, image) = Counted(make_dit()), clip(6)
    for _ in rollout(counted, noise, text, motion, image, PAIRS, grad_at=1):
        pass
    chunk = ["plain", "grad"]
    assert counted.passes == [*chunk, "clean", *chunk, "clean", *chunk]             # nobody asks for the last clean pass


def test_a_chunk_costs_its_steps_and_one_clean_pass(make_dit, clip):
    counted, (noise, text, motion, image) = Counted(make_dit()), clip(8)
    list(rollout(counted, noise, text, motion, image, PAIRS))
    assert counted.passes == (["plain"] * 3 + ["clean"]) * 3 + ["plain"] * 3


def test_without_clean_passes_a_chunk_is_remembered_as_its_last_step_saw_it(make_dit, clip, close):
    counted, (noise, text, motion, image) = Counted(make_dit()), clip(6)
    config = replace(PAIRS, clean=False)
    made = list(rollout(counted, noise, text, motion, image, config, generator=seeded()))
    assert counted.passes == ["plain"] * 9
    sigmas, g, cache, by_hand = schedule(PAIRS.steps, PAIRS.time_shift), seeded(), ChunkCache(PAIRS.sink, PAIRS.window), []
    for i in range(3):                                                              # the slow way: the last step twice
        now, past, x = slice(2 * i, 2 * i + 2), cache.past(), noise[:, 2 * i:2 * i + 2]
        told = text, motion[:, now], given(counted.dit, image, now)
        for k, sigma in enumerate(sigmas):
            t = torch.full(x.shape[:2], sigma)
            x0 = to_x0(x, counted.dit(x, t, *told, past=past), t)
            last, x = x, add_noise(x0, draw(x0, g), torch.full(x.shape[:2], [*sigmas, 0][k + 1])) if k < 2 else x
        by_hand.append(x0)
        cache.push(counted.dit.trunk(last, t, *told, None, past, None)[-1])
    close(torch.cat(made, 1), torch.cat(by_hand, 1))


@pytest.mark.parametrize("clean", [True, False])
def test_no_gradient_flows_through_the_past(make_dit, clip, clean):
    dit, (noise, text, motion, image) = make_dit(), clip(4)
    motion = motion.requires_grad_()
    config = replace(PAIRS, clean=clean)
    chunks = list(rollout(dit, noise, text, motion, image, config, grad_at=0 if clean else PAIRS.steps - 1))
    chunks[1].square().mean().backward()
    assert motion.grad[:, :2].abs().max() == 0 and motion.grad[:, 2:].abs().max() > 0


@pytest.mark.parametrize("grad_at", [0, 1, 2])
def test_gradients_through_the_rollout_are_the_same_with_checkpointing(make_dit, clip, close, grad_at):
    dit, (noise, text, motion, image) = make_dit(), clip(8)                         # four chunks: the cache rolls
    grads = []
    for dit.checkpoint in (False, True):
        dit.zero_grad()
        made = torch.cat(list(rollout(dit, noise, text, motion, image, PAIRS, grad_at, generator=seeded())), 1)
        made.square().mean().backward()
        grads.append([p.grad.clone() for p in dit.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 20
    for a, b in zip(*grads):
        close(a, b)


def test_the_image_is_given_to_the_first_chunk_only(make_dit, clip):
    seen = []
    dit, (noise, text, motion, image) = make_dit(), clip(6)
    inner = dit.forward

    def watched(x, t, text, motion=None, image=None, **kwargs):
        seen.append(image is not None)
        return inner(x, t, text, motion, image, **kwargs)

    dit.forward = watched
    list(rollout(dit, noise, text, motion, image[:, :1], PAIRS))
    assert seen == [True] * 3 + [False] * 6


def test_one_step_goes_straight_to_the_clean_prediction(make_dit, clip, close):
    dit, (noise, text, motion, image) = make_dit(), clip(2)
    with torch.no_grad():
        want = noise - dit(noise, torch.ones(2, 2), text, motion, image)
    close(denoise(dit, noise, text, motion, image, None, [1.0]), want)


# the stream

def test_a_chunk_in_fewer_steps_is_that_of_a_stream_with_fewer_levels(kit, close):
    levels = schedule(kit.preset.stream.steps, kit.preset.stream.time_shift)
    few = replace(kit.preset.stream, levels=(levels[0], levels[-1]))
    stream, other = Stream(kit, seed=3), Stream(kit, seed=3, config=few)
    assert (stream.steps, other.steps) == (3, 2)
    for _ in range(3):
        close(stream.step(steps=2), other.step(), 1e-6)


def test_chunks_come_in_nines_and_then_twelves(kit):
    stream = Stream(kit)
    for i, frames in enumerate((9, 12, 12)):
        assert stream.index == i and stream.frames_wanted == frames
        assert stream.step(Tracks.grid(kit.geometry, 8, frames)).shape == (1, frames, 3, 32, 32)


def test_the_same_seed_makes_the_same_video_and_another_another(kit):
    def play(seed):
        stream = Stream(kit, "snow", seed=seed)
        return torch.cat([stream.step(), stream.step()], 1)

    assert torch.equal(play(1), play(1))
    assert not torch.allclose(play(1), play(2))


def test_reset_begins_again(kit):
    stream = Stream(kit, "snow", torch.rand(3, 40, 50), seed=4)
    first = [stream.step() for _ in range(3)]
    stream.reset()
    assert stream.index == 0
    again = [stream.step() for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    stream.reset(prompt="rain", seed=9)
    assert not torch.allclose(stream.step(), first[0])


def test_on_a_gpu_time_is_taken_by_events_and_only_who_reads_it_waits(monkeypatch):
    class Event:
        asked, waited = 0, []

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            Event.asked += 1
            self.at = 7. * Event.asked

        def synchronize(self):
            Event.waited.append(self.at)

        def elapsed_time(self, later):
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    gpu = SimpleNamespace(kit=SimpleNamespace(device=torch.device("cuda")))
    began, ended = Stream._now(gpu), Stream._now(gpu)
    assert not Event.waited and elapsed(began, ended) == 7 and Event.waited == [14]
    assert elapsed(1.5, 1.75) == 250


def alive(name: str) -> list[int]:
    """Bytes of all tensors that are alive after 20 chunks, and after 60."""
    kit = bench.random_kit(PRESETS[name] if name == "toy" else toy(PRESETS[name]), torch.device("cpu"))
    stream, sizes = Stream(kit, "snow", torch.rand(3, 40, 50) if name != "longlive-1.3b" else None), []
    for chunk in range(60):
        stream.step(Tracks.grid(kit.geometry, 16, stream.frames_wanted), steps=1)
        if chunk in (19, 59):
            gc.collect()
            held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gc.get_objects()
                    if issubclass(type(x), torch.Tensor)}
            sizes.append(sum(held.values()))
    return sizes


@pytest.mark.parametrize("name", ["toy", "wantrack-1.3b", "longlive-1.3b"])
def test_nothing_grows_with_the_video(name):
    """In a process of its own, where no other test's tensors come and go."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        after_20, after_60 = alone.submit(alive, name).result()
    assert after_20 == after_60


def test_settling_early_or_late_changes_nothing_but_when(kit):
    eager, lazy = Stream(kit, seed=1), Stream(kit, seed=1)
    for _ in range(4):
        a, b = eager.step(), lazy.step()
        eager.settle()
        assert torch.equal(a, b)
    assert not eager._roll.settle() and lazy._roll.settle()
    assert set(eager.stats) == {"denoise_ms", "decode_ms", "clean_ms"}


CONFIGS = [StreamConfig(), StreamConfig(sink=1, window=2), StreamConfig(sink=2, window=1), StreamConfig(sink=0, window=2),
           StreamConfig(sink=1, budget=7), StreamConfig(sink=1, budget=9, places="absolute")]


def told_from_the_start(roll, text):
    """The judge: a new memory, that is given the remembered clean chunks with this text and knows no other."""
    fresh, last = Roll(roll.dit, text, roll.config), None
    for piece, x0, motion, image in roll._clean:
        n = [x0.shape[1]] if roll.config.budget else []
        if piece != last:
            fresh.cache.forget(piece, sinks=last is None)
        where = {"places": fresh.cache.places(*n)} if roll.config.places == "absolute" else {}
        past = fresh.cache.past(*n)
        kvs = roll.dit.remember(x0, text, motion, image, past=[] if past is None and piece else past, **where)
        fresh.cache.push(kvs, *n)
        last = piece + (n[0] if n else 1)
    return fresh.cache


def same(a, b):
    return a.held() == b.held() and all(torch.equal(x, y) for (_, p), (_, q) in zip(
        [*a._sinks, *a._recent], [*b._sinks, *b._recent]) for layer, other in zip(p, q) for x, y in zip(layer, other))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("chunks", [1, 2, 6])
def test_after_a_change_of_prompt_the_memory_is_as_if_the_new_text_had_been_there_always(kit, config, chunks):
    stream = Stream(kit, "snow", torch.rand(3, 32, 32), config=config)
    for _ in range(chunks):
        stream.step(Tracks.drag([[4, 4], [20, 20]], stream.frames_wanted))
    stream.settle()
    before, made = stream._roll.cache.held(), stream._roll.cache.made
    with torch.no_grad():
        assert chunks > 2 or same(stream._roll.cache, told_from_the_start(stream._roll, stream._read("snow")))
        assert not same(stream._roll.cache, told_from_the_start(stream._roll, stream._read("rain")))
        stream.say("rain")
        assert same(stream._roll.cache, told_from_the_start(stream._roll, stream._read("rain")))
    assert stream._roll.cache.held() == before and stream._roll.cache.made == made and stream.prompt == "rain"
    assert stream.step().isfinite().all()


def test_a_prompt_said_before_the_first_chunk_is_the_prompt(kit):
    changed = Stream(kit, "snow", seed=2)
    changed.say("rain")
    assert torch.equal(changed.step(), Stream(kit, "rain", seed=2).step())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_fresh_anchor_makes_the_latest_chunk_the_sink_and_forgets_the_rest(kit, config):
    stream = Stream(kit, "snow", config=config)
    for _ in range(5):
        stream.step()
    stream.settle()
    latest, pieces = stream._roll.cache.made, 3 if config.budget else 1
    stream.anchor()
    sinks, window = stream._roll.cache.held()
    assert sinks + window == list(range(latest - pieces, latest)) and len(sinks) == min(config.sink, pieces)
    for _ in range(4):
        assert stream.step().isfinite().all()
    assert stream.memory["sink"][:1] == sinks[:1]               # and there it stays
    with torch.no_grad():
        stream.say("rain")
        assert same(stream._roll.cache, told_from_the_start(stream._roll, stream._read("rain")))


@pytest.mark.parametrize("config", CONFIGS)
def test_an_anchor_that_is_taken_back_leaves_the_memory_as_if_there_had_been_none(kit, config):
    stream, plain = (Stream(kit, "snow", torch.rand(3, 32, 32), config=config) for _ in range(2))
    for roll in (stream, plain):
        for _ in range(5):
            roll.step()
        roll.settle()
    first = [pair for _, pair in stream._roll.cache._sinks]
    stream.anchor()
    stream.step()
    stream.anchor()                                             # two, and both go back
    for roll in (stream, stream, plain, plain, plain):
        roll.step()
    plain.settle()
    assert stream.memory != plain.memory
    with torch.no_grad():
        stream.anchor(False)
        assert stream.memory["sink"] != plain.memory["sink"] or not config.sink
        stream.anchor(False)
        cache = stream._roll.cache
        assert cache.held() == plain._roll.cache.held() and cache.made == plain._roll.cache.made
        assert all(torch.equal(x, y) for (_, a), b in zip(cache._sinks, first) for p, q in zip(a, b) for x, y in zip(p, q))
        assert same(cache, told_from_the_start(stream._roll, stream._read("snow")))
        stream.anchor(False)                                    # there is none to take back
        assert cache.held() == plain._roll.cache.held()
    assert stream.step().isfinite().all()


def test_what_a_change_of_prompt_needs_is_kept_and_no_more(kit):
    stream, counts = Stream(kit), []
    for _ in range(8):
        stream.step()
        stream.settle()
        counts.append(len(stream._roll._clean))
    assert counts == [1] + [2] * 7                              # sink 1, window 1


def test_frames_may_be_used_in_training(kit):
    frames = Stream(kit).step()
    weight = torch.ones(1, requires_grad=True)
    (frames * weight).sum().backward()
    assert not frames.requires_grad and not frames.is_inference() and weight.grad.isfinite().all()


def test_memory_is_constant_however_long_the_video(kit):
    stream, sizes = Stream(kit), []
    for _ in range(12):
        stream.step(Tracks.grid(kit.geometry, 16, stream.frames_wanted))
        stream.settle()
        sizes.append(stream._roll.cache.nbytes + sum(x.nbytes for x in stream._seen))
    assert len(set(sizes[1:])) == 1


def test_tracks_steer_and_none_asks_for_nothing(kit):
    a, b, c = (Stream(kit, seed=1) for _ in range(3))
    drawn = a.step(Tracks.drag([[4, 4], [28, 28]], 9))
    assert not torch.allclose(drawn, b.step())
    assert torch.equal(Stream(kit, seed=1).step(), c.step(Tracks.drag([[4, 4], [28, 28]], 9).hide(slice(None))))


def test_tracks_of_another_length_are_refused_in_one_sentence(kit):
    stream = Stream(kit)
    with pytest.raises(ValueError, match="12 pixel frames came where 9 were wanted"):
        stream.step(Tracks.grid(kit.geometry, 8, 12))
    assert stream.step().shape[1] == 9                  # and nothing is broken


def test_other_sinks_and_windows_stream_too(kit):
    for config in (StreamConfig(chunk=1), StreamConfig(chunk=2, sink=0, window=3), StreamConfig(sink=0, window=0, steps=1)):
        stream = Stream(kit, config=config)
        for _ in range(4):
            frames = stream.step()
        assert frames.shape[1] == 4 * config.chunk and frames.isfinite().all()


def test_a_stream_that_is_tuned_goes_on_as_one_that_was_so_from_the_start(kit, close):
    """With more window from the second chunk on, nothing has been forgotten yet that the other would know."""
    tuned, large = Stream(kit, "a fish", seed=3), Stream(kit, "a fish", seed=3, config=replace(kit.preset.stream, window=3))
    for k in range(6):
        if k == 2:
            tuned.tune(window=3)
        close(tuned.step(), large.step())
    usual = Stream(kit, "a fish", seed=3)
    for _ in range(6):
        usual.step()
    assert not torch.equal(usual.step(), tuned.step())
    tuned.tune(window=1)
    tuned.settle()
    assert len(tuned.memory["window"]) == 1 and len(tuned._roll._clean) == 2
    tuned.reset(seed=3)                                 # what was tuned stays so
    assert tuned.tuning == usual.tuning == {"sink": 1, "window": 1, "text_scale": 0.0, "motion_scale": 0.0}


@pytest.mark.parametrize("how, said", [
    (dict(window=-1), "window -1 came: use a whole number, 0 or more"), (dict(sink=1.5), "sink 1.5 came"),
    (dict(window=3, text_scale=-1.), "guidance of -1.0 for text and 0.0 for motion came"),
    (dict(sink=2, motion_scale=float("nan")), "use numbers from 0 on")])
def test_what_cannot_be_tuned_to_is_refused_and_nothing_changes(kit, how, said):
    stream, usual = Stream(kit, seed=3), Stream(kit, seed=3)
    stream.step(), usual.step()
    with pytest.raises(ValueError, match=said):
        stream.tune(**how)
    assert stream.tuning == usual.tuning and stream.config == usual.config
    assert all(torch.equal(stream.step(), usual.step()) for _ in range(3))


@pytest.mark.parametrize("window", [0, 2, -6])
def test_a_budget_that_holds_no_chunk_is_refused_and_the_stream_plays_on(window):
    kit = Kit.random(toy(PRESETS["wantrack-1.3b"]))
    stream, usual = Stream(kit, seed=3), Stream(kit, seed=3)
    stream.step(), usual.step()
    with pytest.raises(ValueError, match="budget.*came|budget of 2 latent frames does not hold.*use 4 or more"):
        stream.tune(window=window)
    assert stream.tuning == usual.tuning and torch.equal(stream.step(), usual.step())


@pytest.mark.parametrize("nothing", ["grey and blurred", None])
def test_a_guided_stream_leaves_out_the_text_as_its_teacher_does(nothing):
    """With the preset's null prompt, or zeros: as `Kit.condition` gives it to joint guidance."""
    kit = Kit.random(replace(PRESETS["toy"], null_prompt=nothing))
    stream = Stream(kit, "a fish", seed=3)
    stream.tune(text_scale=4.)
    left = kit.condition(["a fish"]).null_text
    assert torch.equal(left, torch.zeros_like(left) if nothing is None else kit.encode_text([nothing]))
    said = [x for pair in stream._roll.guided.null_text for kv in pair for x in kv]
    want = [x for pair in kit.dit.read(left) for kv in pair for x in kv]
    assert all(torch.equal(a, b) for a, b in zip(said, want, strict=True))


def test_a_budget_is_tuned_in_latent_frames():
    kit = Kit.random(toy(PRESETS["wantrack-1.3b"]))
    stream, budget = Stream(kit), kit.preset.stream.budget
    stream.tune(window=budget + 3)
    for _ in range(6 + budget // kit.preset.stream.chunk):
        stream.step()
    stream.settle()
    held = sum(len(pieces) for pieces in stream.memory.values())
    assert held == budget + 3 and stream.tuning["window"] == budget + 3


def test_guidance_of_one_or_nothing_changes_nothing_and_more_does(kit):
    streams = [Stream(kit, "a fish", seed=3) for _ in range(4)]
    for stream, text_scale in zip(streams, (None, 0.0, 1.0, 4.0)):
        stream.tune(text_scale=text_scale)
    plain, zero, one, four = (stream.step() for stream in streams)
    assert torch.equal(plain, zero) and torch.equal(plain, one) and not torch.equal(plain, four)


def test_a_picture_beside_every_frame_reaches_every_chunk_and_one_in_the_first_frame_only_the_first():
    from msk.config import DiTConfig
    from msk.dit import DiT
    shown = []

    class Notes(DiT):
        def tokens(self, latents, motion, image, past=None):
            shown.append((None if image is None else image.shape[1], past is None))
            return super().tokens(latents, motion, image, past)

    size = dict(latent_channels=4, motion_channels=0, image_channels=4, mask_channels=1, dim=32, ffn_dim=32, heads=2,
                layers=1, text_dim=8, freq_dim=16, inputs=("noise", "mask", "image"))
    noise, text, picture = torch.randn(1, 6, 4, 4, 4), torch.randn(1, 3, 8), torch.randn(1, 1, 5, 4, 4)
    for frames in ("first", "every"):
        shown.clear()
        dit = Notes(DiTConfig(image_frames=frames, **size))
        list(rollout(dit, noise, text, None, picture, StreamConfig(steps=1)))
        later = [image for image, begins in shown if not begins]
        assert later == [None if frames == "first" else 1] * len(later) and later


def test_only_the_first_frame_of_a_video_is_called_given():
    """With the picture beside every frame the mask alone says which frame it is, and a stream's later chunks have none."""
    from msk.config import DiTConfig
    from msk.dit import DiT
    torch.manual_seed(0)
    dit = DiT(DiTConfig(latent_channels=4, motion_channels=0, image_channels=4, mask_channels=1, image_frames="every",
                        dim=32, ffn_dim=32, heads=2, layers=2, text_dim=8, freq_dim=16, inputs=("noise", "mask", "image")))
    latents, picture = torch.zeros(1, 3, 4, 4, 4), torch.cat([torch.ones(1, 1, 1, 4, 4), torch.randn(1, 1, 4, 4, 4)], dim=2)
    tokens, _ = dit.tokens(latents, None, picture)
    assert torch.equal(tokens[:, 1], tokens[:, 2]) and not torch.equal(tokens[:, 0], tokens[:, 1])
    later, _ = dit.tokens(latents, None, picture, past=[])
    torch.testing.assert_close(later, tokens[:, 1:2].expand_as(later))
