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
# identities that any right implementation must have, and then sample a clip over a grid of scales in which a thing is
# dragged off the picture and back while night falls. That grid is the last picture.
#
# *Run time: about a minute on a CPU; on a GPU not timed yet.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

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
    name = "both" if text and motion else "text only" if text else "motion only"
    return exact_velocity(x, t, told[name])


for w_t, w_m in ((3.0, 1.5), (3.0, 0.0), (0.5, 0.5)):
    calls = []
    ours = joint_guidance(plane, places, 0.6, asked, w_t, w_m)
    print(f"w_t {w_t:g}, w_m {w_m:g}: {len(calls)} passes, by hand and msk agree:",
          torch.allclose(ours, guided(both, text_only, motion_only, w_t, w_m), atol=1e-4))

# %% [markdown]
# ## A real clip
#
# Tracks are usually followed closely, and then no scale is needed. So we ask for something hard. A hand holds a thing by one
# point, takes it *off the picture* and brings it back: while the point is outside, no track says anything. And of the prompt
# we ask what no track can do: that night falls. The given picture stays in all three passes; the null of the motion is an
# empty map, all zeros; the null of the text is the empty prompt. The true clip is drawn by day, with the thing stiff, where
# the hand takes it.

# %%
from msk import hands
from msk.world import HELD_OUT, World

kit = msk.load("tiny", role="teacher")
shot = next(hands.takes(World(kit.geometry), "off", HELD_OUT + 27, 1, frames=21, max_id=kit.preset.tracks.max_id))
cond = kit.condition([shot.caption + ", night falls"], shot.told, shot.truth[:, 0])
print(f"{shot.caption}, night falls | the kit's own scales: w_t {kit.preset.text_scale:g},",
      f"w_m {kit.preset.motion_scale:g}")
viz.strip(viz.draw_tracks(shot.truth[0], shot.told, zoom=2, count=5))

# %%
shape = 1, kit.geometry.latent_frames(21), kit.dit.config.latent_channels, *kit.geometry.latent_size
start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kit.device)


def sampled(w_t, w_m, steps=4):
    for step in msk.sample(kit.dit, start, cond, steps, kit.preset.stream.time_shift, w_t, w_m):
        latents = step.x0
    return kit.vae.decode(latents)[0].float().clamp(0, 1).cpu()             # [B, T, 3, H, W]


text_scales, motion_scales = (0.5, 1.5, 3.0), (0.0, 0.5, 1.5)
made = {(w_t, w_m): sampled(w_t, w_m) for w_t in text_scales for w_m in motion_scales}

# %% [markdown]
# What did each wish get? For the motion, as in the paper: the distance in pixels between where the thing's points should be
# and where they are found (end-point error, EPE; lower is better). For the text: how much light is left in the last frame,
# as a share of the true one by day.

# %%
from msk.evaluate import epe
from msk.trackers import register

seen = list(range(0, 21, 2))                                                # every other frame is looked at
truth, points = shot.truth[:, seen], shot.dragged.concat(shot.thing).when(seen)     # the held point, others on its thing
clips = torch.cat(list(made.values()))                                      # [9, T, 3, H, W]
nine = lambda x: x.expand(len(clips), *x.shape[1:])
found = register(clips[:, seen], nine(truth), nine(points.xy))
missed = torch.stack([epe(xy[None], points).mean() for xy in found]).view(3, 3)
light = (clips[:, -1].mean(dim=(1, 2, 3)) / truth[:, -1].mean()).view(3, 3)

# %%
ticks = [[f"{w:g}" for w in scales] for scales in (text_scales, motion_scales)]
tables = {"EPE, pixels": missed, "light in the last frame, share": light}
viz.matrices(tables, "motion scale w_m", "text scale w_t", ticks=ticks, numbers=(".1f", ".2f"), size=3, apart=True)

# %% [markdown]
# Read the right table downwards: the text scale makes it night, whatever the motion scale. (In the first row light falls
# from left to right, too: with 0.5 and 0 the words have half their weight, with 0.5 and 0.5, which is no guidance at all,
# the whole.) Read the left one downwards in its first column: the same scale costs following, from 13 pixels to 17, as all
# the weight goes to the words. Then along its last row: the motion scale brings that back, and more, from 17 pixels to 10.
# The middle column has no order: one scene is little. And followed closely it is nowhere: at the rim the boat is a blur (the
# live picture below shows it), in which points are not found again.
#
# So the paper finds, too (Fig. 4, Sec. 4.3). There the motion scale brings EPE from about 3.0 pixels down to 2.6, and
# LPIPS (how unlike the pictures look) up from 0.34 to 0.36; the text scale worsens both, while things move more richly
# and keep their shape. The best EPE is had without text guidance, and yet it settles on 3 and 1.5.
#
# One scene and four steps are an example and no verdict. Over many ordinary clips, where the tracks are followed anyway,
# the scales hardly matter (`msk eval --suite ablations --cases guidance`). Where the words ask for snow they do. On
# four held-out scenes of 21 frames, in 12 steps, the detector of `msk.words` finds 15% of the true amount without guidance
# (0.5 and 0.5), 38% with 1.5 for the text, and 74% with 3. So it ships with 3 and 0.5.
#
# ## Live
#
# Two sliders over the grid that was sampled above: the clip at those scales, over the true one.


# %%
def look(text_scale=3.0, motion_scale=1.5):
    asked = f"w_t {text_scale:g}, w_m {motion_scale:g}"
    rows = {asked: made[text_scale, motion_scale][0], "true, by day": shot.truth[0]}
    drawn = [viz.draw_tracks(frames, shot.told, zoom=2) for frames in rows.values()]
    return viz.grid([viz.strip(frames, count=4) for frames in drawn], list(rows))


viz.live(look, text_scale=list(text_scales), motion_scale=list(motion_scales))

# %% [markdown]
# ## The picture
#
# The last frame over the grid of scales, text downwards, motion to the right, from the same noise, with its EPE in pixels
# and its share of light. What does text pull on? On the whole picture, and the thing goes under in the dark. And motion? On
# the thing: along the last row it stands out again, back where it began, and the night stays.

# %%
notes = {scales: f"EPE {missed.view(-1)[i]:.1f}, light {light.view(-1)[i]:.0%}" for i, scales in enumerate(made)}
last = {scales: viz.image(frames[0, -1]) for scales, frames in made.items()}
grid = viz.guidance_grid(last, f"last frame of 21, 4 steps, on {kit.device}", notes)
beside = {"given": viz.image(shot.truth[0, 0]), "true, by day": viz.image(shot.truth[0, -1])}
viz.grid([grid, viz.panels(beside, columns=1, width=2.2)], columns=2)

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
