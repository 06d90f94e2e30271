"""The seven stages in order, from nothing to a kit: `msk train all --preset tiny --budget 60m`.

Every stage reads what the stages before it left in the folder and leaves safetensors of its own, so any one can be done
again alone. Checkpoints are written whole or not at all; Ctrl-C loses nothing, `resume` goes on.
"""
from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..carry import Split, carry, inpaint
from ..config import Preset
from ..cutter import Cutter
from ..dit import DiT
from ..finish import Finish
from ..guidance import Condition
from ..kit import LATE, Kit, best_device, best_dtype, fill, known, late, read_weights, save_weights, write_whole
from ..motion import TrackHead
from ..sample import options, sample
from ..text import TextEncoder
from ..tinyvae import TinyVAE
from ..world import HELD_OUT, World, grid_points
from . import cutter as cutter_stage
from . import dmd, ode
from . import finish as finish_stage
from . import plate as plate_stage
from . import vae as vae_stage
from .data import Batch, Pool
from .loop import Budget, Checkpoint, Learner, Step, autocast, train
from .teacher import Teacher, seek_ids, teacher_loss

STAGES = ("vae", "cutter", "plate", "teacher", "causal", "distill", "finish")
SHARE = {"vae": .22, "cutter": .06, "plate": .06, "teacher": .36, "causal": .10, "distill": .13, "finish": .07}   # of "all"
HURRIED = 0.5                   # of the VAE's clips: a world that moves calmly never shows it what a hand does
EVENTFUL = 0.6                  # of the clips, once tracks are followed, have an event: what is left is what no track says
LATENT_FRAMES = 12              # a training clip: four chunks, so that with one sink and one window chunk eviction happens


class Journal:
    """One JSON line every `every` steps, under a progress bar."""

    def __init__(self, path: Path, title: str, every: int = 20):
        self.path, self.every, self.began = path, every, time.monotonic()
        self.bar = tqdm(total=100, desc=title,
                        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}")
        self.sums: dict[str, float] = {}
        self.count = 0

    def note(self, step) -> None:
        self.count += 1
        for name, value in ({"loss": step.loss} | step.logs).items():
            self.sums[name] = self.sums.get(name, 0.) + value
        if self.count == self.every:
            row = {"step": step.index, "progress": round(step.progress, 4)} | {
                n: round(v / self.count, 5) for n, v in self.sums.items()}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.bar.set_postfix({n: f"{v:.4g}" for n, v in list(row.items())[2:6]} | {"step": step.index}, refresh=False)
            self.bar.update(100 * step.progress - self.bar.n)
            self.sums, self.count = {}, 0

    def close(self) -> None:
        self.bar.close()


def train_vae(preset: Preset, out: Path, budget: Budget, device, batch: int = 24, lr: float = 1e-3, init: Path | None = None
              ) -> None:
    """From nothing; or, from the VAE of a kit, its decoder alone: of the latents others know already."""
    torch.manual_seed(0)
    vae = TinyVAE(preset.vae).to(device, memory_format=torch.channels_last)
    if init is None:
        vae_stage.near_identity(vae)
    else:
        fill(vae, read_weights(init / "vae.safetensors"), str(init / "vae.safetensors"))
        vae.encoder.requires_grad_(False)
        lr = lr / 4
    critic = vae_stage.PatchCritic().to(device)
    learner = Learner(vae, lr, ema=0.998, floor=0.03, muon=lambda name, p: p.ndim == 4, muon_lr=4 * lr)
    critic_learner = Learner(critic, 4e-4, betas=(0.5, 0.99), ema=0.)
    checkpoint = Checkpoint(out / "vae.ckpt", budget, vae=learner, critic=critic_learner)
    checkpoint.resume()
    frames = 5 if init is None else 9
    batches = vae_stage.clips(preset.geometry, batch, frames, hurried=HURRIED, seed=budget.done, device=device)
    sharpen = 0.75 if init is None else 1           # from here on the patch critic joins

    def loss_of(frames):
        late = budget.progress > sharpen
        critic.requires_grad_(False)
        loss, logs, decoded = vae_stage.vae_loss(vae, frames, 0.10 if init is None else 0.05, critic if late else None, 0.01,
                                                 calibrated=init is not None)
        if late:
            critic.requires_grad_(True)
            judged = vae_stage.critic_loss(critic, frames, decoded)
            critic_learner.update(judged, 0.5)
            logs["critic"] = judged.item()
        return loss, logs

    run(out, "vae", train(learner, loss_of, batches, budget, checkpoint))
    vae.load_state_dict(learner.averaged())
    if init is None:
        with autocast(device):
            vae_stage.calibrate(vae, vae_stage.clips(preset.geometry, 4, frames=21, crop=1., seed=500_000, device=device))
    save_weights(vae.state_dict(), out / "vae.safetensors")


# --- what the later stages share --------------------------------------------------------------------------------------

def load_vae(preset: Preset, out: Path, device) -> TinyVAE:
    vae = TinyVAE(preset.vae).eval().requires_grad_(False)
    fill(vae, read_weights(out / "vae.safetensors"), str(out / "vae.safetensors"))
    return vae.to(device, memory_format=torch.channels_last)


def load_teacher(preset: Preset, out: Path, device) -> Teacher:
    models = Teacher(DiT(preset.dit), TrackHead(preset.tracks, preset.geometry), TextEncoder(preset.text))
    for name, module in (("teacher", models.dit), ("track_head", models.track_head), ("text", models.text)):
        fill(module, read_weights(out / f"{name}.safetensors"), str(out / f"{name}.safetensors"))
    return models.eval().requires_grad_(False).to(device)


def load_late(part: str, preset: Preset, out: Path, device) -> nn.Module | None:
    """A part that models can do without, if it lies there."""
    path = out / f"{part}.safetensors"
    if not path.exists():
        return None
    module = late(preset)[part].eval().requires_grad_(False)
    fill(module, read_weights(path), str(path))
    return module.to(device)


def load_dit(preset: Preset, path: Path, device) -> DiT:
    dit = DiT(preset.dit)
    fill(dit, read_weights(path), str(path))
    return dit.to(device)


def load_split(preset: Preset, out: Path, device) -> Split:
    """The plate that lies there, as the models will be shown what is carried by it; without one, an even patch."""
    return load_late("plate", preset, out, device) or inpaint


def make_pool(preset: Preset, out: Path, device, **options) -> Pool:
    return Pool(preset, load_vae(preset, out, device), load_split(preset, out, device), device=device, **options)


@torch.no_grad()
def condition(models: Teacher, batch: Batch) -> Condition:
    """A batch as the models are asked to follow it; the encoders are frozen by now."""
    text, null = models.text(batch.prompts), models.text([""] * len(batch.prompts))
    motion = models.track_head(batch.tracks, carried=batch.carried)
    return Condition(text, motion, batch.given(models.dit.config.mask_channels), null)


@torch.no_grad()
def preview(preset: Preset, out: Path, models: Teacher, student: DiT | None, name: str, device, level: str) -> None:
    """Film strips of four held-out clips: the truth above, what the model makes of the first frame and the tracks below."""
    from PIL import Image
    vae, geometry = load_vae(preset, out, device), preset.geometry
    clip = World(geometry, level).sample(4, geometry.pixel_frames(LATENT_FRAMES), seed=HELD_OUT + 77, device=device)
    rows = int(geometry.height // geometry.stride)
    tracks = clip.track(grid_points(geometry, rows, rows, 4, device=device))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(preset.tracks.max_id, generator=generator)[:tracks.ids.shape[1]].expand(4, -1).to(device)
    with autocast(device):
        latents = vae.encode(clip.frames).float()
        split = load_split(preset, out, device)
        carried = carry(tracks, clip.frames[:, 0], vae.encode_alone, geometry, split=split) if preset.tracks.carry else None
        cond = condition(models, Batch(latents, tracks.with_ids(ids), clip.captions, carried))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        if student is None:
            *_, last = sample(models.dit, noise, cond, **options(preset))
            latents = last.x0
        else:
            latents = dmd.roll_out(student, cond, noise, preset.stream, preset.stream.steps - 1, generator)
        made = vae.decode(latents.float())[0]
    shown = range(0, clip.frames.shape[1], 6)
    strips = [torch.cat([film[b, t] for t in shown], dim=-1) for b in range(4) for film in (clip.frames, made)]
    picture = (torch.cat(strips, dim=1).permute(1, 2, 0).float().cpu() * 255).round().byte().numpy()
    (out / "previews").mkdir(exist_ok=True)
    Image.fromarray(picture).save(out / "previews" / f"{name}.png")


# --- teacher, student, and what stands beside them ---------------------------------------------------------------------

def in_blocks(name: str, p: Tensor) -> bool:
    """The matrices of the transformer's blocks: those that Muon turns."""
    return p.ndim == 2 and "blocks." in name


def train_teacher(preset: Preset, out: Path, budget: Budget, device, *, level: str = "calm", batch: int = 24,
                  lr: float = 1e-3, warm_pool: int = 384, capacity: int = 6144, init: Path | None = None) -> None:
    """Rectified flow: short clips first (motion is learnt on them just as well, at half the price), then whole ones; the
    last quarter with mid-frame masking, as the paper's second stage.

    From the teacher of a kit: its gates begin less open than they were left, and more is asked of what no track says.
    """
    torch.manual_seed(1)
    if init is not None:
        models = load_teacher(preset, init, device).train().requires_grad_(True)
        if preset.dit.pull >= 0:
            models.dit.gate.bias.data -= 2
    else:
        models = Teacher(DiT(preset.dit), TrackHead(preset.tracks, preset.geometry), TextEncoder(preset.text)).to(device)
    learner = Learner(models, lr, ema=0.9985, decay_from=0.55, muon=in_blocks, muon_lr=2 * lr)
    checkpoint = Checkpoint(out / "teacher.ckpt", budget, models=learner)
    resumed = checkpoint.resume()
    pool = make_pool(preset, out, device, capacity=capacity, level=level, eventful=init and EVENTFUL, seed=budget.done)
    fill_pool(pool, warm_pool)
    if not resumed and init is None:
        seek_ids(models, pool.draw(8, LATENT_FRAMES // 2, torch.Generator().manual_seed(0), dense=1., none=0.).tracks)
        learner.restart()

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(budget.done)
        while True:
            whole = budget.progress > .7
            pool.grow(batch // 12 if whole else batch // 8)
            yield pool.draw(batch // 2 if whole else batch, LATENT_FRAMES if whole else LATENT_FRAMES // 2, generator,
                            dense=.5 if budget.progress > .4 else .7, masking=.2 if budget.progress > .75 else 0.)

    def loss_of(drawn: Batch) -> tuple[Tensor, dict]:
        moving = 0. if budget.progress > .7 else .5 if init is None else 4.
        return teacher_loss(models, drawn, preset.stream.time_shift, moving)

    run(out, "teacher", train(learner, loss_of, batches(), budget, checkpoint))
    models.load_state_dict(learner.averaged())
    models.eval().requires_grad_(False)
    settle(models.dit, models, preset, out, device, level, student=False)
    for name, module in (("teacher", models.dit), ("track_head", models.track_head), ("text", models.text)):
        save_weights(module.state_dict(), out / f"{name}.safetensors")
    preview(preset, out, models, None, "teacher", device, level)


def train_causal(preset: Preset, out: Path, budget: Budget, device, *, level: str = "calm", clips: int = 768,
                 batch: int = 12, lr: float = 4e-4, real: float = .5) -> None:
    """At most two fifths of the time for trajectories of the guided teacher, the rest for regression under causal masks.

    An interrupt keeps the trajectories that are made. real: share of batches that are real clips on straight lines to noise,
    beside the teacher's trajectories; without specks in the air, which only a path from this very noise can tell of.
    """
    torch.manual_seed(2)
    models, path = load_teacher(preset, out, device), out / "trajectories.safetensors"
    if not path.exists():
        part = path.with_suffix(".part.safetensors")
        store = [ode.Trajectories(**read_weights(part))] if part.exists() else []
        made, began = sum(len(s.latents) for s in store), time.monotonic()
        torch.manual_seed(2 + made)
        pool = make_pool(preset, out, device, capacity=max(64, 4 * batch), level=level, eventful=EVENTFUL, seed=11 + made)
        generator, steps = torch.Generator().manual_seed(2 + made), 4 * preset.stream.steps
        limit = budget.seconds * .4 if budget.seconds else float("inf")
        try:
            with tqdm(total=clips, initial=made, desc="trajectories", unit="clip") as bar:
                while bar.n < clips and (not store or time.monotonic() - began < limit):
                    pool.grow(batch)
                    with autocast(device), torch.no_grad():
                        drawn = pool.draw(batch, LATENT_FRAMES, generator, none=.05)
                        cond = condition(models, drawn)
                        paths = ode.trajectory(models.dit, cond, torch.randn_like(drawn.latents), preset.stream, steps,
                                               preset.text_scale, preset.motion_scale)
                    store.append(ode.Trajectories(*(z.cpu().half() for z in paths.tensors().values())))
                    bar.update(batch)
        finally:
            if store:
                save_weights({name: torch.cat([s.tensors()[name] for s in store]) for name in store[0].tensors()}, part)
        part.replace(path)
        budget.spent += time.monotonic() - began
    paths = ode.Trajectories(**read_weights(path))
    student = load_dit(preset, out / "teacher.safetensors", device)
    learner = Learner(student, lr, ema=0.995, decay_from=0.5, muon=in_blocks, muon_lr=2 * lr)
    checkpoint = Checkpoint(out / "causal.ckpt", budget, student=learner)
    checkpoint.resume()
    pool = make_pool(preset, out, device, capacity=2048, level=level, seed=12 + budget.done)
    fill_pool(pool, max(64, 4 * batch))

    def batches() -> Iterator[ode.Trajectories]:
        generator, taught = torch.Generator().manual_seed(budget.done), ode.shuffled(paths, batch, device, seed=budget.done)
        clips = pool.batches(batch, LATENT_FRAMES, fresh=max(2, batch // 6), seed=budget.done, none=.05, clear=True)
        while True:
            if torch.rand((), generator=generator) < real:
                drawn = next(clips)
                yield ode.straight(drawn.latents, condition(models, drawn), preset.stream, torch.randn_like(drawn.latents))
            else:
                yield next(taught)

    run(out, "causal", train(learner, lambda b: ode.ode_loss(student, b, preset.stream), batches(), budget, checkpoint))
    student.load_state_dict(learner.averaged())
    settle(student, models, preset, out, device, level, student=True)
    save_weights(student.state_dict(), out / "causal.safetensors")
    preview(preset, out, models, student.eval(), "causal", device, level)


def train_distill(preset: Preset, out: Path, budget: Budget, device, *, level: str = "calm", batch: int = 8,
                  lr: float = 5e-5, critic_lr: float = 1e-4, ratio: int = 5, anchor: float = 1.) -> None:
    """Five critic updates, then one of the student, over and over; the student's running average is what is shipped.

    anchor: see `dmd.student_loss`.
    """
    torch.manual_seed(3)
    models = load_teacher(preset, out, device)
    student, critic = (load_dit(preset, out / f"{name}.safetensors", device) for name in ("causal", "teacher"))
    settings = dict(betas=(0., 0.999), clip=10., warmup=0.02, decay_from=.7)
    student_learner = Learner(student, lr, ema=.98, **settings)
    critic_learner = Learner(critic, critic_lr, ema=0., **settings)
    checkpoint = Checkpoint(out / "distill.ckpt", budget, student=student_learner, critic=critic_learner)
    checkpoint.resume()
    pool = make_pool(preset, out, device, capacity=512, level=level, eventful=EVENTFUL, seed=23 + budget.done)
    fill_pool(pool, max(64, 4 * batch))
    asked = pool.batches(batch, LATENT_FRAMES, fresh=max(2, batch // 4), seed=budget.done, none=.05, masking=.2)

    def cycle(_) -> tuple[Tensor, dict]:
        student.requires_grad_(False)
        lag = 0.
        for _ in range(ratio):
            loss, _logs = dmd.critic_loss(critic, student, *prompted()[:2], preset.stream)
            critic_learner.update(loss, budget.progress)
            lag += loss.item() / ratio
        student.requires_grad_(True)
        cond, noise, drawn = prompted()
        loss, logs = dmd.student_loss(student, models.dit, critic, cond, noise, preset.stream, text_scale=preset.text_scale,
                                      motion_scale=preset.motion_scale, real=drawn.latents, anchor=anchor,
                                      clear=drawn.clear)
        return loss, logs | {"critic": lag}

    def prompted() -> tuple[Condition, Tensor, Batch]:
        batch = next(asked)
        return condition(models, batch), torch.randn_like(batch.latents), batch

    run(out, "distill", train(student_learner, cycle, iter(lambda: None, 0), budget, checkpoint), every=5)
    student.load_state_dict(student_learner.averaged())
    settle(student, models, preset, out, device, level, student=True)
    save_weights(student.state_dict(), out / "student.safetensors")
    preview(preset, out, models, student.eval(), "student", device, level)


def train_finish(preset: Preset, out: Path, budget: Budget, device, *, level: str = "calm", batch: int = 32,
                 lr: float = 2e-3, clips: int = 16, every: int = 25, init: Path | None = None) -> None:
    """The last touch, on the student's own clips: new ones all the time, one for `every` batches of crops.

    Before the first batch `clips` are streamed, or as many as two fifths of the budget leave time for.
    """
    torch.manual_seed(4)
    models, student = load_teacher(preset, out, device), load_dit(preset, out / "student.safetensors", device)
    held = {part: load_late(part, preset, out, device) for part in ("cutter", "plate")}
    kit = Kit(student, models.track_head, load_vae(preset, out, device), models.text, preset, **held)
    kit = deepcopy(kit).eval().to(device, best_dtype(device))
    finish = Finish(preset.finish).to(device, memory_format=torch.channels_last)
    if init is not None and (init / "finish.safetensors").exists():
        fill(finish, read_weights(init / "finish.safetensors"), str(init / "finish.safetensors"))
        lr = lr / 4
    learner = Learner(finish, lr, ema=0.998, decay_from=0.5)
    checkpoint = Checkpoint(out / "finish.ckpt", budget, finish=learner)
    checkpoint.resume()
    store = finish_stage.Store(kit, level, seed=37 + budget.done)
    began, limit = time.monotonic(), budget.seconds * .4 if budget.seconds else float("inf")
    for _ in tqdm(range(clips if budget.progress < 1 else 0), desc="streaming clips", leave=False):
        store.grow()
        if time.monotonic() - began > limit:
            break
    run(out, "finish", train(learner, lambda drawn: finish_stage.finish_loss(finish, *drawn),
                             store.batches(batch, every, seed=budget.done), budget, checkpoint))
    finish.load_state_dict(learner.averaged())
    save_weights(finish.state_dict(), out / "finish.safetensors")


def train_cutter(preset: Preset, out: Path, budget: Budget, device, *, batch: int = 24, lr: float = 3e-3, fresh: int = 4,
                 init: Path | None = None) -> None:
    """What lies under a point, in pictures of scenes calm and wild."""
    height, width = Cutter(preset.cutter).size(preset.geometry.height, preset.geometry.width)
    geometry = replace(preset.geometry, height=height, width=width)
    see("cutter", preset, out, budget, device, lambda seed: cutter_stage.Store(geometry, seed=seed, device=device),
        cutter_stage.cutter_loss, batch, lr, fresh, init)


def train_plate(preset: Preset, out: Path, budget: Budget, device, *, batch: int = 16, lr: float = 2e-3, fresh: int = 4,
                init: Path | None = None) -> None:
    """What is beneath what moves, in the same pictures."""
    see("plate", preset, out, budget, device, lambda seed: plate_stage.Store(preset.geometry, seed=seed, device=device),
        plate_stage.plate_loss, batch, lr, fresh, init)


def see(part: str, preset: Preset, out: Path, budget: Budget, device, open_store: Callable, loss_of: Callable, batch: int,
        lr: float, fresh: int, init: Path | None, warm: int = 256) -> None:
    """One of the two that look at pictures alone, from nothing or from a kit; open_store(seed): what it is taught from."""
    torch.manual_seed(5)
    module = late(preset)[part].to(device, memory_format=torch.channels_last)
    if init is not None and (init / f"{part}.safetensors").exists():
        fill(module, read_weights(init / f"{part}.safetensors"), str(init / f"{part}.safetensors"))
        lr = lr / 4
    learner = Learner(module, lr, ema=0.995, decay_from=0.4, muon=lambda name, p: p.ndim == 4, muon_lr=2 * lr)
    checkpoint = Checkpoint(out / f"{part}.ckpt", budget, **{part: learner})
    checkpoint.resume()
    store = open_store(47 + budget.done)
    for _ in tqdm(range(0, warm if budget.progress < 1 else 0, 16), desc="drawing pictures", leave=False):
        store.grow(16)
    run(out, part, train(learner, lambda drawn: loss_of(module, *drawn), store.batches(batch, fresh, seed=budget.done),
                         budget, checkpoint))
    module.load_state_dict(learner.averaged())
    save_weights(module.state_dict(), out / f"{part}.safetensors")


@torch.no_grad()
def open_gates(dit: DiT, answer: Callable[[], Tensor], truth: Tensor, most: int = 6) -> list[int]:
    """Open each of the two gates of `DiT.pulled` as far as whole paths from noise to data ask for; returns by how much.

    Trained on single steps from true x_t, gates stop too early: what the transformer itself adds is off by a little, and
    from step to step, chunk to chunk, that adds up. answer() makes videos with `dit`, from the same noise each time; a
    gate's bias goes up in ones as long as they come nearer to `truth`.
    """
    opened = []
    for bias in (dit.gate.bias[which::2] for which in range(2)):
        best, by = F.mse_loss(answer(), truth), 0
        while by < most:
            bias += 1
            error = F.mse_loss(answer(), truth)
            if error >= best:
                bias -= 1
                break
            best, by = error, by + 1
        opened.append(by)
    return opened


def settle(dit: DiT, models: Teacher, preset: Preset, out: Path, device, level: str, student: bool, clips: int = 8) -> None:
    """`open_gates` for a dit that has some: on real clips, about half of them with all their tracks, and without events,
    of which nothing given says when and where."""
    if dit.config.pull < 0:
        return
    pool = make_pool(preset, out, device, capacity=clips, level=level, eventful=0., seed=41)
    pool.grow(clips)
    batch = pool.draw(clips, LATENT_FRAMES, torch.Generator().manual_seed(7), dense=.5, none=0.)
    cond, noise = condition(models, batch), torch.randn_like(batch.latents)

    def answer() -> Tensor:
        if student:
            again = torch.Generator().manual_seed(8)
            x0 = dmd.roll_out(dit, cond, noise, preset.stream, preset.stream.steps - 1, again)
        else:
            *_, last = sample(dit, noise, cond, **options(preset))
            x0 = last.x0
        return pool.vae.decode(x0.float())[0]

    with autocast(noise.device):
        carried, still = open_gates(dit, answer, pool.vae.decode(batch.latents)[0])
    tqdm.write(f"gates opened by {carried} (towards what is carried) and {still} (towards the picture)")


def fill_pool(pool: Pool, count: int) -> None:
    at_once = 8 if pool.device.type == "cpu" else 64
    for _ in tqdm(range(0, count, at_once), desc="rendering clips", unit="batch", leave=False):
        pool.grow(at_once)


def run(out: Path, title: str, steps: Iterator[Step], every: int = 20) -> None:
    journal = Journal(out / f"{title}.jsonl", title, every)
    try:
        for step in steps:
            journal.note(step)
    finally:
        steps.close()
        journal.close()


# On a GPU the launches cost more than the arithmetic: larger batches, and a store that holds them.
ON_GPU = {"vae": dict(batch=192), "cutter": dict(batch=96), "plate": dict(batch=96),
          "teacher": dict(batch=256, warm_pool=4096, capacity=32768), "causal": dict(clips=4096, batch=128),
          "distill": dict(batch=64), "finish": dict(batch=256, clips=256)}
TRAINERS = {"vae": train_vae, "cutter": train_cutter, "plate": train_plate, "teacher": train_teacher, "causal": train_causal,
            "distill": train_distill, "finish": train_finish}
READS = {"vae": (), "teacher": ("vae",), "causal": ("vae", "teacher", "track_head", "text"),
         "distill": ("vae", "teacher", "track_head", "text", "causal"),
         **dict.fromkeys(LATE, ("vae", "teacher", "track_head", "text", "student"))}


def main(stage: str = "all", preset: str | Preset = "tiny", budget: float = 3600., out: str | Path = "runs/tiny", *,
         resume: bool = False, device: str | torch.device | None = None, threads: int | None = None,
         level: str = "calm", init: str | Path | None = None, size: int | None = None) -> Path:
    """Train one stage or all of them for `budget` seconds; the folder `out` becomes a kit that `msk.load(out)` opens.

    resume: go on from the checkpoints in `out`, and with "all" skip the stages that are done; without it a folder in which
    a stage was begun is refused. level: see `World`. init: a kit folder to start from: its parts stand in for stages that
    were not run here, the teacher goes on from it, and so does a VAE's decoder; "all" keeps the VAE.
    size: rows and columns of pixels, in place of the preset's; weights of another size fit, as nothing in them counts cells.
    """
    if stage not in (*STAGES, "all"):
        raise ValueError(f"stage {stage!r} is not known: use {', '.join(STAGES)} or all")
    preset = known(preset) if isinstance(preset, str) else preset
    if size is not None:
        token = preset.geometry.stride * preset.dit.patch[1]
        if size % token:
            raise ValueError(f"{size} pixels are not whole tokens of {token}: use {max(1, size // token) * token} or "
                             f"{(size // token + 1) * token}")
        preset = replace(preset, geometry=replace(preset.geometry, height=size, width=size))
    if preset.text is None:
        raise ValueError(f"{preset.name} has no text encoder that could be trained here: use tiny or toy")
    out, device = Path(out), torch.device(device) if device is not None else best_device()
    stages = (stage,) if stage != "all" else STAGES if init is None else STAGES[1:]
    if stage in LATE and not getattr(preset, stage):
        raise ValueError(f"{preset.name} has no {stage} to be trained: leave this stage out")
    stages = tuple(name for name in stages if name not in LATE or getattr(preset, name))
    begun = [name for name in stages if any(out.glob(f"{name}.ckpt"))
             or name == "causal" and any(out.glob("trajectories*.safetensors"))]         # perhaps of another teacher
    if begun and not resume:
        raise ValueError(f"{out} holds an earlier run of {', '.join(begun)}: go on with --resume, or name another folder "
                         "with --out")
    out.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    keep_memory()
    if init is not None:
        needed = READS["teacher" if stage == "all" else stage]
        for part in (*(needed or ("teacher", "student", "track_head", "text")), *LATE):                  # to be a kit
            source = Path(init) / f"{part}.safetensors"
            if source.exists() and not (out / source.name).exists():
                save_weights({n: w.float() for n, w in read_weights(source).items()}, out / source.name)
    for name in stages:
        done = out / f"{name}.done"                     # weights alone do not say so: they may have come with `init`
        if resume and stage == "all" and done.exists():
            continue
        done.unlink(missing_ok=True)
        seconds = budget * SHARE[name] / sum(SHARE[s] for s in stages)
        options = {} if name in ("vae", "cutter", "plate") else {"level": level}
        options |= ON_GPU[name] if device.type == "cuda" else {}
        options |= {"init": Path(init)} if init is not None and name in ("vae", "teacher", *LATE) else {}
        TRAINERS[name](preset, out, Budget(seconds=seconds), device, **options)
        done.touch()
    write_whole(out / "config.json", json.dumps(preset.to_dict(), indent=2).encode() + b"\n")
    return out


def keep_memory() -> None:
    """Ask glibc to keep freed blocks: handing every large tensor back to the system costs a third of the time on CPU."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-4, 0)):     # mmap threshold, trim threshold, mmaps
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass                                                                    # not glibc: nothing to ask
