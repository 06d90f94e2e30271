# %% [markdown]
# # 04 · Teacher: solutions

# %%
from dataclasses import replace

import torch

import msk
from msk import viz
from msk.evaluate import run
from msk.train import lesson
from msk.train.loop import Learner
from msk.train.pipeline import in_blocks
from msk.train.teacher import teacher_loss

kit = msk.load("tiny", role="teacher", dtype=torch.float32)
preset = lesson.small(kit.preset)
k = preset.stream.time_shift


def measure(models):
    small = lesson.as_kit(models, preset, kit.vae)
    row = run(model=small, teacher=small, roles=("teacher",), clips=6, frames=21, grid=10, batch=6, quiet=True)
    return row["rows"]["teacher"]


def batches(**drawing):
    return lesson.drawn_batches(preset, kit.vae, count=32, batch=8, latent_frames=6, **drawing)


def trained(batches, shift=k, steps=90):
    torch.manual_seed(0)
    models, logs = lesson.untrained(preset).to(kit.device), []
    learner = Learner(models, 3e-3, ema=0.98, muon=in_blocks, muon_lr=6e-3)
    for step in lesson.taught(learner, lambda batch: teacher_loss(models, batch, shift), batches, steps):
        logs.append({"loss": step.loss} | step.logs)
    return models.eval().requires_grad_(False), logs


mean = lambda logs, name: sum(row[name] for row in logs[-40:] if name in row) / sum(name in row for row in logs[-40:])

# %% [markdown]
# 1. The loss is only a little higher without tracks: most of it is about noise and background. EPE tells the two apart: who
#    was never told where things go can only guess.

# %%
usual = batches()
for name, drawn in {"with tracks": usual, "without": batches(none=1.0)}.items():
    models, logs = trained(drawn)
    row = measure(models)
    print(f"{name:12} loss {mean(logs, 'loss'):.3f}, EPE / width {row['epe_rel']:.3f}, {row['psnr']:.1f} dB")
    if name == "with tracks":
        carrying = models

# %% [markdown]
# 2. In so few steps ids alone get next to nowhere: that two cells with equal ids belong together is something attention
#    has to find out, and it does so late and all at once.

# %%
models, logs = trained([replace(batch, carried=torch.zeros_like(batch.carried)) for batch in usual])
print(f"ids alone: loss {mean(logs, 'loss'):.3f}; with what tracks carry: above")

# %% [markdown]
# 3. Losses at different shifts do not compare: within each part a larger shift crowds the levels towards noise, where the
#    loss is lower. What compares is what they make, and there a few steps' difference is small.

# %%
for shift in (1.0, 6.0):
    models, logs = trained(usual, shift)
    row = measure(models)
    print(f"shift {shift:g}: early {mean(logs, 'early'):.3f}, late {mean(logs, 'late'):.3f}, "
          f"EPE / width {row['epe_rel']:.3f}, {row['psnr']:.1f} dB")

# %% [markdown]
# 4. The teacher that met masks is a little better while tracks are hidden, and has learned a little less about following:
#    it saw fewer tracks. Nothing vanishes for either, since here the given picture stands beside every frame.

# %%
from msk.evaluate import psnr
from msk.world import HELD_OUT, World, grid_points

masking, _ = trained(batches(masking=1.0))
clip = World(preset.geometry).sample(8, frames=21, seed=HELD_OUT + 40)
tracks = clip.track(grid_points(preset.geometry, 8, 8, 8)).hide(slice(9, 13))
start = torch.randn(8, 6, 12, 4, 4, generator=torch.Generator().manual_seed(0)).to(kit.device)
lines = {}
for name, models in {"without masking": carrying, "with masking": masking}.items():
    cond = lesson.as_kit(models, preset, kit.vae).condition(clip.captions, tracks, clip.frames[:, 0].to(kit.device))
    made = kit.vae.decode(list(msk.sample(models.dit, start, cond, 6, k, 0, 0))[-1].x0)[0].float().cpu()
    lines[name] = psnr(made, clip.frames).mean(0)
    print(f"{name:16} hidden frames {lines[name][9:13].mean():.2f} dB, after them {lines[name][13:].mean():.2f} dB")
viz.curves(lines, "pixel frame", "PSNR against the truth, dB", "no tracks in frames 9 to 12", {"hidden": 9, "back": 13})
