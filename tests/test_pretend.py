"""What runs on a GPU, on a pretended one (`tests.pretend`): the real paths with real numbers, and no device mixed up."""
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from msk import bench, cuts, evaluate, fast, generate, hands, host, offload, trackers, video, words
from msk.carry import inpaint, warp
from msk.cli import main as msk
from msk.config import PRESETS
from msk.kit import Kit, load
from msk.live.record import read_session
from msk.live.replay import replay
from msk.live.session import Session
from msk.live.widget import knowing
from msk.models import toy
from msk.stream import Stream
from msk.tracks import Tracks
from msk.train import main, pipeline
from msk.train import vae as vae_stage
from msk.world import World, grid_points
from tests import pretend

TOY = PRESETS["toy"]
PULLED = replace(TOY, dit=replace(TOY.dit, pull=TOY.tracks.channels), sample_steps=2)       # with gates, as tiny has
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))


@pytest.fixture(autouse=True)
def nothing_kept():
    """What is kept for a device was made on the pretended one."""
    yield
    host.rates.cache_clear()
    from msk import attention
    attention.turns.cache_clear()
    attention._chosen.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A kit with teacher and student that move things."""
    place = tmp_path_factory.mktemp("kit")
    for role in ("teacher", "student"):
        kit = Kit.random(TOY, seed=0, role=role)
        nn.init.normal_(kit.dit.head.head.weight, std=.1, generator=torch.Generator().manual_seed(2))
        kit.save(place)
    return place


@pytest.fixture
def gpu():
    with pretend.gpu() as card:
        yield card


def dragged(kit, stream, at):
    return bench.drag(kit, at, stream.frames_wanted, torch.arange(9)[None])


# --- the pretence ------------------------------------------------------------------------------------------------------

def test_what_cuda_refuses_is_refused(gpu):
    there, here, at = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor([0, 2])
    for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: torch.where(there > 0, there, here),
                  lambda: here[at.to("cuda")], lambda: there.numpy(), lambda: np.asarray(there), lambda: there.pin_memory(),
                  lambda: torch.randn(3, generator=torch.Generator(), device="cuda"), lambda: at.cuda() @ at.cuda(),
                  lambda: nn.Linear(3, 3)(there), lambda: here.add_(there.sum())):
        with pytest.raises((pretend.Refused, TypeError)):
            wrong()
    made = there + torch.tensor(1.), there[at], torch.tensor([1], device="cuda"), there.new_zeros(1)
    assert all(x.is_cuda for x in made)
    assert torch.equal(there.cpu(), here) and not here.is_cuda and not there.cpu().is_cuda


def test_gradients_and_optimizers_stay_on_the_gpu(gpu):
    model = nn.Linear(3, 2).to("cuda")
    learner = torch.optim.AdamW(model.parameters(), foreach=True)
    (model(torch.ones(4, 3).to("cuda")).cpu().sum() * 2).backward()
    learner.step()
    assert all(p.is_cuda and p.grad.is_cuda and learner.state[p]["exp_avg"].is_cuda for p in model.parameters())


def test_who_does_not_wait_for_a_copy_is_caught():
    with pytest.raises(pretend.Refused, match="read before it is there"), pretend.gpu():
        torch.ones(3, device="cuda").to("cpu", non_blocking=True).numpy()
    with pytest.raises(pretend.Refused, match="was written before the GPU had read it"), pretend.gpu():
        x = torch.ones(3).pin_memory()
        there = x.to("cuda", non_blocking=True)
        x.zero_()
        there.cpu()


# --- training ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def soon(monkeypatch):
    """The least of what every stage draws before it begins."""
    batches = dict(vae=2, teacher=8, causal=2, distill=2, cutter=2, plate=2, finish=2)
    more = dict(teacher=dict(warm_pool=8, capacity=16), causal=dict(clips=2), distill=dict(ratio=1), finish=dict(clips=1))
    monkeypatch.setattr(pipeline, "ON_GPU", {name: dict(batch=n, **more.get(name, {})) for name, n in batches.items()})
    monkeypatch.setattr(pipeline, "see", partial(pipeline.see, warm=16))
    monkeypatch.setattr(pipeline, "fill_pool", lambda pool, count: pool.grow(4))
    monkeypatch.setattr(pipeline, "settle", partial(pipeline.settle, clips=2))
    monkeypatch.setattr(pipeline, "open_gates", partial(pipeline.open_gates, most=1))
    monkeypatch.setattr(vae_stage, "calibrate", partial(vae_stage.calibrate, count=2))
    monkeypatch.setattr(pipeline, "LATENT_FRAMES", 6)


def test_every_stage_learns_and_goes_on(tmp_path, soon, gpu):
    main("all", PULLED, 1e-3, tmp_path, device="cuda", threads=1)
    kit = load(tmp_path, device="cuda")
    assert kit.device == pretend.CUDA and kit.dtype == torch.bfloat16 and kit.plate is not None
    for stage in ("teacher", "plate"):
        saved = torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)
        (tmp_path / f"{stage}.done").unlink()
        pipeline.TRAINERS[stage](PULLED, tmp_path, pipeline.Budget(steps=saved["done"] + 1), pretend.CUDA,
                                 **pipeline.ON_GPU[stage])
        assert torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)["done"] == saved["done"] + 1


def test_a_gpu_is_asked_for_more_clips_in_the_same_operations(tmp_path, gpu):
    """Launches are what training on a GPU waits for: drawing tracks and carrying the picture takes no more of them."""
    Kit.random(PULLED, seed=0).save(tmp_path)
    pool = pipeline.make_pool(PULLED, tmp_path, "cuda", capacity=8, seed=3)
    pool.grow(8)

    def asked(count):
        before, waited = gpu.asked, len(gpu.waits)
        pool.draw(count, 3, torch.Generator().manual_seed(0), dense=.3, masking=.5)
        return gpu.asked - before, len(gpu.waits) - waited

    asked(2)                                                    # fills what is kept
    few, many = asked(2), asked(8)
    assert few == many and few[0] > 500


def test_clips_are_carried_together_there_and_one_by_one_on_a_cpu(gpu, close):
    world, g = World(TOY.geometry, "full"), torch.Generator().manual_seed(2)
    clip = world.sample(4, 13, seed=5)
    tracks = clip.track(grid_points(TOY.geometry, 8, 8, 4, jitter=.9, generator=g))
    tracks.visible[1, :, 9:] = False                                            # a few points, and in one clip none
    tracks.visible[2] = False
    here = warp(tracks, clip.frames[:, 0], 24.)
    for one, other in zip(here, warp(tracks.to("cuda"), clip.frames[:, 0].to("cuda"), 24.)):
        close(one, other.cpu(), atol=1e-5)
    assert (here[0][:, -1] - clip.frames[:, 0]).abs().amax(dim=(1, 2, 3)).ge(.1).tolist()[:2] == [True, True]


def test_the_gpus_own_dice_go_on_where_they_were(tmp_path, gpu, monkeypatch):
    from msk.train.loop import Budget, Checkpoint
    at = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [at[0].clone()])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: at.__setitem__(device, state))
    checkpoint = Checkpoint(tmp_path / "a.ckpt", Budget(steps=1))
    checkpoint.save()
    at[0] = torch.zeros(16, dtype=torch.uint8)
    assert checkpoint.resume() and torch.equal(at[0], torch.arange(16, dtype=torch.uint8))


# --- playing -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("capability, dtype", [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_a_stream_plays_and_waits_for_nothing(folder, capability, dtype):
    """What tracks carry, on the plate, finished; another prompt, anchors and guidance while it plays."""
    with pretend.gpu(capability) as gpu:
        kit, at = load(folder, device="cuda"), 0
        assert (kit.device, kit.dtype) == (pretend.CUDA, dtype) and kit.plate and kit.finish
        stream = Stream(kit, "a fish", PICTURE)
        for chunk in range(3):
            before = len(gpu.waits)
            frames = stream.step(dragged(kit, stream, at))
            assert chunk == 0 or gpu.waits[before:] == [], "the first fills what is kept"
            assert frames.is_cuda and frames.isfinite().all()
            at += frames.shape[1]
            stream.settle()
        assert set(stream.stats) >= {"denoise_ms", "decode_ms"}
        stream.say("snow")
        stream.anchor()
        stream.tune(sink=2, text_scale=2., motion_scale=1.5)
        stream.step(dragged(kit, stream, at).to("cuda"))
        stream.anchor(False)
        stream.reset("a boat", PICTURE, 3)
        assert host.fetch(stream.step()).numpy().shape == (1, 9, 3, 32, 32)


def test_it_plays_what_a_cpu_plays(folder):
    def played(device):
        kit, at, made = load(folder, device=device, dtype=torch.float32), 0, []
        kit.plate = inpaint
        stream = Stream(kit, "a fish", PICTURE, seed=5)
        for _ in range(2):
            made.append(stream.step(dragged(kit, stream, at)).cpu())
            at += made[-1].shape[1]
        return torch.cat(made, dim=1)

    with pretend.gpu():
        there = played("cuda")
    torch.testing.assert_close(there, played("cpu"), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["wantrack-1.3b", "wan2.2-5b", "longlive-1.3b", "wan2.1-i2v-14b"])
def test_wans_sizes_play(name, gpu):
    kit, at = bench.random_kit(toy(PRESETS[name]), pretend.CUDA), 0
    stream = Stream(kit, "a fish", PICTURE if bench.takes_picture(kit) else None)
    for _ in range(2):
        frames = stream.step(dragged(kit, stream, at))
        at += frames.shape[1]
    assert frames.is_cuda


def test_blocks_that_wait_and_the_fast_path_play_too(gpu):
    preset = toy(PRESETS["wan2.1-1.3b"])
    preset = replace(preset, dit=replace(preset.dit, layers=4))
    kit = offload.lend(bench.random_kit(preset, pretend.CPU), 3, pretend.CUDA, torch.bfloat16)
    assert kit.dit.blocks.home[0][0].is_pinned() and Stream(kit, "a fish").step().is_cuda
    kit = bench.random_kit(preset, pretend.CUDA)
    assert "sdpa" in fast.prepare(kit, None)["attention_ms"]
    assert Stream(kit, "a fish").step().is_cuda


def test_the_canvas_plays_on_it_and_the_session_is_played_again(folder, gpu, tmp_path):
    kit = load(folder, device="cuda")
    session = Session(lambda prompt, image, seed: Stream(kit, prompt, image, seed=seed), kit.geometry, name=kit.name,
                      folder=tmp_path, **knowing(kit))
    shown, told = [], []
    session.on_frame, session.on_event = shown.append, told.append
    try:
        session.open(PICTURE, "a fish", 3)
        for deed in ({"type": "add", "id": 1, "x": .4, "y": .4}, {"type": "look", "on": True}, {"type": "gaze", "on": True}):
            session.hear(deed)
        session.start()
        end = time.monotonic() + 300           # a loaded machine may take its time
        while sum(not frame.still for frame in shown) < 22 and time.monotonic() < end:
            assert session.state != "failed", told
            time.sleep(.02)
        session.stop()
    finally:
        session.close()
    assert {"map", "gaze", "chunk"} <= {word["type"] for word in told}
    kept = read_session(next(tmp_path.glob("**/*.json")))
    assert all(frames.is_cuda for frames in replay(kit, kept))


# --- what is measured, and the commands --------------------------------------------------------------------------------

def test_a_teacher_samples(folder, gpu):
    kit = load(folder, "teacher", device="cuda")
    kit.preset = kit.preset.sampled(2, None)
    chunks = list(generate.by_teacher(kit, "a fish", PICTURE, Tracks.drag([[10, 10], [20, 20]], 9), 9, 0))
    assert sum(map(len, chunks)) == 9


def test_bench_measures(folder, gpu):
    made = bench.run(load(folder, device="cuda"), chunks=10, warmup=1, quiet=True)
    assert made["device"] == "a pretend GPU" and made["fps"] > 0


def test_the_suites_measure(folder, gpu):
    kit = load(folder, device="cuda")
    assert evaluate.run("world", kit, 1, roles=("student", "tracker"), frames=9, quiet=True)["rows"]["student"]["n"] == 1
    assert words.run(kit, 1, events=("snow",), frames=9, quiet=True)["rows"]["snow"]["n"] == 1
    assert cuts.run(kit, 1, quiet=True)["rows"]
    assert hands.run(kit, 1, cases=("drag",), frames=9, whole=True, quiet=True)["rows"]


def test_points_are_followed(gpu):
    frames, queries = torch.rand(1, 3, 3, 48, 48, device="cuda"), torch.rand(1, 5, 2, device="cuda") * 40
    assert all(trackers.track(frames, queries, method).xy.is_cuda for method in ("flow", "dis"))


def test_a_clip_is_written(folder, gpu, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    Tracks.drag([[10, 10], [20, 20]], 21).save(tmp_path / "a.npz")
    msk(["generate", "--model", str(folder), "--device", "cuda", "--image", str(tmp_path / "a.png"), "--prompt", "a fish",
         "--tracks", str(tmp_path / "a.npz"), "--whole", "--out", str(tmp_path / "a.mp4")])
    assert len(video.read(tmp_path / "a.mp4")[0]) == 21
