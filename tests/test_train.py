"""The five stages: what each loss means, that nothing is lost on an interrupt, and that learning happens."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from msk.config import PRESETS, Geometry, StreamConfig
from msk.dit import DiT
from msk.guidance import Condition
from msk.kit import Kit
from msk.stream import rollout
from msk.tracks import Tracks
from msk.train import dmd, main, ode
from msk.train import vae as vae_stage
from msk.train.data import Batch, Pool, drawn
from msk.train.loop import Budget, Checkpoint, Learner, orthogonal, train
from msk.train.pipeline import condition, open_gates
from msk.train.teacher import teacher_loss

TOY = PRESETS["toy"]


@pytest.fixture(scope="module")
def kit():
    kit = Kit.random(TOY, seed=0)
    for p in kit.dit.parameters():
        nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(p.numel()))
    return kit


def asked(kit, frames=12, batch=2):
    g = torch.Generator().manual_seed(5)
    c = kit.dit.config
    randn = lambda *s: torch.randn(*s, generator=g)
    return Condition(randn(batch, 5, c.text_dim), randn(batch, frames, c.motion_channels, 4, 4), randn(batch, 1, 4, 4, 4),
                     randn(batch, 5, c.text_dim)), randn(batch, frames, 4, 4, 4)


# --- the loop ----------------------------------------------------------------------------------------------------------

def line(muon=False):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    y = x[:, :1] - 2 * x[:, 1:2]
    learner = Learner(module, 2e-2, ema=.9, muon=lambda name, p: muon and p.ndim == 2,
                      muon_lr=.3)
    return learner, lambda batch: ((module(x) - y).square().mean(), {})


def endless():
    while True:
        yield None


@pytest.mark.parametrize("muon", [False, True])
def test_a_learner_learns(muon):
    learner, loss_of = line(muon)
    losses = [step.loss for step in train(learner, loss_of, endless(), Budget(steps=150))]
    assert losses[-1] < .05 * losses[0]


def test_interrupted_and_resumed_training_is_training_in_one_go(tmp_path):
    whole, loss_of = line()
    for _ in train(whole, loss_of, endless(), Budget(steps=20)):
        pass
    first, loss_of = line()
    budget = Budget(steps=20)
    steps = train(first, loss_of, endless(), budget, Checkpoint(tmp_path / "a.ckpt", budget, learner=first))
    for step in steps:
        if step.index == 9:
            break
    steps.close()                                                       # as Ctrl-C does: the checkpoint is written
    second, loss_of = line()
    for p in second.params:
        nn.init.zeros_(p.data)
    budget = Budget(steps=20)
    checkpoint = Checkpoint(tmp_path / "a.ckpt", budget, learner=second)
    assert checkpoint.resume() and budget.done == 9
    for _ in train(second, loss_of, endless(), budget, checkpoint):
        pass
    for a, b in zip([*whole.params, *whole.average], [*second.params, *second.average]):
        torch.testing.assert_close(a, b)


def test_a_truncated_checkpoint_says_what_to_do(tmp_path):
    learner, _ = line()
    budget = Budget(steps=1)
    checkpoint = Checkpoint(tmp_path / "a.ckpt", budget, learner=learner)
    checkpoint.save()
    data = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="a.ckpt cannot be read.*delete it"):
        checkpoint.resume()


def test_a_loss_that_is_not_a_number_stops_training():
    learner, _ = line()
    with pytest.raises(FloatingPointError, match="nan at update 0"):
        list(train(learner, lambda b: (learner.params[0].sum() * float("nan"), {}), endless(), Budget(steps=3)))


def test_muon_steps_are_orthogonal():
    g = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(24, 60, generator=g)).float())
    assert values.min() > .5 and values.max() < 1.5


# --- what is drawn -----------------------------------------------------------------------------------------------------

def candidates(batch=64, frames=21, count=40):
    g = torch.Generator().manual_seed(1)
    xy, visible = torch.rand(batch, frames, count, 2, generator=g) * 32, torch.ones(batch, frames, count, dtype=torch.bool)
    tracks = Tracks(xy, visible, torch.arange(count).expand(batch, -1).clone())
    layer = torch.randint(0, 3, (batch, count), generator=g)
    born = torch.zeros(batch, count, dtype=torch.long)
    born[:, -8:] = 9
    return tracks, layer, born, g


def test_some_clips_have_no_tracks_some_many_and_some_a_few():
    tracks, layer, born, g = candidates()
    counts = drawn(tracks, layer, born, g).visible.any(1).sum(1)
    assert (counts == 0).any() and (counts > 24).any() and ((counts > 0) & (counts <= 20)).any()


def test_no_track_speaks_before_its_birth_and_ids_stay_with_their_tracks():
    tracks, layer, born, g = candidates()
    out = drawn(tracks, layer, born, g)
    late = out.ids >= 32                                                # the last eight candidates are born in frame 9
    assert not (out.visible[:, :9] & late[:, None]).any() and (out.visible[:, 9:] & late[:, None]).any()
    original = torch.gather(tracks.xy, 2, out.ids[:, None, :, None].expand(-1, 21, -1, 2))
    assert torch.equal(out.xy, original)


def test_masking_hides_everything_for_a_run_of_latent_frames_but_never_the_first():
    tracks, layer, born, g = candidates()
    out = drawn(tracks, layer, born.zero_(), g, dense=1., none=0., masking=1.)
    seen = out.visible.any(2)
    gone = ~torch.stack([seen[:, 1 + 4 * i: 5 + 4 * i].any(1) for i in range(5)], dim=1)
    assert seen[:, 0].all() and gone.any(1).all() and not gone.all(1).any()


def test_a_pool_renews_itself_and_hands_out_the_first_frame(kit):
    pool = Pool(TOY, kit.vae, capacity=6, candidates=24, frames=21)
    pool.grow(4)
    pool.grow(4)
    batch = pool.draw(5, 6, torch.Generator().manual_seed(0))
    assert pool.size == 6 and pool.made == 8
    assert batch.latents.shape == (5, 6, 4, 4, 4) and torch.equal(batch.given(1)[:, 0, 1:], batch.latents[:, 0])
    assert batch.tracks.xy.shape[:2] == (5, 21)


def test_clips_with_specks_in_the_air_can_be_left_out(kit):
    pool = Pool(TOY, kit.vae, capacity=24, candidates=24, frames=5, eventful=1.)
    pool.grow(24)
    g = torch.Generator().manual_seed(0)
    some, clear = pool.draw(40, 2, g), pool.draw(40, 2, g, clear=True)
    assert not some.clear.all() and some.clear.any() and clear.clear.all()
    for batch in (some, clear):
        for prompt, is_clear in zip(batch.prompts, batch.clear.tolist()):
            assert not prompt or is_clear != any(word in prompt for word in ("snow", "rain", "bubbles", "fireflies"))
    pool.clear[:] = False
    assert not pool.draw(4, 2, g, clear=True).clear.any(), "where it snows in all, some of these"


# --- the stages --------------------------------------------------------------------------------------------------------

def test_cells_that_nothing_given_foretells_weigh_more(kit):
    """Two cells that the teacher gets equally wrong: one as the tracks carry it, one not."""
    x0 = torch.zeros(1, 2, 4, 4, 4)
    carried = torch.zeros(1, 2, 20, 4, 4)
    carried[:, 1, 2:6, 0] = 1.                                          # two rows carry ones; in the second they are true
    carried[:, 1, 2:6, 1], x0[:, 1, :, 1] = 1., 1.

    class Fixed(nn.Module):
        config = replace(TOY.dit, latent_channels=4, motion_channels=20, pull=2)
        known = DiT.known

        def forward(self, x, t, text, motion, image):
            return (x - x0 - self.off) / t[..., None, None, None]

    def loss(row, moving):
        dit = Fixed()
        dit.off = torch.zeros_like(x0)
        dit.off[:, 1, :, row] = 1.
        models = SimpleNamespace(dit=dit, text=lambda prompts: None, track_head=lambda tracks, carried: carried)
        torch.manual_seed(0)
        return teacher_loss(models, Batch(x0, None, [""], carried), 1., moving)[0].item()

    assert loss(0, 0.) == pytest.approx(loss(1, 0.), rel=1e-3)
    assert loss(0, 4.) / loss(1, 4.) == pytest.approx(5., rel=1e-3)


def test_a_vae_that_starts_as_a_plain_enlargement_learns_sooner():
    from msk.tinyvae import TinyVAE
    frames = next(vae_stage.clips(TOY.geometry, 6, crop=1.))
    scores = []
    for start in (lambda vae: None, vae_stage.near_identity):
        torch.manual_seed(0)
        vae = TinyVAE(TOY.vae)
        start(vae)
        learner = Learner(vae, 1e-3, muon=lambda name, p: p.ndim == 4, muon_lr=4e-3)
        steps = train(learner, lambda b, vae=vae: vae_stage.vae_loss(vae, frames)[:2], endless(), Budget(steps=25))
        scores.append([step.logs["psnr"] for step in steps][-1])
    assert scores[1] > scores[0] + 1 and scores[1] > 15, scores


def test_a_vaes_decoder_goes_on_and_its_latents_stay_what_others_know(tmp_path):
    from msk.weights import read_weights
    Kit.random(TOY, seed=4).save(tmp_path / "kit")
    out = main("vae", TOY, 1.5, tmp_path / "run", init=tmp_path / "kit", threads=1)
    before, after = (read_weights(folder / "vae.safetensors") for folder in (tmp_path / "kit", out))
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_a_share_of_the_vaes_clips_shows_what_hands_do():
    stir = lambda **how: next(vae_stage.clips(TOY.geometry, 8, 9, seed=3, **how)).diff(dim=1).abs().mean().item()
    assert stir(hurried=1.) > 2 * stir()
    assert next(vae_stage.clips(TOY.geometry, 7, hurried=.5)).shape == (7, 5, 3, 16, 16)


def test_calibrated_latents_have_zero_mean_and_unit_variance(kit):
    batches = vae_stage.clips(TOY.geometry, 6, crop=1.)
    vae_stage.calibrate(kit.vae, batches, count=8)
    latents = torch.cat([kit.vae.encode(next(batches)) for _ in range(8)])
    assert latents.mean(dim=(0, 1, 3, 4)).abs().max() < .4
    assert (latents.std(dim=(0, 1, 3, 4)) - 1).abs().max() < .4
    kit.vae.mean.zero_()
    kit.vae.std.fill_(1)


def test_trajectories_pass_through_the_students_levels(kit):
    """The stored point at level 1 is the noise itself, and the last is the sampler's own answer."""
    cond, noise = asked(kit)
    paths = ode.trajectory(kit.dit, cond, noise, TOY.stream, 6, 3., 1.5)
    assert paths.latents.shape == (2, 4, 12, 4, 4, 4) and torch.equal(paths.latents[:, 0], noise)
    with pytest.raises(ValueError, match="7 sampler steps never visit.*multiple of 3"):
        ode.trajectory(kit.dit, cond, noise, TOY.stream, 7, 3., 1.5)


def test_where_teacher_and_critic_agree_only_the_anchor_pulls(kit):
    cond, noise = asked(kit)
    clip = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))

    def loss(anchor, clear=None):
        return dmd.student_loss(kit.dit, kit.dit, kit.dit, cond, noise, TOY.stream, text_scale=.5, motion_scale=.5,
                                generator=torch.Generator().manual_seed(6), real=clip, anchor=anchor, clear=clear)
    assert loss(0.)[0].item() < 1e-9
    pulled, logs = loss(2.)
    assert logs["off"] > .1 and abs(pulled.item() - 2 * logs["off"]) < 1e-5
    first, second = (loss(1., torch.arange(2) == k)[1]["off"] for k in range(2))
    assert first > .01 and second > .01 and abs(first + second - logs["off"]) < 1e-5, "a clip with specks is let go"
    assert loss(1., torch.zeros(2, dtype=torch.bool))[0].item() < 1e-9


def test_a_student_that_knows_the_velocity_has_no_ode_loss(kit):
    """On straight paths x_t = (1 - t) x0 + t noise, noise - x0 is the answer at every level and under every mask."""
    cond, noise = asked(kit)
    clean = torch.randn(noise.shape, generator=torch.Generator().manual_seed(9))
    levels = [1., *[s for s in (12 / 13, .75)], 0.]
    latents = torch.stack([(1 - s) * clean + s * noise for s in levels], dim=1)

    class Knows(nn.Module):
        config = kit.dit.config

        def forward(self, *args, **kwargs):
            return noise - clean

    paths = ode.straight(clean, cond, StreamConfig(), noise)
    torch.testing.assert_close(paths.latents, latents)
    assert ode.ode_loss(Knows(), paths, StreamConfig())[0] < 1e-10


def test_the_rollout_that_trains_is_the_rollout_that_plays(kit):
    cond, noise = asked(kit)
    played = torch.cat(list(rollout(kit.dit, noise, cond.text, cond.motion, cond.image, TOY.stream,
                                    generator=torch.Generator().manual_seed(4))), dim=1)
    trained = dmd.roll_out(kit.dit, cond, noise, TOY.stream, TOY.stream.steps - 1, torch.Generator().manual_seed(4))
    torch.testing.assert_close(trained.detach(), played)


def gaussian(mean):
    """The exact velocity field of data N(mean, 1): E[noise - x0 | x_t]."""
    def velocity(x_t, t):
        s = t[:, :, None, None, None]
        spread = (1 - s) ** 2 + s**2
        x0 = mean + (1 - s) / spread * (x_t - (1 - s) * mean)
        return (x_t - x0) / s
    return velocity


def test_between_two_gaussians_the_gradient_points_from_critic_to_teacher():
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(64, 3, 2, 4, 4, generator=g).requires_grad_()
    dmd.dmd_loss(x0, gaussian(2.), gaussian(0.), torch.full((64, 3), .6), torch.randn(x0.shape, generator=g)).backward()
    assert x0.grad.mean() < 0 and x0.grad.std() < .5 * x0.grad.abs().mean()     # downhill is toward the teacher's mean


def test_where_critic_and_teacher_agree_there_is_nothing_to_learn():
    x0 = torch.randn(8, 3, 2, 4, 4).requires_grad_()
    dmd.dmd_loss(x0, gaussian(1.), gaussian(1.), torch.full((8, 3), .6)).backward()
    assert x0.grad.abs().max() < 1e-7


def test_noise_levels_stay_off_both_ends_and_are_one_per_clip():
    t = dmd.noise_levels(500, 4, 6., torch.Generator().manual_seed(0), "cpu")
    assert t.min() >= .02 and t.max() <= .98 and (t == t[:, :1]).all()


def test_the_whole_pipeline_leaves_a_kit_that_streams(tmp_path):
    import msk
    out = main("all", TOY, 12., tmp_path / "toy", threads=1)
    parts = ("vae", "teacher", "causal", "student", "cutter", "plate", "finish")
    assert {"config.json", *(f"{part}.safetensors" for part in parts)} <= {
        p.name for p in out.iterdir()}
    assert (out / "previews" / "student.png").stat().st_size > 0
    rows = [json.loads(row) for row in (out / "teacher.jsonl").read_text().splitlines()] if (
        out / "teacher.jsonl").exists() else []
    assert all(row["loss"] == row["loss"] for row in rows)
    stream = msk.Stream(msk.load(out), "a red fish over the sea", torch.rand(3, 32, 32))
    assert stream.step(None).shape == (1, 9, 3, 32, 32) and stream.step(None).shape == (1, 12, 3, 32, 32)


def test_a_stage_that_was_begun_is_not_begun_again_by_mistake(tmp_path):
    main("vae", TOY, .01, tmp_path, threads=1)
    kept = (tmp_path / "vae.ckpt").read_bytes()
    with pytest.raises(ValueError, match="holds an earlier run of vae: go on with --resume, or name another folder"):
        main("all", TOY, .01, tmp_path, threads=1)
    assert (tmp_path / "vae.ckpt").read_bytes() == kept
    (tmp_path / "trajectories.part.safetensors").touch()
    with pytest.raises(ValueError, match="holds an earlier run of causal"):
        main("causal", TOY, .01, tmp_path, threads=1)


def test_resume_skips_what_is_done_and_not_what_came_with_the_kit_it_started_from(tmp_path, monkeypatch):
    from msk.train import pipeline
    for role in ("teacher", "student"):
        Kit.random(TOY, seed=4, role=role).save(tmp_path / "kit")
    ran, patience = [], ["teacher", "causal"]

    def stage(name):
        def trainer(preset, out, budget, device, **options):
            ran.append(name)
            if patience and patience[0] == name:
                patience.pop(0)
                raise KeyboardInterrupt
        return trainer

    monkeypatch.setattr(pipeline, "TRAINERS", {name: stage(name) for name in pipeline.STAGES})
    how = dict(init=tmp_path / "kit", threads=1)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            main("all", TOY, 1., tmp_path / "run", resume=resume, **how)
    main("all", TOY, 1., tmp_path / "run", resume=True, **how)
    assert ran == ["cutter", "plate", "teacher", "teacher", "causal", "causal", "distill", "finish"]
    assert not (tmp_path / "run" / "student.safetensors").exists(), "an old student would not fit a new track head"


def test_trajectories_that_were_made_are_kept_when_interrupted(tmp_path, monkeypatch):
    from msk.train import ode, pipeline
    from msk.weights import read_weights
    Kit.random(TOY, seed=4, role="teacher").save(tmp_path)
    sample, made = ode.trajectory, []

    def impatient(*order):
        made.append(order)
        if len(made) == 3:
            raise KeyboardInterrupt
        return sample(*order)

    monkeypatch.setattr(pipeline.ode, "trajectory", impatient)
    again = lambda: pipeline.train_causal(TOY, tmp_path, Budget(steps=1), torch.device("cpu"), clips=6, batch=2)
    with pytest.raises(KeyboardInterrupt):
        again()
    kept = read_weights(tmp_path / "trajectories.part.safetensors")["latents"]
    assert len(kept) == 4
    again()
    whole = read_weights(tmp_path / "trajectories.safetensors")["latents"]
    assert torch.equal(whole[:4], kept) and len(whole) == 6 and not (tmp_path / "trajectories.part.safetensors").exists()
    assert not any(torch.equal(whole[4 + i], kept[i]) for i in range(2)), "other clips than those that were there"


def test_a_gradient_that_is_not_finite_touches_no_weight():
    module = torch.nn.Linear(2, 1, bias=False)
    learner, before = Learner(module, 1.), module.weight.detach().clone()
    loss = (module(torch.zeros(1, 2)) * 0).sqrt().sum() * 1e0                       # finite, with a slope that is not
    with pytest.raises(FloatingPointError, match="gradient became nan"):
        learner.update(loss, .5)
    assert torch.equal(module.weight, before) and module.weight.grad is None


def test_more_clips_than_a_store_holds_are_refused():
    pool = Pool(TOY, Kit.random(TOY).vae, capacity=4, frames=9)
    with pytest.raises(ValueError, match="5 clips do not fit into a store of 4"):
        pool.grow(5)


def test_presets_without_a_text_encoder_cannot_be_trained_here():
    with pytest.raises(ValueError, match="wan2.1-1.3b has no text encoder"):
        main("vae", "wan2.1-1.3b", 1.)


def test_a_teacher_starts_with_heads_that_look_for_the_same_id():
    """Of all tokens of the first frame, the one a point came from is looked at far more often than by chance."""
    from msk.attention import rope
    from msk.train.teacher import Teacher, seek_ids
    preset = replace(PRESETS["tiny"], geometry=Geometry(96, 96))
    kit = Kit.random(preset, seed=1)
    models = Teacher(kit.dit, kit.track_head, kit.text)
    g = torch.Generator().manual_seed(3)
    start = torch.rand(4, 1, 12, 2, generator=g) * 64 + 8
    way = (torch.rand(4, 1, 12, 2, generator=g) - .5) * 40
    xy = (start + way * torch.linspace(0, 1, 9)[None, :, None, None]).clamp(1, 95)
    ids = torch.stack([torch.randperm(16384, generator=g)[:12] for _ in range(4)])
    tracks = Tracks(xy, torch.ones(4, 9, 12, dtype=torch.bool), ids)
    seek_ids(models, tracks)
    seen = {}
    kit.dit.blocks[0].self_attn.register_forward_hook(lambda module, args, out: seen.update(x=args[0], grid=args[1]))
    latents = torch.randn(4, 3, 12, 12, 12, generator=g)
    picture = torch.cat([torch.ones(4, 1, 1, 12, 12), torch.randn(4, 1, 12, 12, 12, generator=g)], dim=2)
    kit.dit(latents, torch.full((4, 3), .8), models.text([""] * 4), models.track_head(tracks), picture)
    attention = kit.dit.blocks[0].self_attn
    q, k = rope(attention.query(seen["x"]), seen["grid"]), rope(attention.keys(seen["x"])[0], seen["grid"])
    scores = torch.einsum("blhd,bmhd->bhlm", q, k)[:, :2]                       # the two heads that were set
    token = lambda p: (p[..., 1] // 16).long() * 6 + (p[..., 0] // 16).long()
    source, now = token(xy[:, 0]), token(xy[:, -1]) + 2 * 36
    far = token(xy[:, 0]) != token(xy[:, -1])
    first = torch.gather(scores, 2, now[:, None, :, None].expand(-1, 2, -1, scores.shape[-1]))[..., :36]
    found = (first.argmax(-1) == source[:, None]).float().mean(1)[far].mean()
    assert found > .3, found                                                    # one in 36 by chance


def test_training_goes_on_from_a_kit(tmp_path):
    for role in ("teacher", "student"):
        Kit.random(TOY, seed=4, role=role).save(tmp_path / "kit")
    out = main("teacher", TOY, .01, tmp_path / "run", init=tmp_path / "kit", threads=1, size=48)
    from msk.weights import read_weights
    before, after = (read_weights(folder / "teacher.safetensors") for folder in (tmp_path / "kit", out))
    moved = max((before[n] - after[n]).abs().max().item() for n in before)
    assert 0 < moved < .05                                              # a step or two away, not another model
    assert torch.equal(read_weights(out / "vae.safetensors")["encoder.0.weight"],
                       read_weights(tmp_path / "kit" / "vae.safetensors")["encoder.0.weight"])
    geometry = json.loads((out / "config.json").read_text())["geometry"]        # at another size, with the same weights
    assert (geometry["height"], geometry["width"]) == (48, 48) and TOY.geometry.height == 32
    with pytest.raises(ValueError, match="40 pixels are not whole tokens of 16: use 32 or 48"):
        main("teacher", TOY, .01, tmp_path / "other", size=40)


# --- lessons -----------------------------------------------------------------------------------------------------------

def lesson_kit():
    from msk.train import lesson
    preset = lesson.small(replace(TOY, stream=StreamConfig(time_shift=3.)))
    vae = Kit.random(TOY, seed=0).vae
    return lesson, preset, vae, lesson.drawn_batches(preset, vae, count=3, batch=4, latent_frames=12, clips=8)


def test_a_lesson_goes_from_clips_to_a_student_and_comes_out_the_same():
    lesson, preset, vae, batches = lesson_kit()
    made = []
    for _ in range(2):
        models = lesson.teach(preset, batches, steps=4)
        made.append((models, lesson.adapt(models, preset, batches, steps=3)))
    (models, student), (again, twin) = made
    assert all(torch.equal(a, b) for a, b in zip(models.parameters(), again.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), twin.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), models.dit.parameters()))
    assert lesson.as_kit(models, preset, vae).role == "teacher"
    assert lesson.as_kit(models, preset, vae, student).dit is student


def test_in_the_papers_layout_only_memory_knows_the_picture():
    """Where nothing is remembered, another picture changes nothing after the first chunk; through a sink it does."""
    lesson, preset, vae, _ = lesson_kit()
    bare = lesson.paper_layout(preset)
    assert bare.dit.image_frames == "first" and bare.tracks.carry == 0 and bare.dit.pull < 0
    batches = lesson.drawn_batches(bare, vae, count=2, batch=4, latent_frames=12, clips=8)
    models = lesson.teach_causal(bare, batches, steps=3)
    with torch.no_grad():
        models.dit.head.head.weight.normal_(std=.1)
    batch = batches[0]
    cond = condition(models, batch)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))

    def last(image, sink):
        config = replace(bare.stream, sink=sink, window=0)
        return list(rollout(models.dit, noise, cond.text, cond.motion, image, config,
                            generator=torch.Generator().manual_seed(1)))[-1]

    assert torch.equal(last(cond.image, 0), last(-cond.image, 0))
    assert not torch.equal(last(cond.image, 1), last(-cond.image, 1))


def test_a_lesson_ends_with_the_running_average():
    lesson, preset, _, batches = lesson_kit()
    models = lesson.untrained(preset)
    learner = Learner(models, 1e-3, ema=.9)
    steps = list(lesson.taught(learner, lambda batch: (models.dit.head.head.weight.sum(), {}), batches, 5))
    assert len(steps) == 5
    assert all(torch.equal(p, a) for p, a in zip(learner.params, learner.average))


def test_gates_open_as_long_as_whole_paths_come_nearer_to_the_truth():
    dit = nn.Module()
    dit.gate = nn.Linear(3, 4)
    nn.init.zeros_(dit.gate.bias)
    ideal = torch.tensor([3., -1.])                             # carried: three steps up; the picture: none
    answer = lambda: dit.gate.bias.view(2, 2).mean(0) * torch.ones(5, 2)
    assert open_gates(dit, answer, ideal.expand(5, 2)) == [3, 0]
    assert dit.gate.bias.tolist() == [3., 0., 3., 0.]
    nn.init.zeros_(dit.gate.bias)
    assert open_gates(dit, answer, 100 * torch.ones(5, 2), most=4) == [4, 4]
