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
# # 08 · Why train on your own mistakes?
#
# A causal student (notebook 07) has learned from the teacher's chunks, but when it plays it builds on its own, and
# answers doubt with a blur. Two ideas mend that. *Self Forcing*: train on the very rollouts that will be played.
# *Distribution matching* (DMD): there is no right answer for a clip the student made up, so ask two models in which
# direction it should have gone. We do each by hand, in the plane and in one dimension, then both on clips. The last
# picture is the error over the chunks of a long stream, before and after.
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
# ## By hand: a past of one's own
#
# The smallest stream: points that go round in a circle, seen with a little noise, and a student that makes each from the
# one before, $x_{k+1} = x_k\,A$. First the way of notebook 07: the past is always true. Least squares gives the best
# single step, and from noisy places that is one a bit too small.

# %%
import torch

from msk import viz

g = torch.Generator().manual_seed(0)
angle = torch.rand(300, 1, generator=g) * 2 * torch.pi + torch.arange(25) * 0.25    # 300 clips of 25 frames
seen = torch.stack([angle.cos(), angle.sin()], dim=-1) + 0.2 * torch.randn(300, 25, 2, generator=g)
A = torch.linalg.lstsq(seen[:, :-1].flatten(0, 1), seen[:, 1:].flatten(0, 1)).solution      # x_k A is x_{k+1}


# %% [markdown]
# Each step errs by little, always inwards, and whoever builds on its own steps spirals to the middle. Then the way of Self
# Forcing: let it play, and train on what came out, all 25 frames of it. A step that shrinks now costs more with each frame.


# %%
def play(A, frames=25):
    path = [seen[:, 0]]
    for _ in range(frames - 1):
        path.append(path[-1] @ A)                                           # its own last place, not the true one
    return torch.stack(path, dim=1)                                         # [clips, frames, 2]


own = A.clone().requires_grad_()
optimizer = torch.optim.Adam([own], 3e-3)
for _ in range(200):
    loss = (play(own) - seen).square().mean()
    optimizer.zero_grad(), loss.backward(), optimizer.step()

# %%
ways = {"true past, as trained": torch.cat([seen[:, :1], seen[:, :-1] @ A], dim=1), "own past, as played": play(A),
        "trained on its own past": play(own).detach()}
viz.plane({name: [way[:15].flatten(0, 1), way[:15].movedim(1, 0)] for name, way in ways.items()}, limit=1.8)

# %%
off = lambda way: (way - seen).square().mean(dim=(0, 2)).sqrt()
viz.curves({name: off(way) for name, way in ways.items()}, "frame", "distance from the clip",
           "24 frames on: small steps add up, unless they are trained together")

# %% [markdown]
# ## By hand: two Gaussians
#
# The student makes points $x$ around -1.5; the teacher's world is centred at 1.5 and wider. For both, the best guess of
# the data behind a noisy point is known, so two functions can stand for two trained models: the *teacher* knows the
# data, the *critic* knows what the student makes.
#
# $$\mathbb{E}[x_0 \mid x_t] = m + \frac{(1-t)\,s^2}{(1-t)^2 s^2 + t^2}\,\big(x_t - (1-t)\,m\big)$$


# %%
def best(x_t, t, m, s):
    return m + (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2) * (x_t - (1 - t) * m)


# %% [markdown]
# Add noise to what the student made, ask both for their guess $\hat x_0$ of the data, and subtract (Eq. 3; DMD,
# 2311.18828, Eq. 7):
#
# $$g = \hat x_0^{\,critic}(x_t) - \hat x_0^{\,teacher}(x_t),\qquad x \leftarrow x - \eta\,g$$
#
# It is the gradient of the KL divergence between the two distributions, up to a factor that depends on $t$ alone. With
# $t$ small the two models only compare near places; with $t$ near 1 all the student learns is the way to the other mean.

# %%
g = torch.Generator().manual_seed(0)
teacher_is, x = (1.5, 0.8), -1.5 + 0.4 * torch.randn(4000, generator=g)
places = torch.linspace(-3, 3, 61)
pull = lambda t: best(places, t, 1.5, 0.8) - best(places, t, -1.5, 0.4)     # down the gradient: from critic to teacher
viz.curves({f"t = {t}": (places, pull(t)) for t in (0.2, 0.5, 0.8)}, "x_t", "step down the gradient",
           "teacher's guess minus critic's: it points to the teacher's side", {"student": -1.5, "teacher": 1.5})

# %%
stations = {"0 steps": x}
for i in range(1, 61):
    t = 0.02 + 0.96 * torch.rand(4000, generator=g)
    x_t = (1 - t) * x + t * torch.randn(4000, generator=g)
    fake, real = best(x_t, t, x.mean(), x.std()), best(x_t, t, *teacher_is)         # a critic that is never behind
    x = x - 0.1 * (fake - real)
    if i in (10, 30, 60):
        stations[f"{i} steps"] = x

# %%
bins = torch.linspace(-4, 4, 41)
shares = lambda points: torch.histogram(points, bins)[0] / len(points)
middles = (bins[1:] + bins[:-1]) / 2
wanted = 1.5 + 0.8 * torch.randn(4000, generator=g)
viz.curves({name: (middles, shares(points)) for name, points in {**stations, "teacher's world": wanted}.items()}, "x",
           "share of points", "the student's points on their way")

# %% [markdown]
# The mean arrives and so does the *width*: no pairs, no regression, and no blur. But the critic must know what the
# student makes **now**, and the student moves. That is why the critic is trained five times for each step of the student
# (1:5, App. D). Let it learn its mean slowly, by flow matching on the student's points, and count:


# %%
def chase(ratio, lr=0.25):
    student, critic, means = -1.5, -1.5, []
    for _ in range(80):
        for _ in range(ratio):
            critic += 0.06 * (student - critic)                             # it follows what the student makes
        student -= lr * (critic - 1.5) / 3                                  # and the student follows the two of them
        means.append(student)
    return means


lags = {f"1:{ratio}": chase(ratio) for ratio in (1, 2, 5, 20)}
lags["teacher"] = [1.5] * 80
viz.curves(lags, "student's step", "student's mean", "where the critic lags, the student overshoots")

# %% [markdown]
# ## With msk
#
# `dmd_loss` is a loss whose gradient is $g$ over the mean distance from the teacher's guess, so that one learning rate
# serves all levels.

# %%
from msk.train.dmd import dmd_loss

velocity_of = lambda m, s: lambda x, t: (x - best(x, t[0, 0], m, s)) / t[0, 0]      # what a transformer would say
made = (-1.5 + 0.4 * torch.randn(64, 1, 1, 1, 1, generator=g)).requires_grad_()     # [B, F, C, h, w]
dmd_loss(made, velocity_of(1.5, 0.8), velocity_of(-1.5, 0.4), torch.full((64, 1), 0.6)).backward()
print("down the gradient is towards the teacher for", (made.grad < 0).float().mean().item(), "of the points")

# %% [markdown]
# ## A teacher and a causal student
#
# Notebooks 04 and 07 in one call each, at their small size: 32 x 32 pixels, clips of three chunks.

# %%
from dataclasses import replace

from msk.train import dmd, lesson
from msk.train.pipeline import condition

kit = msk.load("tiny", role="teacher", dtype=torch.float32)
preset = lesson.small(kit.preset)
config = replace(preset.stream, clean=True)             # chunks are remembered clean, as in the paper
batches = lesson.drawn_batches(preset, kit.vae, count=16, batch=4, latent_frames=9, clips=48)
models = lesson.teach(preset, batches, steps=70, lr=3e-3)
student = lesson.adapt(models, preset, batches[:8], steps=25)

# %% [markdown]
# Held-out clips, twice as long as those of training, with a dozen tracks each:

# %%
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

clip = World(preset.geometry).sample(8, frames=69, seed=HELD_OUT + 6)
tracks = clip.track(grid_points(preset.geometry, 8, 8, 8))
tracks = tracks.with_ids(draw_ids(8, 64, preset.tracks.max_id, torch.Generator().manual_seed(0)))
tracks = tracks.hide(torch.rand(64, generator=torch.Generator().manual_seed(3)) > 0.2)
cond = lesson.as_kit(models, preset, kit.vae).condition(clip.captions, tracks, clip.frames[:, 0].to(kit.device))
truth = kit.vae.encode(clip.frames.to(kit.device))                          # [B, F, C, h, w], 18 latent frames
start = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).to(kit.device)

# %% [markdown]
# ### Its own past, and a true one
#
# The loop of notebook 09 by hand, with one choice: what is remembered after each chunk, what the student made of it, or
# what truly happened? In training so far it was never its own.

# %%
from msk.cache import ChunkCache
from msk.flow import schedule
from msk.stream import denoise


@torch.no_grad()
def error(dit, own=True):
    cache, errors, dice = ChunkCache(config.sink, config.window), [], torch.Generator().manual_seed(1)
    for now in (slice(f, f + 3) for f in range(0, 18, 3)):
        motion, past = cond.motion[:, now], cache.past()
        levels = schedule(3, config.time_shift)
        x0 = denoise(dit, start[:, now], cond.text, motion, cond.image, past, levels, generator=dice)
        cache.push(dit.remember(x0 if own else truth[:, now], cond.text, motion, cond.image, past=past))
        errors.append((x0 - truth[:, now]).square().mean().item())
    return errors


# %%
chunks = range(1, 7)
before, forced = error(student), error(student, own=False)
print("chunk by chunk, its own past: ", [f"{e:.3f}" for e in before])
print("chunk by chunk, the true past:", [f"{e:.3f}" for e in forced])

# %% [markdown]
# The two hardly differ here: our student sees the given picture beside every chunk, and its tracks carry parts of it, so
# it leans little on what it made before. That the error grows all the same, with a true past too, has another cause: the
# further from the first frame, the less the picture says, and the small teacher never learned the rest. The paper's
# student has the picture in the first chunk only.
#
# ## By hand: a rollout with a gradient
#
# Self Forcing plays `stream.rollout`, the same generator as the demo, cache and all. To send a gradient through every
# step of every chunk would take too much memory and gain little, so each chunk is left at one random step, the same for
# all chunks, and only that step has a graph (Sec. 3.3). What is remembered has none. See it: the gradient of the *last*
# chunk in the noise of each. Only its own noise hears it.

# %%
draw = torch.randn_like(batches[0].latents).requires_grad_()
asked = condition(models, batches[0])
rolled = list(msk.rollout(student, draw, asked.text, asked.motion, asked.image, config, grad_at=0))
rolled[-1].square().mean().backward()
heard = draw.grad.unflatten(1, (3, 3)).abs().mean(dim=(0, 2, 3, 4, 5))
heard = (heard / heard.max()).tolist()
viz.bars({f"noise of chunk {i}": share for i, share in enumerate(heard, 1)}, "gradient of chunk 3, relative")

# %% [markdown]
# ## By hand: the critic
#
# The critic begins as a copy of the teacher and learns by rectified flow what the student makes, with no guidance, and no
# gradient to the student: $\mathcal{L}_\psi = \|v_\psi(x_t, t) - (\epsilon - x)\|^2$, one level for a whole clip.

# %%
from msk.flow import add_noise

dice = torch.Generator().manual_seed(2)
exit_at = int(torch.randint(config.steps, (), generator=dice))
x = dmd.roll_out(student, asked, draw.detach(), config, exit_at, dice)
t = dmd.noise_levels(4, 9, config.time_shift, dice, kit.device)
torch.manual_seed(0)
eps = torch.randn_like(x)
loss = (models.dit(add_noise(x, eps, t), t, asked.text, asked.motion, asked.image) - (eps - x)).square().mean()
torch.manual_seed(0)
same, _ = dmd.critic_loss(models.dit, student, asked, draw.detach(), config, torch.Generator().manual_seed(2))
print(f"by hand {loss:.4f}, critic_loss {same:.4f}")

# %% [markdown]
# ## Train
#
# One turn: three updates of the critic on fresh rollouts (the paper: five), then one of the student. `student_loss` rolls
# out, adds noise, asks the guided teacher and the critic, and has the gradient $g$ from above. The `anchor` is a second
# term that holds the rollout to the clip whose tracks it follows: DMD had one, the paper needs none. A teacher of seconds
# is a poor judge, so ours is strong (things to try, 1). Fourteen turns here; the paper, some 400 of 64 clips.

# %%
from msk.train.loop import Learner

learns, critic = lesson.copy(student), lesson.copy(models.dit)
settings = dict(betas=(0.0, 0.999), clip=10.0)
learner, follower = Learner(learns, 2e-3, ema=0.8, **settings), Learner(critic, 1e-3, ema=0.0, **settings)
rollouts = lesson.cycle([(condition(models, batch), batch.latents) for batch in batches])
scales = dict(text_scale=preset.text_scale, motion_scale=preset.motion_scale, anchor=3.0)

# %%
torch.manual_seed(0)
lost = {"critic, on rollouts": [], "student, distance from the clip": []}
for turn in range(14):
    learns.requires_grad_(False)
    for asked, real in (next(rollouts) for _ in range(3)):
        loss, _ = dmd.critic_loss(critic, learns, asked, torch.randn_like(real), config)
        follower.update(loss, turn / 14)
    learns.requires_grad_(True)
    asked, real = next(rollouts)
    draw = torch.randn_like(real)
    pulled, logs = dmd.student_loss(learns, models.dit, critic, asked, draw, config, real=real, **scales)
    learner.update(pulled, turn / 14)
    for line, value in zip(lost.values(), (loss.item(), logs["off"])):
        line.append(value)

# %%
learns.load_state_dict(learner.averaged())
learns.eval().requires_grad_(False)
viz.loss_curves(lost, 0.8, f"mean square, latents of unit variance, 4 clips a turn, on {kit.device}")

# %% [markdown]
# These losses say little: the critic's rises when the student changes, and a low one means only that the student is
# easy to predict. Look at what is made.

# %%
after = error(learns)
print(f"{'':8}{'chunk 1':>9}{'chunk 3':>9}{'chunk 6':>9}   mean square error, 8 held-out clips, on {kit.device}")
for name, line in {"before": before, "after": after}.items():
    print(f"{name:8}{line[0]:>9.3f}{line[2]:>9.3f}{line[5]:>9.3f}")

# %% [markdown]
# And do things go where they truly went? The same streams as pixels: how far points are found from where they should be
# (EPE, as a share of the width), in the first half, as long as a clip of training, and in the second. Only one track in
# five is told, so most of these points have none of their own.

# %%
from msk import trackers
from msk.evaluate import epe

every = list(range(0, 69, 8))                                               # every eighth frame is enough
seen, follow = clip.frames[:, every], lambda at: clip.track(at).when(every)
points = trackers.trackable(seen, follow, 16, torch.Generator().manual_seed(0))
rolled, off = {"true": truth}, {}
for name, dit in {"before": student, "after": learns}.items():
    rolled[name] = dmd.roll_out(dit, cond, start, config, config.steps - 1, torch.Generator().manual_seed(1))
    made = kit.vae.decode(rolled[name])[0].float().cpu()[:, every]
    found = trackers.register(made, seen, points.xy)
    for half, (first, last) in {"first half": (0, 5), "second half": (4, 9)}.items():
        far = epe(found[:, first:last], points.frames(first, last)).mean().item()
        off[f"{name}, {half}"] = far / preset.geometry.width

# %%
viz.bars(off, "EPE / width, lower is better", f"8 held-out clips of 69 frames, on {kit.device}", digits=4)

# %% [markdown]
# Both errors fall, squares in every chunk and most in the first, EPE by less. Honestly read: at this size the gain is
# mostly the anchor's, put to work on the student's own rollouts; distribution matching shows its worth where the teacher
# is good. That it does what it says, the Gaussians above have shown.
#
# ## What hours give
#
# The same stage with seven million parameters, at 128 x 128 pixels:
#
# ```
# msk train distill --preset tiny --budget 30m --out runs/tiny
# ```
#
# Its result is the student that the demo plays. Beside it the shipped teacher, made to stream without adaptation.

# %%
from msk.evaluate import by_student, psnr

large = World(kit.geometry).sample(1, frames=21, seed=HELD_OUT + 52)
points = large.track(grid_points(kit.geometry, 16, 16))
points = points.with_ids(draw_ids(1, 256, preset.tracks.max_id, torch.Generator().manual_seed(0)))
full = {"shipped teacher, streamed": kit, "shipped student": msk.load("tiny", dtype=torch.float32)}
full = {name: by_student(k, large.captions, large.frames[:, 0].to(k.device), points, 21, seed=0).cpu()[0]
        for name, k in full.items()}

# %%
lines = {name: (range(1, 21), psnr(frames, large.frames[0])[1:]) for name, frames in full.items()}
chart = viz.curves(lines, "pixel frame", "PSNR against the true clip, dB", f"{large.captions[0]}, on {kit.device}")
viz.grid([*(viz.strip(frames, count=6) for frames in (large.frames[0], *full.values())), chart], ["true", *full])

# %% [markdown]
# On this clip the two lie close, for the reason above: the picture beside every chunk holds the un-adapted teacher up as
# well. Both lose shape where one thing passes before the other. Notebook 11 has the figures of teacher and student over
# many clips.
#
# ## The picture
#
# How far the small student is from what truly happened, chunk by chunk, through twice the length of training, before and
# after fourteen turns on its own rollouts. Above, one of the clips: the gain is in the numbers more than to the eye.

# %%
lines = {"before: the teacher's chunks only": (chunks, before), "after: on its own rollouts": (chunks, after)}
about = f"8 held-out clips, 3 steps a chunk, on {kit.device}"
chart = viz.curves(lines, "chunk", "mean square error of latents", about, {"length of training": 3})
strips = [viz.strip(kit.vae.decode(latents[4:5])[0][0].float().cpu(), count=6, zoom=5) for latents in rolled.values()]
viz.grid([*strips, chart], list(rolled))

# %% [markdown]
# ## Things to try
#
# 1. Set `anchor=0.0`: distribution matching alone, as in the paper. What happens, and what does the paper have that we
#    have not?
# 2. Train with the true past in place of the student's own, for as many steps of the same cost (`ode_loss` on
#    `ode.straight`). How does the error grow over the chunks now?
# 3. In one dimension give the teacher two modes, -1.5 and 1.5, and start all points at 0.3. Does the student find both?
# 4. In one dimension, freeze the critic at the student's first distribution. Where do the points go?
#
# Solutions: [solutions/08_distillation.py](solutions/08_distillation.py).
