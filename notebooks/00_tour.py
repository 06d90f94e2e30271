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
# of a second at a time, for as long as you like. Here we pull once by hand, look at what came, and then hand the stage to
# you. What a track is, how a model reads it and how it was trained, the notebooks after this one say.
#
# *Run time: under a minute on a CPU, a few seconds on a GPU.*

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
# A *kit* is all that a video is made with: a transformer, a head that reads tracks, an autoencoder, a text encoder.
# `load` is the one door to kits: the tiny one comes with the package, `"wan2.2-5b"` would come through it as well. The
# *drawn world* draws clips of simple things and knows where each of their points goes; it is all that the tiny kit was
# trained on. The picture is the first frame of such a clip, from seeds that no training has touched.

# %%
from msk import viz
from msk.world import HELD_OUT, World

kit = msk.load("tiny")
scene = World(kit.geometry, level="calm").sample(1, frames=1, seed=HELD_OUT + 7)
picture, prompt = viz.image(scene.frames[0, 0]), scene.captions[0]
print(prompt)
picture.resize((288, 288))

# %% [markdown]
# ## Where is the thing?
#
# The world knows which of its layers each pixel belongs to, so we need not click: the handle goes to the middle of the first
# thing. A *drag* is then a small square of tracks around the handle that moves as one, here to the left.

# %%
import torch

from msk.motion import draw_ids
from msk.world import grid_points

points = grid_points(kit.geometry, 32, 32)
layer = scene.scene.track(points)[2][0]                     # 0 is the ground, 1 the first thing
handle = points[0, layer == 1].mean(0)
path = torch.stack([handle, handle + torch.tensor([-0.3 * kit.geometry.width, 0.0])])
drag = msk.Tracks.drag(path, frames=45, spacing=0.06 * kit.geometry.width, size=3)
drag = drag.with_ids(draw_ids(1, 9, kit.preset.tracks.max_id))

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
    return torch.cat(chunks)                                # [45, 3, H, W] in [0, 1]


dragged, left_alone = play(drag), play(None)

# %% [markdown]
# Above, dragged; below, left alone, from the same noise. The first frame is the given picture in both. The body of the
# kite goes where it was pulled; its thin tail, on which no track lies, gets lost. Left alone, the kite loses its shape.
# (Seven million weights are few.)

# %%
seen = viz.draw_tracks(dragged, drag)
viz.grid([viz.strip(seen, count=5), viz.strip(left_alone, count=5)], ["dragged", "left alone"])

# %% [markdown]
# And as it moves, left dragged, right left alone:

# %%
both = viz.side_by_side(dragged, left_alone)
viz.Moving(both, kit.geometry.fps, width=576, about="left: the kite is dragged; right: it is left alone")

# %% [markdown]
# ## Your turn
#
# Press on a thing and drag it: the video follows your hand while it plays. **Enter** starts and ends, **Space** pauses.
# Nothing blocks: the engine has its own thread, so other cells run while you play. The sliders beside it work from the next
# chunk on: denoising steps, chunks remembered for good (sink) and for a while (window), and guidance on top of what the
# student has learned. `stage` alone is the stage without them.

# %%
from msk.live.widget import Stage

stage = Stage(kit, picture, prompt)
stage.with_controls()

# %% [markdown]
# ## Things to try
#
# 1. Pull the thing out of the picture and back in. Does the same thing come back?
# 2. Give the drag `size=1`: one point. What does the rest of the thing do?
# 3. Pin the ground with `msk.Tracks.grid(kit.geometry, spacing=24, frames=45)` joined to the drag by `.concat` (with ids of
#    its own). What is calmer now?
# 4. Write ", night falls" or ", snow falling" behind the prompt. What can the text do that no track can?
