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
# # 09 · What must a stream remember?
#
# A stream that remembers everything gets slower with every chunk; one that remembers only the latest drifts, since each
# chunk copies the small errors of the one before. The paper keeps two things: the latest chunk, and the very first one,
# for good: the *sink*. We write that loop by hand, train a small student in the paper's layout, let it run far beyond the
# length of its training with sink and without, vary what is remembered and how much is made at once, and then ask the
# shipped student, for which a sink changes nothing, why not. The last picture is the long run, with and without the sink.
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
# ## By hand: the loop
#
# For each chunk: a few steps from noise to data, looking at the past; then one more pass over the *clean* chunk, whose
# keys and values are remembered (Sec. 3.2). The cache holds the first $S$ chunks and the last $W$, so it stops growing
# after $S + W$ of them. (The tiny kit can spare that pass and remember what its last step saw: `clean=False` in its
# preset. Here we do as the paper does.)

# %%
from dataclasses import replace

import torch

from msk import viz
from msk.evaluate import by_student, psnr
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

# %%
kit = msk.load("tiny", dtype=torch.float32)
config, geometry = replace(kit.preset.stream, clean=True), kit.geometry
clip = World(geometry).sample(1, frames=33, seed=HELD_OUT + 15)
cond = kit.condition(clip.captions, clip.track(grid_points(geometry, 12, 12)), clip.frames[:, 0])
shape = 1, geometry.latent_frames(33), kit.dit.config.latent_channels, *geometry.latent_size
noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kit.device)

# %%
from msk.cache import ChunkCache
from msk.flow import schedule
from msk.stream import denoise, given

cache, text, held, by_hand = ChunkCache(config.sink, config.window), kit.dit.read(cond.text), [], []
dice, sigmas = torch.Generator().manual_seed(1), schedule(config.steps, config.time_shift)
for f in range(0, shape[1], config.chunk):
    now = slice(f, f + config.chunk)
    motion, image, past = cond.motion[:, now], given(kit.dit, cond.image, now), cache.past()
    by_hand.append(denoise(kit.dit, noise[:, now], text, motion, image, past, sigmas, generator=dice))
    with torch.no_grad():
        cache.push(kit.dit.remember(by_hand[-1], text, motion, image, past=past))
    held.append(cache.nbytes / 2**20)
print("MiB remembered after each chunk:", [round(h, 2) for h in held])

# %% [markdown]
# ## With msk
#
# `rollout` is this loop as a generator; the demo plays it, and the student was trained through it.

# %%
dice = torch.Generator().manual_seed(1)
rolled = list(msk.rollout(kit.dit, noise, text, cond.motion, cond.image, config, generator=dice))
same = torch.allclose(torch.cat(by_hand, 1).float(), torch.cat(rolled, 1).float(), atol=1e-3)
print(f"by hand and rollout agree: {same} | {len(rolled)} chunks")

# %% [markdown]
# ## A student that has only its memory
#
# In the paper's layout the given picture stands in the first chunk alone. After that, whoever wants to know what the scene
# looked like must remember it. The shipped student is shown the picture beside *every* chunk, so it is no help here. We
# train another from nothing, for twenty seconds: pictures of 32 x 32 pixels, the picture given once, tracks that carry ids
# and nothing else. It learns by the causal regression of notebook 07, on true clips of four chunks; each batch has another
# sink and window, so one student serves all.

# %%
from msk.train import lesson

preset = lesson.paper_layout(replace(lesson.small(kit.preset), stream=config))
batches = lesson.drawn_batches(preset, kit.vae, count=16, batch=6, latent_frames=12, clips=64, dense=1.0)
models = lesson.teach_causal(preset, batches, steps=50)
small = lesson.as_kit(models, preset, kit.vae, models.dit)

# %% [markdown]
# ## Nothing should happen
#
# The simplest long run: pin everything. A grid of tracks says of all points that they stay, so the right video is
# known, the given picture again and again, and all that comes otherwise is drift. Twelve chunks are three times the length
# of training. Four held-out scenes, the same noise for each setting.

# %%
T = geometry.pixel_frames(12 * config.chunk)
scenes = World(preset.geometry).sample(4, frames=1, seed=HELD_OUT + 8)
pins = msk.Tracks.grid(preset.geometry, 4, T)                               # a point every four pixels
ids = draw_ids(4, pins.ids.shape[1], preset.tracks.max_id, torch.Generator().manual_seed(3))
pins = msk.Tracks(pins.xy.expand(4, -1, -1, -1), pins.visible.expand(4, -1, -1), ids)


# %%
def streamed(kit, clips, tracks, frames, **changes):
    other = replace(kit, preset=replace(kit.preset, stream=replace(config, **changes)))
    return by_student(other, clips.captions, clips.frames[:, 0].to(kit.device), tracks, frames, seed=0).cpu()


memories = {"sink 1, window 1": {}, "no sink, window 1": dict(sink=0), "no sink, window 6": dict(sink=0, window=6),
            "sink 1, window 3": dict(window=3)}
still = {name: streamed(small, scenes, pins, T, **changes) for name, changes in memories.items()}
drift = {name: psnr(made, scenes.frames).mean(0) for name, made in still.items()}

# %%
seconds, marks = torch.arange(T) / geometry.fps, {"length of training": 45 / geometry.fps}
by_chunk = lambda line: torch.stack([part.mean() for part in line[9:].split(12)])
middles = by_chunk(seconds)
viz.curves({name: (middles, by_chunk(line)) for name, line in drift.items()}, "seconds of video",
           "PSNR against the picture, dB", f"everything is pinned, 4 scenes: who forgets? ({kit.device})", marks)

# %% [markdown]
# With the sink the line stays all but level, however long the video. Without, it falls as soon as the first chunk has left
# the window. A longer window puts that off and slows it, but the line keeps falling: six chunks forget the first one, too,
# only later. And beside a sink, more window is *worse*: errors gather in it (Fig. 6). The paper's own choice, one and one,
# comes out on top.
#
# ### Live
#
# Go forward in time: the given picture, with the sink, and without it. (A model of twenty seconds paints blurs. Look at
# the colours.)


# %%
def later(second=5.5, without="no sink, window 1", scene=2):
    at = min(T - 1, int(second * geometry.fps))
    shown = {"given": scenes.frames[scene, 0], "sink 1, window 1": still["sink 1, window 1"][scene, at],
             without: still[without][scene, at]}
    pictures = {name: viz.image(frame) for name, frame in shown.items()}
    return viz.panels(pictures, width=2, title=f"after {second:.1f} s")


viz.live(later, second=(0.0, 5.5, 0.5), without=list(memories)[1:], scene=(0, 3))

# %% [markdown]
# ## Things move
#
# The world can draw clips of any length, with exact tracks, so we can ask for twice the length of training and compare with
# what truly happened, as the paper does with clips of up to 241 frames (Table 4).

# %%
long = World(preset.geometry).sample(4, frames=93, seed=HELD_OUT + 8)       # 8 chunks of 3 latent frames; trained on 4
tracks = long.track(grid_points(preset.geometry, 12, 12, 4))
tracks = tracks.with_ids(draw_ids(4, 144, preset.tracks.max_id, torch.Generator().manual_seed(4)))
near = {name: psnr(streamed(small, long, tracks, 93, **changes), long.frames)
        for name, changes in (memories | {"sink 2, window 1": dict(sink=2)}).items()}

# %%
print(f"{'':20}{'PSNR, dB':>10}{'last third':>12}   4 held-out clips of 93 frames, on {kit.device}")
for name, line in near.items():
    print(f"{name:20}{line[:, 1:].mean():>10.2f}{line[:, -31:].mean():>12.2f}")

# %% [markdown]
# Beside it the paper's own (Table 4, up to 241 frames: LPIPS, how unlike the pictures look, and end-point error in
# pixels, both lower is better; frames a second on one H100 without the tiny decoder):
#
# | sink, window, chunk | LPIPS | EPE | frames/s |
# |---|---|---|---|
# | 1, 1, 3 | 0.464 | 25.34 | 16.92 |
# | 0, 1, 3 | 0.501 | 26.64 | 17.43 |
# | 1, 1, 1 | 0.597 | 76.21 | 13.26 |
# | 0, 6, 3 | 0.480 | 28.09 | 14.96 |
#
# What is remembered comes out in the paper's order: sink 1 and window 1 first, no sink and window 1 last, and a long window
# between them.
#
# ## Chunk and steps
#
# Two more choices, and what each costs. A larger *chunk* gives its frames more of each other to look at, and whoever
# drags waits longer for them. More *steps* are more passes for each chunk. A student of twenty seconds paints too vaguely
# for its points to be found again, so this is asked of the shipped one: how far it misses its tracks on a held-out clip
# (end-point error, EPE), and how long it takes, with a clean pass after each chunk, as in the paper.

# %%
from time import perf_counter

from msk import trackers
from msk.evaluate import epe

fast, every = msk.load("tiny"), list(range(0, 21, 5))                       # fastest number type; frames looked at
one = World(geometry).sample(1, frames=37, seed=HELD_OUT + 8)
told = one.track(grid_points(geometry, 24, 24))
told = told.with_ids(draw_ids(1, 576, kit.preset.tracks.max_id, torch.Generator().manual_seed(5)))
truth, follow = one.frames[:, every], lambda at: one.track(at).when(every)
points = trackers.trackable(truth, follow, 12, torch.Generator().manual_seed(0))


# %%
def tried(**changes):
    stream = msk.Stream(fast, one.captions[0], viz.image(one.frames[0, 0]), config=replace(config, **changes))
    made, spent, at = [], [], 0
    while at < 21:
        began, until = perf_counter(), at + stream.frames_wanted
        made.append(stream.step(told.frames(at, until))[0].float().cpu())
        stream.settle()
        spent.append(perf_counter() - began)
        at = until
    found = trackers.register(torch.cat(made)[None, every], truth, points.xy)
    wait = min(spent[1:])                                                   # seconds a chunk, at best
    return epe(found, points).mean().item() / geometry.width, wait, len(made[-1]) / wait


# %%
sizes, counts, usual = (1, 3, 5), range(1, 5), tried(chunk=3, steps=3)
chunk = torch.tensor([usual if n == 3 else tried(chunk=n) for n in sizes]).T
steps = torch.tensor([usual if n == 3 else tried(steps=n) for n in counts]).T
for knob, numbers, ours in (("chunk", sizes, chunk), ("steps", counts, steps)):
    for n, (off, wait, fps) in zip(numbers, ours.T.tolist()):
        print(f"{knob} {n}: EPE {off * geometry.width:.2f} px; {1000 * wait:.0f} ms a chunk, {fps:.0f} frames a second")

# %% [markdown]
# In EPE all seven are alike, and below what the ruler itself can tell (a tenth of a pixel, notebook 11). So only the time is
# drawn for the steps; for the chunk EPE too, beside the paper's (Table 4; one H100). Each is a multiple of what three frames
# and three steps give:

# %%
said = "EPE", "time a chunk", "frames a second"
paper = torch.tensor([[76.21, 25.34], [0.30, 0.70], [13.26, 16.92]])        # chunk 1, chunk 3
chunk, step = chunk / chunk[:, 1:2], steps / steps[:, 2:3]
by_size = {name: {f"ours, {fast.device}": (sizes, chunk[i]), "paper": (sizes[:2], paper[i] / paper[i, 1])}
           for i, name in enumerate(said)}
by_count = {name: {f"ours, {fast.device}": (counts, step[i])} for i, name in enumerate(said) if i}
viz.grid([viz.curves_beside(by_size, "chunk, latent frames", "how much is made at once (3 frames: 1)", width=3.2),
          viz.curves_beside(by_count, "denoising steps a chunk", "how often it is looked at (3 steps: 1)", width=3.2)])

# %% [markdown]
# In time the two agree: a chunk of one frame is there sooner than one of three, and yet fewer frames come in a second, as
# each pays for its look at sink and window alone. (Beyond three the paper measured time only.) In following they do
# not. There a single frame at a time is three times worse, two steps show a visible loss, and more than three hardly a gain
# (Fig. A2b). Here, where tracks carry the picture along (notebook 02), neither decides much, and one clip is little:
# `msk eval --suite ablations --cases chunk steps` asks the same of as many as you like, and `--cases memory once` the
# questions above.
#
# ## The shipped student
#
# And that one? Pins again, with the sink and without; without it, the third chunk no longer sees the first:

# %%
ours = World(geometry).sample(1, frames=1, seed=HELD_OUT + 15)
pins = msk.Tracks.grid(geometry, 8, 33)
pins = pins.with_ids(draw_ids(1, pins.ids.shape[1], kit.preset.tracks.max_id, torch.Generator().manual_seed(3)))
for name in ("sink 1, window 1", "no sink, window 1"):
    line = psnr(streamed(kit, ours, pins, 33, **memories[name]), ours.frames)[0]
    print(f"{name:18} first chunk {line[1:9].mean():.2f} dB, third chunk {line[-12:].mean():.2f} dB")

# %% [markdown]
# No difference to be seen. It is shown the picture beside every chunk and its tracks carry parts of it (notebook 02), so
# nothing that a sink knows is ever lost. That is our way to make seven million weights do, and the price is a model that
# clings to its picture. A sink is for students that were given theirs once.
#
# ## The picture
#
# Three of the scenes, six seconds each, everything pinned: with the sink above, without it below; the first frame is the
# given picture. The things melt in either row, since a model of twenty seconds cannot hold them. What the sink keeps is
# the light and the colours of the place, and without it they wander off to something that no picture ever said.

# %%
two = list(memories)[:2]
rows = [torch.cat([scenes.frames[b], still[name][b, 12::16]]) for b in (0, 2, 3) for name in two]
chart = viz.curves({name: (middles, by_chunk(drift[name])) for name in two}, "seconds of video", "PSNR, dB",
                   f"{T} frames, everything pinned, mean of 4 scenes, on {kit.device}", marks)
viz.grid([*(viz.strip(frames, count=9, zoom=3) for frames in rows), chart], 3 * two)

# %% [markdown]
# ## Things to try
#
# 1. Remember nothing at all (sink 0, window 0). Where do the seams lie, and how do they look in `psnr` from one frame
#    to the next?
# 2. Change the scene for good: take the tracks of a camera that pans away (`msk.camera.pan`). Does the sink help now,
#    or hinder?
# 3. Make the sink forgettable: after ten chunks replace it by the latest chunk (`ChunkCache` holds it in `_sinks`).
#    What is gained and lost?
# 4. How long does a chunk take with sink 0 to 4? Draw it over the number of tokens that are looked at.
#
# Solutions: [solutions/09_sinks.py](solutions/09_sinks.py).
