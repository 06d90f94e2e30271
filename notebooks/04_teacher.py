# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · How does a teacher learn to follow tracks?
#
# The teacher sees a whole clip at once, with noise in it, and is told a prompt, a picture and where points go. It
# learns from clips whose tracks are known exactly, since we draw them ourselves. We take its loss apart by hand on one
# batch, train a small one for half a minute, and measure what it learned. The last picture shows three teachers on one
# held-out clip: untrained, after that half minute, and the shipped one, after hours.
#
# *Run time: about half a minute on a CPU; on a GPU not timed yet.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

# %% [markdown]
# ## Small enough to train here
#
# Sizes are data: the same transformer, for pictures of 32 x 32 pixels, with 2 layers in place of 6. Autoencoder and
# clips are those of the shipped kit; only what this notebook is about starts from nothing.

# %%
import torch

from msk import viz
from msk.train import lesson

kit = msk.load("tiny", role="teacher", dtype=torch.float32)
preset = lesson.small(kit.preset)
models = lesson.untrained(preset).to(kit.device)
for name, part in models.named_children():
    print(f"{name:10} {sum(p.numel() for p in part.parameters()):>8,} parameters")

# %% [markdown]
# Three parts learn together: the transformer (`dit`), the track head that makes a motion map of ids, and the text
# encoder. A batch holds clips as latents, some of their tracks, and their prompts.

# %%
batches = lesson.drawn_batches(preset, kit.vae, count=32, batch=8, latent_frames=6, clips=96)
batch = batches[14]
print("latents", list(batch.latents.shape), "| tracks", list(batch.tracks.xy.shape))
for b in range(4):
    print(batch.tracks.visible[b].any(0).sum().item(), "tracks |", batch.prompts[b] or "(prompt left out)")

# %%
frames = kit.vae.decode(batch.latents[:4])[0].float().cpu()
held = batch.tracks
clips = [msk.Tracks(held.xy[b:b + 1], held.visible[b:b + 1], held.ids[b:b + 1]) for b in range(4)]
viz.grid([viz.strip(viz.draw_tracks(frames[b], clips[b], radius=0.8, zoom=4, count=6)) for b in range(4)],
         [f"{batch.prompts[b] or '(prompt left out)'}" for b in range(4)])

# %% [markdown]
# ### What is left out, and why
#
# - **Prompts**, one in ten, and **all tracks**, one in ten: joint guidance (notebook 05) will ask what the teacher would
#   do without the one or the other, so it must have met that. The paper does not give its rates; these are usual ones.
# - **Most points of some clips**: people draw one handle, not a grid.
# - **All tracks for a while** (mid-frame masking; MotionStream: $p = 0.2$, in the second stage). To a motion map a hidden
#   point and a point nobody drew are the same thing, zero. Without masking, a model may take for gone whatever has no
#   track.
#
# Below, 24 tracks of the second clip as a score, one row a track (some of them begin late), then the same with a run of
# latent frames masked.

# %%
tracks = msk.Tracks(clips[1].xy[:, :, 8:32], clips[1].visible[:, :, 8:32], clips[1].ids[:, 8:32])
masked = tracks.hide(slice(5, 13))                                          # pixel frames of the latent frames 2 and 3
size = preset.geometry.height, preset.geometry.width
viz.grid([viz.score(tracks, size, "as drawn"),
          viz.score(masked, size, "masked for a while: drawn_batches(..., masking=1)")])

# %% [markdown]
# ## By hand: the loss on one batch
#
# A clip $x_0$, noise $\epsilon$ and a level $t$ give a point on a straight line; the teacher names the velocity there,
# given the text $c_t$ and the motion map $c_m$ (Sec. 3.1, App. A; notebook 03).
#
# $$\mathcal{L} = \mathbb{E}\,\big\|v_\theta(x_t, t, c_t, c_m) - (\epsilon - x_0)\big\|^2,\qquad
# x_t = (1 - t)\,x_0 + t\,\epsilon$$
#
# One level a clip, drawn evenly and shifted towards noise, where tracks decide most: $t' = k t / (1 + (k - 1) t)$.

# %%
torch.manual_seed(0)
x0, k = batch.latents, preset.stream.time_shift
t = torch.rand(len(x0), 1, device=x0.device)
t = (k * t / (1 + (k - 1) * t)).expand(-1, x0.shape[1])                     # [B, F]
noise = torch.randn_like(x0)
level = t[:, :, None, None, None]
x_t = (1 - level) * x0 + level * noise

# %%
text, motion = models.text(batch.prompts), models.track_head(batch.tracks, carried=batch.carried)
image = batch.given(preset.dit.mask_channels)                               # the first frame, and a mask that says so
velocity = models.dit(x_t, t, text, motion, image)
loss = (velocity - (noise - x0)).square().mean()
print(f"loss {loss:.3f}, of a model that says nothing: {(noise - x0).square().mean():.3f}")

# %% [markdown]
# They are equal, since a new transformer does say nothing: its last layer starts at zero. With `msk` it is one line,
# which also tells the loss of levels near data (*late*) and near noise (*early*) apart:

# %%
from msk.train.teacher import teacher_loss

torch.manual_seed(0)
same, logs = teacher_loss(models, batch, preset.stream.time_shift)
parts = {name: round(value, 2) for name, value in logs.items()}
print("by hand and teacher_loss agree:", torch.allclose(loss, same), parts)

# %% [markdown]
# ### The track head learns along, from the second step on
#
# While the last layer is zero, no gradient comes through it. The first step gives that layer a value, and then the
# track head hears. Had we set the track head to zero as well, *both* would wait for each other for good.

# %%
from msk.train.loop import Learner
from msk.train.pipeline import in_blocks

learner = Learner(models, 3e-3, ema=0.98, muon=in_blocks, muon_lr=6e-3)
heard = []
for _ in range(3):
    loss = teacher_loss(models, batch, k)[0]
    heard.append(torch.autograd.grad(loss, models.track_head.convs[0].weight, retain_graph=True)[0].norm().item())
    learner.update(loss, progress=1.0)
print("gradient in the track head at steps 1, 2, 3:", [f"{g:.1e}" for g in heard])

# %% [markdown]
# ## Before training: measure
#
# Four held-out clips of 21 frames. PSNR says how near the frames are to the true ones (higher is better), EPE how far
# points land from where they were asked to be (lower is better; here as a share of the width). Watch EPE and not the loss:
# how well points are followed does not show in it (Motion Prompting, 2412.02700, saw the same).

# %%
from msk.evaluate import run
from msk.world import HELD_OUT, World, grid_points


def measure(models):
    small = lesson.as_kit(models, preset, kit.vae)
    report = run(model=small, teacher=small, roles=("teacher",), clips=4, frames=21, grid=10, batch=4, quiet=True)
    return report["rows"]["teacher"]


models = lesson.untrained(preset).to(kit.device)
rows = {"untrained": measure(models.eval())}

# %% [markdown]
# ## Train
#
# The loop is a generator of steps, and the notebook owns the `for`. Muon, an optimizer whose every step is an orthogonal
# matrix, takes the matrices of the blocks and AdamW the rest; at the end stands the running average of the weights (EMA,
# App. D). The paper takes 4,800 steps of 128 clips on 32
# GPUs, from a model that could make videos already.

# %%
torch.manual_seed(0)
learner, losses = Learner(models.train(), 3e-3, ema=0.98, muon=in_blocks, muon_lr=6e-3), []
for step in lesson.taught(learner, lambda batch: teacher_loss(models, batch, k), batches, steps=140):
    losses.append(step.loss)
models.eval().requires_grad_(False)
title = f"velocity error, latents of unit variance, 8 clips a step, on {kit.device}"
viz.loss_curves({"teacher": losses}, title=title)

# %%
rows["after half a minute"] = measure(models)
print(f"{'':20}{'PSNR':>9}{'EPE / width':>13}   4 held-out clips, on {kit.device}")
for name, row in rows.items():
    print(f"{name:20}{row['psnr']:>6.1f} dB{row['epe_rel']:>13.3f}")
viz.bars({name: row["epe_rel"] for name, row in rows.items()}, "end-point error / width, lower is better", digits=3)

# %% [markdown]
# ### Does it follow, or only continue?
#
# The same picture, the same noise, tracks that say something else: everything goes to the right, or stays. Only the
# tracks differ. What comes after half a minute is a blur, but a blur that obeys.

# %%
from msk.motion import draw_ids

small = lesson.as_kit(models, preset, kit.vae)
clip = World(preset.geometry).sample(1, frames=21, seed=HELD_OUT + 197)
still = msk.Tracks.grid(preset.geometry, 4, 21)                             # a point every 4 pixels, over 21 frames
still = still.with_ids(draw_ids(1, still.ids.shape[1], preset.tracks.max_id, torch.Generator().manual_seed(0)))
way = torch.linspace(0, 8, 21)[None, :, None, None] * torch.tensor([1.0, 0.0])          # pixels to the right
asked = {"asked: stay": still, "asked: 8 pixels to the right": msk.Tracks(still.xy + way, still.visible, still.ids)}


# %%
def made(kit, clip, tracks, steps=6):
    cond = kit.condition(clip.captions, tracks, clip.frames[:, 0].to(kit.device))
    shape = 1, 6, kit.dit.config.latent_channels, *kit.geometry.latent_size
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kit.device)
    last = list(msk.sample(kit.dit, draw, cond, steps, kit.preset.stream.time_shift, 0, 0))[-1]     # 0, 0: no guidance
    return kit.vae.decode(last.x0)[0][0].float().cpu()


strips = [viz.strip(made(small, clip, tracks), count=6, zoom=4) for tracks in asked.values()]
viz.grid(strips, list(asked))

# %% [markdown]
# ## What hours give
#
# The same loss, a transformer of seven million parameters, pictures of 128 x 128 pixels, and clips drawn as they are
# needed, so that none is seen often. The whole run is one command, and `--resume` goes on where it was stopped:
#
# ```
# msk train teacher --preset tiny --budget 60m --out runs/tiny
# ```
#
# (with the autoencoder in `runs/tiny`, and the plate of notebook 02, if there is one: `msk train vae` first, or `msk train
# all` for everything). The result of several such runs, one after the other, travels with the package.

# %%
T = 21
large = World(kit.geometry).sample(1, frames=T, seed=HELD_OUT + 197)         # the same scene, with more pixels
tracks = large.track(grid_points(kit.geometry, 16, 16))
tracks = tracks.with_ids(draw_ids(1, 256, kit.preset.tracks.max_id, torch.Generator().manual_seed(0)))
hours = made(kit, large, tracks, kit.preset.sample_steps)
viz.grid([viz.strip(large.frames[0], count=6), viz.strip(hours, count=6)], ["true", "the shipped teacher"])

# %% [markdown]
# ## The picture
#
# One held-out clip three times, with its own tracks: a teacher that knows nothing, one of half a minute, one of hours. A
# new model answers with velocity zero, so what comes out is the noise that went in. Even after hours the model is small:
# the feelers get lost, and the wings grow ragged and take on stray colours. (These frames are as the autoencoder gives
# them. What the kit shows is finished with the given picture's own pixels: notebook 10.)

# %%
nobody = lesson.as_kit(lesson.untrained(preset).to(kit.device), preset, kit.vae)
truth = clip.track(grid_points(preset.geometry, 10, 10)).with_ids(tracks.ids[:, :100])
rows = {"true, 32 x 32 pixels": clip.frames[0], "untrained": made(nobody, clip, truth),
        "after half a minute": made(small, clip, truth)}
strips = [viz.strip(frames, count=6, zoom=4) for frames in rows.values()]
viz.grid([*strips, viz.strip(hours, count=6)], [*rows, "after hours, 128 x 128 pixels"])

# %% [markdown]
# ## Things to try
#
# 1. Train without any tracks (`none=1.0` in `drawn_batches`) and measure again. What do loss and EPE say, each?
# 2. Tracks carry the given picture along (notebook 02). Set `batch.carried` to zeros: how far do ids alone get
#    in so few steps?
# 3. Shift the levels less or more (`time_shift` 1 and 6). Look at the two parts of the loss in `step.logs`: *early* is
#    near noise, *late* near data.
# 4. Train with `masking=1.0`, then hide all tracks in mid-clip. What comes back afterwards, with masking and without?
#
# Solutions: [solutions/04_teacher.py](solutions/04_teacher.py).
