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
# # 01 · What is a track, and what becomes of it when it hides?
#
# All motion this model is asked for comes as tracks: points, and where they are in every frame. They look harmless. The
# trouble begins when a point goes behind something, leaves the picture, or was never drawn. At the end stands one
# picture: a clip, and below it the *score* of its tracks, as in music: one row a track, one column a frame, and where a
# track is silent, the colour says why. The model sees that score without its colours.
#
# Two words first. The model does not work on pixels but on *latents*, the output of an autoencoder: here a *latent cell*
# stands for 8 x 8 pixels, and a *latent frame* for four pixel frames (the first one for a single frame).
#
# *Run time: seconds on a CPU; no weights, no GPU needed.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

# %% [markdown]
# ## By hand: a ball behind a post
#
# A ball crosses the picture. The track of its middle is two lists: a place `xy` for every frame, in pixels, x to the
# right and y down; and whether the point can be *seen* there. A place exists even behind the post; only nobody could
# have read it off the video.

# %%
import torch

t = torch.arange(45)                                        # pixel frames
x, y = 10 + 1.8 * t, 48 + 14 * torch.sin(t / 7)             # pixels
seen = (x < 40) | (x > 58)                                  # the post stands from 40 to 58
xy = torch.stack([x, y], dim=-1)[:, None]                   # [T, N, 2] with N = 1

# %%
from msk import viz

down, right = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
ball = (right - x.view(-1, 1, 1)) ** 2 + (down - y.view(-1, 1, 1)) ** 2 < 8**2              # [T, H, W]
frames = torch.where(ball[:, None], torch.tensor([0.20, 0.45, 0.70]).view(3, 1, 1), torch.tensor(0.92))
frames[..., 40:58] = 0.6
viz.strip(frames, count=6)

# %% [markdown]
# ## With msk
#
# `Tracks` holds just these, batched, and one thing more: a number for each track, its *id*. The id says which track is
# which, so that the model can tell that the point which comes out on the right is the one that went in on the left.
# Here is the ball with its track drawn in; a hidden point is not drawn.

# %%
tracks = msk.Tracks.of(xy, seen[:, None])
for name in ("xy", "visible", "ids"):
    print(f"{name:8} {list(getattr(tracks, name).shape)}")
viz.strip(viz.draw_tracks(frames, tracks, zoom=2, count=6))

# %% [markdown]
# ## A world that knows
#
# For real videos a tracker has to guess where points went (the paper: CoTracker3, 50 x 50 points). The drawn world of
# this kit needs no guess: each of its layers has an exact map to the screen, and a point belongs to the nearest thing
# that is solid there. So occlusions are exact as well.

# %%
from msk.world import HELD_OUT, World, grid_points

geometry = msk.PRESETS["tiny"].geometry                     # 128 x 128 pixels, cells of 8, four frames a latent frame
clip = World(geometry, level="full").sample(1, frames=45, seed=HELD_OUT + 29)
points = grid_points(geometry, 7, 7)                        # [1, 49, 2] in the first frame
exact = clip.track(points)
print(*clip.captions[0].split(" and "), sep=",\n    and ")
print(f"seen: {exact.visible.float().mean():.0%} of all places")

# %%
viz.strip(viz.draw_tracks(clip.frames[0], exact, zoom=3, count=4))

# %% [markdown]
# ## Four reasons, one silence
#
# Why does a track say nothing? It is *behind* something; it is *outside* the picture; the hand has *not drawn* it yet;
# the hand has *let go*. All four come to the model as the same zero. The visibility enters as a factor (Eq. 1):
#
# $$c_m[t,\ \lfloor y/s \rfloor,\ \lfloor x/s \rfloor] = v[t, n]\ \phi_n$$
#
# with $v$ = 1 where track $n$ is seen in frame $t$ and 0 elsewhere, $\phi_n$ the numbers that stand for its id, and $s$
# the pixels of one latent cell. Notebook 02 builds this map; here we only count. $\phi$ has a squared length of half its
# width, so the squared length of a cell tells, roughly, how many tracks lie in it.

# %%
from msk.config import TrackConfig
from msk.motion import splat

config = TrackConfig()                                      # as in the paper: 64 for an id, the cell a point lies in
stamps = splat(exact, geometry, config)[0]                  # [T, id_dim, h, w]
told = (stamps.square().sum(dim=1) > 0).flatten(1).sum(dim=1)
viz.curves({"tracks that are seen": exact.visible[0].sum(dim=1), "cells that say something": told},
           "pixel frame", "count", "hidden tracks leave no mark")

# %% [markdown]
# That is why a model can mistake "behind something" for "nobody asks any more", and why things pop in and out when a
# hand lets go. The paper's cure (MotionStream): in the second stage of training, tracks fall silent in the middle of a clip
# at random, with a chance of 0.2, so that the model learns to go on by itself. In code:

# %%
masked = exact.hide(range(17, 29))                          # three latent frames of silence
print("seen in frames 16, 17, 28, 29:", masked.visible[0].sum(dim=1)[[16, 17, 28, 29]].tolist())

# %% [markdown]
# ## Where tracks come from
#
# From a hand (`drag`), from the wish that something stays (`grid`), from a camera path (`camera`), and from another
# video, through a tracker: then the motion of one video moves another (Sec. 4.2). Each is drawn below with the way that
# it goes.

# %%
from msk import camera, trackers

some = points[:, ::3]
found = trackers.track(clip.frames, some, method="flow")
kinds = {"drag": msk.Tracks.drag([[25, 70], [40, 30], [75, 40]], 45, spacing=8, size=3),
         "grid: stay": msk.Tracks.grid(geometry, 16, 45),
         "camera: zoom in": camera.zoom(geometry, 45, 1.5, grid=(6, 6)),
         "exact, from the world": clip.track(some), "tracked in the video": found}
paper = torch.full((45, 3, geometry.height, geometry.width), 0.95)
last = lambda each: viz.draw_tracks(paper, each, trail=45, zoom=3, count=2)[-1]
viz.panels({name: viz.image(last(each)) for name, each in kinds.items()})

# %% [markdown]
# How good is the tracker that comes with the kit? Measured as in the paper, by the *end-point error*: the mean distance
# in pixels, over the points that are truly seen.

# %%
from msk.evaluate import epe

truth = clip.track(some)
error, agree = epe(found.xy, truth), (found.visible == truth.visible).float().mean()
print(f"end-point error: mean {error.mean():.2f}, median {error.median():.2f} pixels of {geometry.width}; "
      f"it agrees on who is hidden in {agree:.0%} of all places")

# %% [markdown]
# The mean is far above the median: the points that the tracker lost are far off, and the others are off by some pixels as
# well. With exact tracks, none of that gets into training.
#
# ## A stream takes tracks in slices
#
# A stream makes a chunk of three latent frames at a time; the first latent frame is one pixel frame and each later one
# four. So it asks for the tracks of 9 pixel frames, then of 12, 12, ...: never for what comes after the chunk (Sec.
# 3.2).

# %%
for chunk in range(4):
    first, last = geometry.span(3 * chunk, 3)
    part = exact.frames(first, last)
    seen = part.visible.float().mean()
    print(f"chunk {chunk}: frames {first:2} to {last - 1:2}, xy {list(part.xy.shape)}, seen {seen:.0%}")

# %% [markdown]
# ## Live
#
# Move through the clip, and let all tracks fall silent for a while. On the left what a viewer knows, on the right what
# the model is told: how many tracks lie in each latent cell.


# %%
def look(frame=20, silent_from=30, silent_for=8):
    now = exact.hide(range(silent_from, min(45, silent_from + silent_for)))
    film = viz.draw_tracks(clip.frames[0, :frame + 1], now.frames(0, frame + 1), zoom=3, count=2)[-1]
    count = splat(now, geometry, config)[0, frame].square().sum(dim=0) / (config.id_dim / 2)
    return viz.panels({f"frame {frame}": viz.image(film),
                       "told (bright: more tracks)": viz.image((count / 2).expand(3, -1, -1).clamp(0, 1))}, width=2.8)


viz.live(look, frame=(0, 44), silent_from=(0, 44), silent_for=(0, 20))

# %% [markdown]
# ## The picture
#
# The clip and its score. Blue: the track is heard. Orange: it is hidden behind something, but still within the picture.
# Grey: it has left the picture. For the model, orange and grey are the same.

# %%
film = viz.strip(viz.draw_tracks(clip.frames[0], exact, zoom=2, count=4))
notes = viz.score(exact, (geometry.height, geometry.width), "49 tracks over 45 frames: who is heard, and why not")
viz.grid([film, notes])

# %% [markdown]
# ## Things to try
#
# 1. Which track of the clip is silent for the longest time, and does it come back? Draw it alone (`Tracks.of` on a
#    slice).
# 2. Take the points from the *last* frame instead: `clip.track(points, at=44)`. Which part of the score empties now?
# 3. Play the drag in half as many frames, and in twice as many, with `resample`. What happens to its speed in pixels a
#    frame?
# 4. Save the tracks as `.json` and load them again. Is anything lost? (`save`, `Tracks.load`)
#
# Solutions: [solutions/01_tracks.py](solutions/01_tracks.py).
