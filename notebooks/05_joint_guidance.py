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
# # 05 · What do text and motion each pull on?
#
# The teacher is asked for two things at once: what the prompt says, and where the tracks go. Guidance pulls towards
# each, with a scale of its own. We build it by hand in the plane, where one can see what each scale does, check the
# identities that any right implementation must have, and then sample a real clip over a grid of scales. That grid is
# the last picture.
#
# *Run time: about half a minute on a CPU, a few seconds on a GPU.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor()

# %% [markdown]
# ## By hand: right and up
#
# A world in the plane: the prompt says left or right, the tracks say down or up, and things are never quite where they
# were asked to be. We ask for right *and* up. With all data at hand the best velocity is known exactly (notebook 03),
# whether both, one or none of the two is asked.

# %%
import torch

from msk.flow import exact_velocity, schedule

g = torch.Generator().manual_seed(0)
side, height = torch.randint(0, 2, (2, 1200), generator=g) * 2 - 1          # text: 1 is right; motion: -1 is up
data = torch.stack([side, height], dim=1) * 0.7 + 0.6 * torch.randn(1200, 2, generator=g)
told = {"both": data[(side == 1) & (height == -1)], "text only": data[side == 1], "motion only": data[height == -1]}
noise = torch.randn(400, 2, generator=g)

# %%
from msk import viz

viz.plane({name: [data, part] for name, part in told.items()}, title="all data (blue), what was asked (orange)")

# %% [markdown]
# The formula of the paper, line by line (Eq. 2), with $v(c_t, c_m)$ for both, $v(0, c_m)$ for motion only, $v(c_t, 0)$
# for text only:
#
# $$\hat v = v_{base} + w_t\,\big(v(c_t, c_m) - v(0, c_m)\big) + w_m\,\big(v(c_t, c_m) - v(c_t, 0)\big)$$
# $$v_{base} = \alpha\,v(0, c_m) + (1 - \alpha)\,v(c_t, 0),\qquad \alpha = \frac{w_t}{w_t + w_m}$$


# %%
def guided(both, text_only, motion_only, w_t, w_m):
    a = w_t / (w_t + w_m)
    base = a * motion_only + (1 - a) * text_only
    return base + w_t * (both - motion_only) + w_m * (both - text_only)


# %% [markdown]
# What are the two pulls? In the middle of the walk, at $t = 0.6$: the difference that the text makes points to the right,
# the difference that the motion makes points up. (Velocities lead from data to noise, so the arrows are drawn against
# them.)

# %%
places = torch.cartesian_prod(torch.linspace(-2, 2, 9), torch.linspace(-2, 2, 9))
both, text_only, motion_only = (exact_velocity(places, 0.6, told[name]) for name in told)
pulls = {"text pulls": motion_only - both, "motion pulls": text_only - both,
         "w_t = 3, w_m = 1.5": -guided(both, text_only, motion_only, 3.0, 1.5)}
viz.plane({name: [told["both"], (places, pull)] for name, pull in pulls.items()}, size=2.8)


# %%
def walk(w_t, w_m, steps=20):
    x, levels = noise, schedule(steps, 1.0)
    for t, after in zip(levels, [*levels[1:], 0.0]):
        x = x + (after - t) * guided(*(exact_velocity(x, t, told[name]) for name in told), w_t, w_m)
    return x


scales = ((0.5, 0.5), (3.0, 0.01), (0.01, 3.0), (3.0, 1.5), (6.0, 6.0))
viz.plane({f"text {a:g}, motion {b:g}": [told["both"], walk(a, b)] for a, b in scales},
          title="asked: right and up", limit=3.5)

# %% [markdown]
# Blue is what was asked, orange what came. Scales that sum to 1 give the asked data as they are; larger ones push
# beyond, each in its own direction, and squeeze: less variety, and in the end things that no data ever was.
#
# ### Identities
#
# Seen as a sum of three predictions the factors are easier to judge. They always sum to 1, so it makes no difference
# whether one guides velocities, data or scores.

# %%
unit = torch.eye(3)
for w_t, w_m in ((3.0, 1.5), (0.5, 0.5), (3.0, 0.0), (0.0, 1.5)):
    parts = guided(*unit, w_t, w_m).tolist()
    print(f"w_t {w_t:g}, w_m {w_m:g}:  both {parts[0]:+.2f}  text only {parts[1]:+.2f}  motion only {parts[2]:+.2f}  "
          f"sum {sum(parts):.2f}")

# %% [markdown]
# - $w_t = 3$, $w_m = 1.5$, the paper's own: 4.5 times both, minus the other two.
# - Scales that sum to 1: both, and nothing else. No guidance, and one pass of the model in place of three.
# - $w_m = 0$ is the usual guidance by text, on top of the motion; $w_t = 0$ the same by motion.
#
# ## With msk
#
# `joint_guidance` takes any model with the signature of the transformer, and leaves out passes that it does not need.
# (With both scales 0 the formula is 0/0; `msk` takes that as no guidance.)

# %%
from msk.guidance import Condition, joint_guidance

asked = Condition(text="right", motion="up", image=None, null_text=None)


def plane(x, t, text, motion, image, clip=None):
    calls.append((text, motion))
    return exact_velocity(x, t, told[{(1, 1): "both", (1, 0): "text only", (0, 1): "motion only"}[bool(text), bool(motion)]])


for w_t, w_m in ((3.0, 1.5), (3.0, 0.0), (0.5, 0.5)):
    calls = []
    ours = joint_guidance(plane, places, 0.6, asked, w_t, w_m)
    print(f"w_t {w_t:g}, w_m {w_m:g}: {len(calls)} passes, by hand and msk agree:",
          torch.allclose(ours, guided(both, text_only, motion_only, w_t, w_m), atol=1e-4))

# %% [markdown]
# ## A real clip
#
# Two held-out clips of the drawn world, their captions, a grid of their true tracks, and the teacher with a few steps.
# The null of the motion is an empty map, all zeros; the null of the text is the empty prompt; the given picture stays in
# all three passes. The kit's own scales, printed below, sum to 1: no guidance, one pass.

# %%
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny", role="teacher")
clip = World(kit.geometry).sample(2, frames=21, seed=HELD_OUT + 35)
points = grid_points(kit.geometry, 12, 12, 2)
tracks = clip.track(points, ids=draw_ids(2, 144, kit.preset.tracks.max_id, torch.Generator().manual_seed(1)))
cond = kit.condition(clip.captions, tracks, clip.frames[:, 0])
print(*clip.captions, f"the kit's own scales: w_t {kit.preset.text_scale:g}, w_m {kit.preset.motion_scale:g}", sep="\n")

# %%
shape = 2, 6, kit.dit.config.latent_channels, *kit.geometry.latent_size
start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kit.device)


def sampled(w_t, w_m, cond=cond, start=start, steps=8):
    for step in msk.sample(kit.dit, start, cond, steps, kit.preset.stream.time_shift, w_t, w_m):
        latents = step.x0
    return kit.vae.decode(latents)[0].float().clamp(0, 1).cpu()             # [B, T, 3, H, W]


levels = (0.0, 1.5, 3.0)
made = {(w_t, w_m): sampled(w_t, w_m) for w_t in levels for w_m in levels}

# %% [markdown]
# How well does each follow? As in the paper: the distance in pixels between where a point truly is and where it is
# found in the made clip (end-point error, EPE; lower is better), and the nearness to the true clip (PSNR; higher is
# better).

# %%
from msk.evaluate import epe, psnr
from msk.trackers import register, trackable

truth = trackable(clip.frames, clip.track, 8, torch.Generator().manual_seed(0))
error, near = torch.zeros(3, 3), torch.zeros(3, 3)
for (w_t, w_m), frames in made.items():
    row, column = levels.index(w_t), levels.index(w_m)
    error[row, column] = epe(register(frames, clip.frames, truth.xy), truth).mean()
    near[row, column] = psnr(frames[:, 1:], clip.frames[:, 1:]).mean()

# %%
names = [f"{w:g}" for w in levels]
charts = [viz.matrices({title: table}, "motion_scale", "text_scale", numbers=".2f", ticks=(names, names), size=3)
          for title, table in (("EPE, pixels (lower is better)", error), ("PSNR, dB (higher is better)", near))]
viz.grid(charts, columns=2)

# %% [markdown]
# The paper finds a trade-off (Fig. 4, Sec. 4.3): more motion guidance follows better, at the cost of looks; more text
# guidance follows worse, but moves more naturally, and keeps shapes; it settles on 3 and 1.5. Here, too, points land
# nearer and PSNR falls as the motion scale goes up; the text scale does less. But two clips and eight steps are too few
# for a verdict, so read the tables above as an example. For a verdict on this kit: `msk eval --suite world` with other
# scales in a preset, over many clips.
#
# ### What only text can do
#
# No track can make it night. So: one clip, the same tracks, the prompt with "night falls" at the end, and the scale of
# the text alone goes up. How dark does the last frame get, beside the same clip without those words?

# %%
still = World(kit.geometry).sample(1, frames=45, seed=HELD_OUT + 33)
stay = msk.Tracks.grid(kit.geometry, 16, 45)
stay = stay.with_ids(draw_ids(1, stay.ids.shape[1], kit.preset.tracks.max_id, torch.Generator().manual_seed(2)))
prompts = {"as it is": still.captions[0], "night falls": still.captions[0] + ", night falls"}
longer = torch.randn(1, 12, *shape[2:], generator=torch.Generator().manual_seed(0)).to(kit.device)
asked = {name: kit.condition([prompt], stay, still.frames[:, 0]) for name, prompt in prompts.items()}

# %%
night = {w_t: sampled(w_t, 0.0, asked["night falls"], longer, 6) for w_t in (0.0, 2.0, 4.0)}
day = sampled(0.0, 0.0, asked["as it is"], longer, 6)
for w_t, frames in night.items():
    print(f"w_t {w_t:g}: last frame has {frames[0, -1].mean() / day[0, -1].mean():.0%} of the light")
shown = {"not asked": day} | {f"night falls, w_t {w_t:g}": frames for w_t, frames in night.items()}
viz.panels({name: viz.image(frames[0, -1]) for name, frames in shown.items()})

# %% [markdown]
# ## Live
#
# Two sliders over the grid that was sampled above: the clip at those scales, over the true one.


# %%
def look(text_scale=1.5, motion_scale=1.5, clip_number=0):
    rows = {f"w_t {text_scale:g}, w_m {motion_scale:g}": made[text_scale, motion_scale][clip_number],
            "true": clip.frames[clip_number]}
    return viz.grid([viz.strip(viz.draw_tracks(frames, truth_of[clip_number], zoom=2), count=5) for frames in rows.values()],
                    list(rows))


truth_of = [msk.Tracks(truth.xy[b:b + 1], truth.visible[b:b + 1], truth.ids[b:b + 1]) for b in range(2)]
viz.live(look, text_scale=list(levels), motion_scale=list(levels), clip_number=[0, 1])

# %% [markdown]
# ## The picture
#
# The last frame of the first clip over the grid of scales, text downwards, motion to the right, from the same noise. At
# the top left both are 0: no guidance. Beside it, the true last frame. To the eye the scales differ little on this clip:
# its picture and its tracks say nearly all, and the petals that got lost on the left no scale brings back.

# %%
last = {scales: viz.image(frames[0, -1]) for scales, frames in made.items()}
grid = viz.guidance_grid(last, f"last frame of 21, 8 steps, on {kit.device}")
viz.grid([grid, viz.panels({"true": viz.image(clip.frames[0, -1])}, width=2.0)], columns=2)

# %% [markdown]
# ## Things to try
#
# 1. Ask for two things that exclude each other: the tracks of one clip and the prompt of the other. Who wins, and at
#    which scales?
# 2. In the plane, remove the base: take `both` in its place. Which of the identities still hold?
# 3. Make the two wishes depend on each other: keep only data where right goes with up and left with down. What do the
#    two pulls look like now, and why?
# 4. Guide only while there is much noise (t above 0.5) and take `both` alone afterwards. How many passes are saved, and
#    what changes?
#
# Solutions: [solutions/05_joint_guidance.py](solutions/05_joint_guidance.py).
