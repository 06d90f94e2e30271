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
# # 00 · What does it feel like?
#
# You put a finger on a thing in a picture and pull. A diffusion model makes the video in which it comes along, a fraction
# of a second at a time, for as long as you like. Here we ask three times by hand and look at what came: all points of a
# thing, nine of them, nothing at all. The last picture is a stage, and it is yours: there you pull with the mouse. What a
# track is, how a model reads it and how it was trained, the notebooks after this one say.
#
# *Run time: ten seconds on two CPU cores. A GPU is used where there is one; no notebook has been timed on any.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

# %% [markdown]
# ## A kit and a picture
#
# A *kit* is all that a video is made with: a transformer, a head that reads tracks, an autoencoder, a text encoder;
# in ours, too, networks that find what lies under a finger (below) and what is behind it (notebook 02), and a last touch
# that gives frames the picture's own pixels back (notebook 10).
# `load` is the one door to kits: the tiny one comes with the package, `"wan2.2-5b"` would come through it as well. The
# *drawn world* draws clips of simple things and knows where each of their points goes; it is all that the tiny kit was
# trained on. The picture is the first frame of such a clip, from seeds that no training has touched.

# %%
from msk import viz
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
scene = World(kit.geometry, level="calm").sample(1, frames=1, seed=HELD_OUT + 7)
picture, prompt = viz.image(scene.frames[0, 0]), scene.captions[0]
print(prompt)
picture.resize((288, 288))

# %% [markdown]
# ## Where is the thing?
#
# A *track* is a point and the way it goes, frame by frame. The world knows which of its layers each pixel belongs to, so we
# need not click: of a grid of points over the picture, these lie on the kite. They shall all go the same way, over a hill
# to the left.

# %%
import torch

points = grid_points(kit.geometry, 32, 32)                                  # [1, 1024, 2], pixels, x then y
layer = scene.scene.track(points)[2][0]                                     # 0 is the ground, 1 the first thing
thing = points[0, layer == 1]                                               # [N, 2]
angle = torch.linspace(0, torch.pi, 45)
way = torch.stack([-20 * (1 - angle.cos()), -18 * angle.sin()], dim=-1)     # [T, 2]: how far from where it began
whole = thing + way[:, None]                                                # [T, N, 2]

# %% [markdown]
# Once all of these points, and once only the nine nearest to their middle, as a hand that says little. Each track carries
# a number, its *id*, by which the model tells it from the others.

# %%
from msk.motion import draw_ids

near = (thing - thing.mean(dim=0)).norm(dim=-1).argsort()[:9]               # the nine in the middle
ids = draw_ids(1, len(thing), kit.preset.tracks.max_id, torch.Generator().manual_seed(0))
asked = {"the whole kite": msk.Tracks.of(whole, ids=ids),
         "nine points of it": msk.Tracks.of(whole[:, near], ids=ids[:, :9])}
print({name: tracks.ids.shape[1] for name, tracks in asked.items()}, "tracks")

# %% [markdown]
# ## Pull
#
# The stream makes a *chunk* at a time, a fraction of a second: `frames_wanted` says how many pixel frames the next one
# covers, `step` takes the tracks over just those and gives the frames. With `None` nothing is asked and the world does as
# it likes.


# %%
def play(tracks):
    stream, chunks, at = msk.Stream(kit, prompt, picture, seed=0), [], 0
    while at < 45:
        n = stream.frames_wanted
        chunks.append(stream.step(tracks and tracks.frames(at, at + n))[0].float().cpu())
        at += n
    return torch.cat(chunks)                                                # [45, 3, H, W] in [0, 1]


made = {name: play(tracks) for name, tracks in (asked | {"nothing": None}).items()}

# %% [markdown]
# The same picture, the same noise; only the tracks differ. The first frame is the given picture in all three, or nearly so.
# Nine points take along what lies about them, which is nearly all of the kite. The end of its thin tail is too far from
# them: it stays behind. A pale rim shows where the kite was. With no tracks at all the kite soon fades to a stain: seven
# million weights are few.

# %%
nobody = msk.Tracks.empty(frames=45)
strips = [viz.strip(viz.draw_tracks(frames, asked.get(name, nobody), trail=8, radius=0.6, zoom=2, count=4))
          for name, frames in made.items()]
viz.grid(strips, [f"asked to move: {name}" for name in made])

# %% [markdown]
# And as it moves: the whole kite, nine points of it, nothing.

# %%
three = viz.side_by_side(*made.values())
viz.Moving(three, kit.geometry.fps, width=864, about="a kite: all of it is pulled, nine points of it are, nothing is")

# %% [markdown]
# ## One touch, a whole thing
#
# Nobody draws points all over a kite by hand. So the canvas looks at what lies under your finger: a small network has
# learned on drawn scenes which pixels go together (`kit.cut`; where it is not sure, colours decide, `msk.cutter`).
# `kit.whole` takes the hand's one track and adds those of the thing under it, all over it and along its rim, and others that
# hold the rest.

# %%
import numpy as np

finger = thing[near[0]]                                                     # one point, in the middle of the kite
mask = kit.cut(np.asarray(picture), complex(*finger.tolist()))              # [H, W] bool
told = kit.whole(msk.Tracks.of(finger + way[:, None], ids=ids[:, :1]), picture)
print(f"one track became {told.ids.shape[1]}")
lit = scene.frames[0, 0] * (.25 + .75 * torch.from_numpy(mask))
viz.strip(torch.stack([scene.frames[0, 0], lit]), count=2, zoom=2)

# %%
viz.strip(viz.draw_tracks(play(told), told, trail=8, radius=0.6, zoom=2, count=4))

# %% [markdown]
# ## Your turn
#
# Press on a thing and drag it: the video follows your hand while it plays. **Enter** starts and ends, **Space** pauses,
# **?** lists the keys. Nothing blocks: the engine has its own thread, so other cells run while you play. The sliders beside
# it work from the next chunk on: denoising steps, chunks remembered for good (sink) and for a while (window), and guidance
# on top of what the student has learned. `stage` alone is the stage without them.

# %%
stage = msk.Stage(kit, picture, prompt)
stage.with_controls()

# %% [markdown]
# ## Things to try
#
# 1. Pull the thing out of the picture and back in. Does the same thing come back?
# 2. Give the tail a way of its own: let the lowest points swing to and fro while the rest goes on. Does it wag?
# 3. Pin the ground with `msk.Tracks.grid(kit.geometry, spacing=24, frames=45)` joined to the kite by `.concat` (with ids of
#    its own, and none in its way). Is the ground calmer now?
# 4. Write ", night falls" or ", ripples running" behind the prompt. What can the text do that no track can?
#
# Solutions: [solutions/00_tour.py](solutions/00_tour.py).
