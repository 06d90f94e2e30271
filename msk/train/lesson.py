"""The stages at a size that a notebook trains in seconds: nothing on disk, counted in steps, so it comes out the same."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import cycle

import torch
from torch import nn

from ..config import Geometry, Preset
from ..dit import DiT
from ..kit import Kit
from ..motion import TrackHead
from ..text import TextEncoder
from ..tinyvae import TinyVAE
from . import ode
from .data import Batch, Pool
from .loop import Budget, Learner, Step, train
from .pipeline import condition, in_blocks
from .teacher import Teacher, teacher_loss


def small(preset: Preset, pixels: int = 32) -> Preset:
    """The preset for small square pictures: its autoencoder and track head, a transformer of some 320 thousand parameters.

    Without `pull`, so that it begins by saying nothing, as the paper's would; its scales sum to 1, which is no guidance: a
    teacher of seconds knows too little to be pushed beyond.
    """
    dit = replace(preset.dit, pull=-1, dim=96, ffn_dim=192, heads=4, layers=2, patch=(1, 1, 1), freq_dim=64)
    return replace(preset, name=f"{preset.name}-small", geometry=Geometry(pixels, pixels, fps=preset.geometry.fps), dit=dit,
                   sample_steps=6, text_scale=.5, motion_scale=.5)


def paper_layout(preset: Preset) -> Preset:
    """The preset with the given picture in the first latent frame alone and tracks that carry ids and nothing else: what a
    stream knows of its picture later on, it remembers (MotionStream, Sec. 3.1, 3.2)."""
    tracks = replace(preset.tracks, carry=0)
    dit = replace(preset.dit, image_frames="first", motion_channels=tracks.width(preset.geometry.time_stride), pull=-1)
    return replace(preset, tracks=tracks, dit=dit)


def untrained(preset: Preset, seed: int = 0, track_head: nn.Module | None = None) -> Teacher:
    """track_head: another way to show tracks, in place of the preset's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Teacher(DiT(preset.dit), track_head or TrackHead(preset.tracks, preset.geometry), TextEncoder(preset.text))


def drawn_batches(preset: Preset, vae: TinyVAE, count: int, batch: int, latent_frames: int, *, clips: int = 128,
                  seed: int = 0, **drawing) -> list[Batch]:
    """So many batches from a store of so many clips, drawn once: to be gone through again and again."""
    device = next(vae.parameters()).device
    pool = Pool(preset, vae, capacity=clips, candidates=64, frames=preset.geometry.pixel_frames(latent_frames), seed=seed,
                device=device)
    for _ in range(0, clips, 16):
        pool.grow(min(16, clips))
    generator = torch.Generator().manual_seed(seed)
    return [pool.draw(batch, latent_frames, generator, **drawing) for _ in range(count)]


def taught(learner: Learner, loss_of: Callable, batches: list, steps: int) -> Iterator[Step]:
    """`loop.train` over the same batches, round and round; at the end the module holds its running average."""
    yield from train(learner, loss_of, cycle(batches), Budget(steps=steps))
    learner.module.load_state_dict(learner.averaged())


def teach(preset: Preset, batches: list[Batch], steps: int, lr: float = 2e-3, seed: int = 0,
          track_head: nn.Module | None = None) -> Teacher:
    """The teacher's stage in one call, as notebook 04 goes through it. track_head: in place of the preset's."""
    torch.manual_seed(seed)
    models = untrained(preset, seed, track_head).to(batches[0].latents.device)
    learner = Learner(models, lr, ema=.98, muon=in_blocks, muon_lr=2 * lr)
    for _ in taught(learner, lambda batch: teacher_loss(models, batch, preset.stream.time_shift), batches, steps):
        pass
    return models.eval().requires_grad_(False)


def adapt(models: Teacher, preset: Preset, batches: list[Batch], steps: int, lr: float = 1e-3, seed: int = 0) -> DiT:
    """The causal stage in one call, as notebook 07 goes through it: trajectories of the teacher, then regression."""
    torch.manual_seed(seed)
    paths = [trajectories(models, preset, batch) for batch in batches]
    student = copy(models.dit)
    learner = Learner(student, lr, ema=.95, muon=in_blocks, muon_lr=2 * lr)
    for _ in taught(learner, lambda paths: ode.ode_loss(student, paths, preset.stream), paths, steps):
        pass
    return student.eval().requires_grad_(False)


def teach_causal(preset: Preset, batches: list[Batch], steps: int, lr: float = 3e-3, seed: int = 0) -> Teacher:
    """A causal student from nothing: the same regression with true clips on straight lines in place of a teacher's
    trajectories (`ode.straight`). It meets many sinks and windows."""
    torch.manual_seed(seed)
    models = untrained(preset, seed).to(batches[0].latents.device)
    learner = Learner(models, lr, ema=.97, muon=in_blocks, muon_lr=2 * lr)

    def loss_of(batch):
        noise = torch.randn_like(batch.latents)
        paths = ode.straight(batch.latents, condition(models, batch), preset.stream, noise)
        return ode.ode_loss(models.dit, paths, preset.stream)

    for _ in taught(learner, loss_of, batches, steps):
        pass
    return models.eval().requires_grad_(False)


def trajectories(models: Teacher, preset: Preset, batch: Batch) -> ode.Trajectories:
    """The teacher's way from fresh noise to a clip, for each of a batch."""
    return ode.trajectory(models.dit, condition(models, batch), torch.randn_like(batch.latents), preset.stream,
                          preset.sample_steps, preset.text_scale, preset.motion_scale)


def copy(dit: DiT) -> DiT:
    """The same weights, free to learn."""
    return deepcopy(dit).train().requires_grad_(True)


def as_kit(models: Teacher, preset: Preset, vae: TinyVAE, dit: DiT | None = None) -> Kit:
    """Its encoders with its transformer, or with a student of it."""
    role = "teacher" if dit is None else "student"
    return Kit(dit or models.dit, models.track_head, vae, models.text, preset, role)
