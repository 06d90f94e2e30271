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
# # 11 · How good is it, and how do we know?
#
# A made video is asked three things: does it look right, do things go where they were sent, and how much of that verdict
# is the ruler's own error? We build the rulers by hand on shifts whose answer can be written down, see why a tracker
# must not lean on its own last step, and then measure: a small table on a held-out clip, the motion of one clip in the
# picture of another, a camera, a hand. The last picture puts all of it on one scale, from what the ruler cannot tell from
# nothing to a picture that never moves, with the paper's figures among them.
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
# ## By hand: three rulers and a shift
#
# Take stripes of wavelength $\lambda$ and amplitude $a$ around grey, and move them by $d$ pixels. Everything can be written
# down. The mean square error gives the first ruler, in decibels:
#
# $$\mathrm{PSNR} = -10\log_{10}\,\mathrm{MSE},\qquad \mathrm{MSE}(d) = a^2\,\Big(1 - \cos\frac{2\pi d}{\lambda}\Big)$$
#
# The second compares small windows by mean, contrast and correlation (Wang et al. 2004). Where a window holds whole
# stripes, the means agree and the correlation is again the cosine:
#
# $$\mathrm{SSIM}(d) = \frac{a^2\cos(2\pi d/\lambda) + c}{a^2 + c},\qquad c = 0.03^2$$
#
# The third asks where a thing went, and not how it looks: the end-point error, $\mathrm{EPE}(d) = d$ pixels.

# %%
import math

import torch

from msk import viz
from msk.evaluate import psnr, ssim

a, wave = 0.2, 4.0                                                          # amplitude; pixels from stripe to stripe
stripes = lambda d: 0.5 + a * torch.sin(2 * math.pi * (torch.arange(64) + 0.5 - d) / wave).expand(1, 3, 64, 64)
shifts = torch.linspace(0.1, 8, 80)
cosine = torch.cos(2 * math.pi * shifts / wave)

# %%
formula = {"PSNR, dB": -10 * (a**2 * (1 - cosine)).clamp_min(1e-10).log10(),
           "SSIM": (a**2 * cosine + 0.03**2) / (a**2 + 0.03**2)}
some = shifts[3::4]
measured = {"PSNR, dB": [psnr(stripes(d), stripes(0)).item() for d in some],
            "SSIM": [ssim(stripes(d), stripes(0)).item() for d in some]}
charts = [viz.curves({"formula": (shifts, formula[name]), "measured": (some, measured[name])}, "shift, pixels", name,
                     "a stripe every four pixels, moved aside", {"a whole stripe": wave}) for name in measured]
viz.grid(charts, columns=2)

# %% [markdown]
# After a whole stripe, or two, everything is perfect again for the first two rulers, while each point is 4 or 8 pixels from
# where it should be. Pictures are no stripes, but grass, sand and waves come close. On a frame of the drawn world,
# damaged in ways we know (how EPE is measured comes below):

# %%
from msk import trackers
from msk.evaluate import epe
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
geometry, world = kit.geometry, World(kit.geometry)
clip = world.sample(1, frames=45, seed=HELD_OUT + 23)
points = trackers.trackable(clip.frames, clip.track, 16, torch.Generator().manual_seed(0))
true = clip.frames[:, :2]                                                   # the second frame is looked at
noise = 0.05 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))

# %%
soft = true
for _ in range(3):
    soft = trackers.smooth(soft[0], 1.2)[None]
spoiled = {"blurred": soft, "1 pixel right": true.roll(1, dims=-1), "3 pixels right": true.roll(3, dims=-1),
           "noise of 0.05": (true + noise).clamp(0, 1), "a tenth darker": 0.9 * true}
print(f"{'':24}{'PSNR, dB':>10}{'SSIM':>8}{'EPE, px':>9}")
for name, made in spoiled.items():
    off = epe(trackers.register(made, true, points.xy[:, :2]), points.frames(0, 2)).mean()
    print(f"{name:24}{psnr(made, true)[0, 1]:>10.2f}{ssim(made[0], true[0])[1]:>8.3f}{off:>9.2f}")

# %%
shown = {"true": true} | spoiled
viz.panels({name: viz.image(made[0, 1]) for name, made in shown.items()}, columns=3, width=2.2)

# %% [markdown]
# No ruler sees everything: PSNR minds a change of light that nobody would mind and forgives a blur; SSIM minds noise; EPE
# hardly minds blur or light, but minds a pixel. Together they say something. (The paper adds LPIPS, a distance between
# features of a trained network, which is nearer to what people see; its weights are not part of this package.)
#
# ## By hand: who follows the points?
#
# EPE needs to know where a point went in a video that only a model has seen. One way: find the patch of frame $t - 1$ in
# frame $t$, again and again. Each step errs a little, and errors add up. Independent ones walk at random:
#
# $$\mathbb{E}\,\|\text{error after } t \text{ steps}\| = \sqrt t\ \cdot\ \mathbb{E}\,\|\text{error of one step}\|$$
#
# The drawn world knows where each point truly is, so the walk can be watched, on the true clip with a little noise.

# %%
noise = 0.03 * torch.randn(clip.frames.shape, generator=torch.Generator().manual_seed(1))
grainy, reach = (clip.frames + noise).clamp(0, 1), 8.0 * geometry.width / trackers.REFERENCE
by_hand = [points.xy[:, 0]]
for t in range(1, 45):
    place, _ = trackers.match(grainy[:, t - 1], by_hand[-1], grainy[:, t], by_hand[-1], reach)
    by_hand.append(place)
by_hand = torch.stack(by_hand, dim=1)                                       # [B, T, N, 2]

# %% [markdown]
# ## With msk
#
# `trackers.chain` lets a point hang on the earlier frame that promises the least accumulated doubt, frame 0 among them.
# `trackers.register` does not chain at all: the drawn world has a *true* frame for each made one, and each true patch is
# looked for in the made frame of the same time. What it errs in frame 40 has nothing to do with frame 39.

# %%
chained, _ = trackers.chain(grainy, points.xy[:, 0])
registered = trackers.register(grainy, clip.frames, points.xy, chained=chained)
seen = points.visible[0].float()
away = lambda found: ((found - points.xy).norm(dim=-1)[0] * seen).sum(1) / seen.sum(1).clamp_min(1)     # [T]
ways = {"frame to frame, by hand": by_hand, "chained, msk": chained, "registered, msk": registered}
lines = {name: away(found) for name, found in ways.items()}
first = lines["frame to frame, by hand"][1:4].mean() / torch.arange(1, 4).sqrt().mean()
lines["a random walk of such steps"] = first * torch.arange(45).sqrt()

# %%
viz.curves(lines, "pixel frame", "mean distance from the truth, pixels",
           f"{len(seen.T)} points on a clip with noise of 0.03, {geometry.width} pixels wide")

# %% [markdown]
# Real steps do not err independently, and points that hide no longer count, so the walk is a guide and no law; but
# whoever chains pays by the frame, and a registered point pays once. The paper re-tracks with CoTracker3, which is chained
# too, and trained; `msk.trackers` uses it where it lies in the cache.
#
# ### The ruler's own error
#
# Move the true frames by a smooth field that we choose, blur them, add noise, and ask the tracker: what it misreads is
# the floor, below which no EPE means anything (`msk eval` prints it as the row `tracker`).

# %%
from msk.evaluate import displaced

moved, field = displaced(clip.frames[:, :9], seed=0)
column, row = points.xy[0, :9].long().unbind(-1)                            # [T, N]
known = torch.stack([field[0, t, :, row[t], column[t]].T for t in range(9)])[None]
floor = epe(trackers.register(moved, clip.frames[:, :9], points.xy[:, :9]) - known, points.frames(0, 9)).mean().item()
print(f"moved by {known.norm(dim=-1).mean():.2f} px on average, misread by {floor:.3f} px")
errors = {"the tracker's own": floor / geometry.width}                      # shares of the width, for the last picture

# %% [markdown]
# ## A small table
#
# `evaluate.run` makes held-out clips again from their first frame, their caption and a dense grid of their true tracks,
# and measures. One clip of 13 frames here, to keep it short: an example, and no verdict. EPE/W is EPE as a share of the
# width. The still image (`first_frame`) is what doing nothing scores; `student_sparse` has a few points, as a hand would
# draw them; the truth through the autoencoder (`vae`) is the best that any transformer could show through this decoder (the
# student's frames are also finished with the given picture's own pixels, notebook 10, and may pass it).

# %%
from msk import evaluate

report = evaluate.run("world", kit, clips=1, frames=13, roles=("student", "first_frame", "vae"), quiet=True)
print(evaluate.table(report))

# %%
shares = {name: report["rows"][name]["epe_rel"] for name in ("vae", "student", "first_frame")}
names = "truth through the VAE", "student, a held-out clip", "still image, the same clip"
errors |= dict(zip(names, shares.values()))
for name, share in errors.items():
    print(f"{name:28}{share:>7.2%} of the width")

# %% [markdown]
# ## Motion transfer
#
# Tracks do not say what they belong to. So take them from one clip and give them to another picture: a green balloon
# sinks, and something else sinks in its place. The paper's own table (Sec. 4.2) hands a clip's tracks back to its first
# frame, as `evaluate.run` does; with another picture there is no true video any more. So PSNR has nothing to compare
# with, and points must be chained: `evaluate.followed` does, where the picture has texture enough to be found again.

# %%
from msk.evaluate import by_student, followed
from msk.motion import draw_ids

T, dice = 21, torch.Generator().manual_seed(0)                              # two chunks
source = world.sample(1, T, seed=HELD_OUT + 210)
told = source.track(grid_points(geometry, 20, 20), ids=draw_ids(1, 400, kit.preset.tracks.max_id, dice))
asked = source.track(grid_points(geometry, 12, 12))                         # where we look


# %%
def transfer(other, told, asked):
    made = by_student(kit, other.captions, other.frames[:, 0].to(kit.device), told, T, seed=0).cpu()
    found, measured = followed(made, asked)
    return made, epe(found, measured).mean().item(), epe(measured.xy[:, :1].expand_as(found), measured).mean().item()


drawn = viz.draw_tracks(source.frames[0], source.track(grid_points(geometry, 8, 8)), zoom=2, count=3)
strips, names, offs = [viz.strip(drawn, 3)], [f"the motion: {source.captions[0]}"], []
for seed in (709, 222):
    other = world.sample(1, 1, seed=HELD_OUT + seed)
    made, off, nothing = transfer(other, told, asked)
    offs.append(off)
    strips.append(viz.strip(made[0], 3, zoom=2))
    names.append(f"{other.captions[0]}: EPE {off:.2f} px; had nothing moved, {nothing:.2f} px")

# %%
errors["motion transfer"] = sum(offs) / len(offs) / geometry.width
viz.grid(strips, names)

# %% [markdown]
# What lay where the green balloon was goes its way. A balloon for a balloon: the striped one sinks whole, and turns as the
# green one does, and leaves a thin smear of sand behind. The kite has another shape: its tip and one corner stuck out, were
# told to stay, and stay, torn off. Whoever transfers motion between unlike shapes asks for that. EPE is
# larger here than anything in the last picture but the still image, and for the whole balloon no less than for the torn
# kite: it only asks where points went, and not whether a thing is still whole.
#
# ## A camera
#
# A camera is a grid of points that all move as it says. For the paper's table on LLFF (Sec. 4.2) they come from depth and
# poses; `msk.camera` has those, and the flat moves, which need no depth. An orbit does: ours says that the ground comes
# nearer from top to bottom.

# %%
from msk import camera

depth = torch.linspace(3, 1, geometry.height)[:, None].expand(geometry.height, geometry.width)
moves = {"pan": lambda grid: camera.pan(geometry, T, right=24, down=12, grid=grid),
         "zoom": lambda grid: camera.zoom(geometry, T, 1.4, grid=grid),
         "orbit": lambda grid: camera.orbit(geometry, T, 10, depth, grid=grid)}
scene, ids = world.sample(1, 1, seed=HELD_OUT + 1), told.ids
print(scene.captions[0])

# %%
shot = {}
for name, move in moves.items():
    shot[name], off, nothing = transfer(scene, move((20, 20)).with_ids(ids), move((10, 10)))
    errors[f"camera: {name}"] = off / geometry.width
    print(f"{name:6} EPE {off:.2f} px; had nothing moved, {nothing:.2f} px   ({kit.device})")

# %%
viz.grid([viz.strip(viz.draw_tracks(made[0], moves[name]((6, 6)), zoom=2, count=3)) for name, made in shot.items()],
         [f"{name}, with the asked points" for name in shot])

# %% [markdown]
# What comes into view at the edges has no track and no past: it is the model's guess, and no EPE asks about it. Nor does it
# ask about outlines: the orbit, whose depth knows of the ground alone, shears the things, and their edges get a little
# ragged (the lower petals of the flower). At twice the angle they come apart.
#
# ### Live
#
# Choose a move and go forward in time.


# %%
def look(move="pan", frame=20):
    points = moves[move]((6, 6)).frames(0, frame + 1)
    drawn = viz.draw_tracks(shot[move][0, :frame + 1], points, trail=40, zoom=2, count=2)
    shown = {"given": scene.frames[0, 0], f"{move}, frame {frame}": drawn[-1]}
    return viz.panels({name: viz.image(picture) for name, picture in shown.items()}, width=2.8)


viz.live(look, move=list(moves), frame=(0, T - 1, 4))

# %% [markdown]
# ## A hand
#
# Dense grids are kind. A hand holds one point and says nothing of the rest, so three questions are asked apart: where did
# the point go, did its whole thing come along, and did the rest stay? The world draws the true answer for each of ten
# cases (`msk eval --suite hands`); here is one, on one scene, truth above.

# %%
from msk import hands

take = next(hands.takes(world, "drag", HELD_OUT, 1, T, kit.preset.tracks.max_id))
played = hands.play(kit, take)
score = hands.Score(geometry.width, hands.spans(kit, T))
score.add(played, take)
said = score.summary()
hands.film(played, take, hands.CASES["drag"].says, count=3)

# %%
parts = {"at the point": said["epe_rel"], "on its whole thing": said["epe_rel_thing"],
         "of the rest": said["epe_rel_rest"], "a still image, at the point": said["epe_rel_still"]}
errors["a hand, at the point"] = said["epe_rel"]
for name, share in parts.items():
    print(f"{name:30}", "no point to ask" if share is None else f"EPE {share:.2%} of the width", f"({kit.device})")

# %% [markdown]
# Look at the other thing, for which no point spoke: it fades. The error of the rest is the largest of the three, and yet
# says too little about that. A ruler that asks where points went does not ask whether a thing is still whole.
#
# ## The tables
#
# One scene is a story. The figures of the shipped weights are measured on many, and stand in their model card with the
# command that gives them. Its first table (what a hand does, real videos, fewer steps and prompts stand below it there,
# `assets/tiny/README.md`):

# %%
from IPython.display import Markdown

from msk.kit import assets

card = (assets() / "tiny" / "README.md").read_text()
Markdown("\n\n".join(card.split("## Figures\n")[1].strip().split("\n\n")[:2]))

# %% [markdown]
# And the paper's (Table 1; its tracks by CoTracker3 on a grid of 50 x 50, all outputs at 832 x 480, one pixel of 832 is
# 0.0012 of the width):
#
# | DAVIS, 30 clips | PSNR, dB | SSIM | LPIPS | EPE, px of 832 | EPE / width |
# |---|---|---|---|---|---|
# | ATI (Wan 2.1, 14B) | 15.33 | 0.374 | 0.473 | 17.41 | 0.0209 |
# | teacher, 1.3B, 50 steps | 16.61 | 0.477 | 0.427 | 5.35 | 0.0064 |
# | student, 1.3B, 3 steps, streaming | 16.20 | 0.447 | 0.443 | 7.80 | 0.0094 |
# | teacher, 5B | 16.10 | 0.466 | 0.427 | 7.86 | 0.0094 |
# | student, 5B | 16.30 | 0.456 | 0.438 | 11.18 | 0.0134 |
#
# And a camera, a new view from one picture (Table 2, LLFF):
#
# | LLFF | PSNR, dB | SSIM | LPIPS |
# |---|---|---|---|
# | SEVA, the best of the compared | 14.1 | 0.30 | 0.29 |
# | teacher, 1.3B | 16.0 | 0.42 | 0.21 |
# | student, 1.3B | 15.7 | 0.38 | 0.23 |
#
# The two tables are not each other's rivals. Ours is a small drawn world with exact tracks, theirs is films with tracked
# ones; decibels of the one say nothing about the other. What may be compared is the order of the rows, and roughly the
# EPE as a share of the width: how far the student is from its teacher, from the ruler's own error, and from standing
# still.
#
# ## The picture
#
# Everything that this notebook measured on one scale, with the paper's two figures: how far points are from where they were
# sent, in hundredths of the width. What lies below the ruler's own error is not to be told from zero: there the finish
# copied the very pixels that are looked for.

# %%
paper = {"paper: teacher 1.3B, DAVIS": 5.35 / 832, "paper: student 1.3B, DAVIS": 7.80 / 832}
errors |= paper
order = dict(sorted(((name, 100 * share) for name, share in errors.items()), key=lambda pair: pair[1]))
viz.bars(order, "EPE, % of the width", f"few clips each: an example, no verdict ({kit.device})", others=paper)

# %% [markdown]
# ## Things to try
#
# 1. Which ruler notices what? Repeat the last frame of a clip in place of its second half, swap two frames, mirror the
#    whole clip: PSNR, SSIM and EPE of each.
# 2. Make the frame-to-frame tracker better without touching its matcher: let it skip frames. How does its error after 44
#    frames depend on the step, and why is the longest step not the best?
# 3. Drive a picture backwards: a clip's tracks in reverse, given to its own last frame. Is EPE the same as forwards?
# 4. Ask the camera for more and more: pans of 8 to 64 pixels in the same time. From where on does the student not keep
#    up, and does EPE or the picture tell you first?
#
# Solutions: [solutions/11_evaluation.py](solutions/11_evaluation.py).
