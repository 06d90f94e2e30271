# %% [markdown]
# # 09 · Sinks: solutions

# %%
from dataclasses import replace
from time import perf_counter

import torch

import msk
from msk import camera, viz
from msk.cache import ChunkCache
from msk.evaluate import psnr
from msk.flow import schedule
from msk.motion import draw_ids
from msk.stream import denoise, given
from msk.world import HELD_OUT, World

kit = msk.load("tiny")
config, geometry = kit.preset.stream, kit.geometry
clip = World(geometry).sample(1, frames=1, seed=HELD_OUT + 15)
picture = viz.image(clip.frames[0, 0])


def numbered(tracks):
    return tracks.with_ids(draw_ids(1, tracks.ids.shape[1], kit.preset.tracks.max_id, torch.Generator().manual_seed(3)))


def play(tracks, **changes):
    stream, made, at = msk.Stream(kit, clip.captions[0], picture, seed=0, config=replace(config, **changes)), [], 0
    while at + stream.frames_wanted <= tracks.xy.shape[1]:
        n = stream.frames_wanted
        made.append(stream.step(tracks.frames(at, at + n))[0].float().cpu())
        at += n
    return torch.cat(made)


# %% [markdown]
# 1. Every chunk begins anew from noise, so jumps lie between chunks: after frames 8, 20, 32, ... (the decoder still hands
#    over its own past, so pixels stay smooth; what jumps is the content). Compare the jump at the seams with the mean, with
#    a memory and without.

# %%
pinned = numbered(msk.Tracks.grid(geometry, 8, 141))
step = {name: (made[1:] - made[:-1]).square().mean(dim=(1, 2, 3)).sqrt()
        for name, made in (("nothing remembered", play(pinned, sink=0, window=0)), ("sink 1, window 1", play(pinned)))}
seams = torch.arange(8, 140, 12)
for name, change in step.items():
    print(f"{name}: change from frame to frame {change.mean():.4f}, at the seams {change[seams].mean():.4f}")

# %% [markdown]
# 2. The sink shows a scene that is gone: an anchor against drift, and a weight at the foot of whoever wants to leave
#    (App. F names it a limit of the method). Look at the ground that comes into view.

# %%
away = numbered(camera.pan(geometry, 141, right=1.5 * geometry.width, grid=(12, 24)))
viz.grid([viz.strip(play(away, sink=s), count=7) for s in (1, 0)], ["panning, sink 1", "panning, no sink"])

# %% [markdown]
# 3. With a new sink the stream has a new anchor, errors and all: it follows a changed scene and forgets the old one for
#    good.

# %%
cache, dice = ChunkCache(1, 1), torch.Generator().manual_seed(0)
cond = kit.condition(clip.captions, pinned, clip.frames[:, 0])
text, made, past_pixels = kit.dit.read(cond.text), [], None
for f in range(0, cond.motion.shape[1] - 2, 3):
    now = slice(f, f + 3)
    part = cond.motion[:, now], given(kit.dit, cond.image, now)
    noise = torch.randn(1, 3, kit.dit.config.latent_channels, *geometry.latent_size, generator=dice).to(kit.device)
    past = cache.past()
    with torch.no_grad():
        x0 = denoise(kit.dit, noise, text, *part, past, schedule(config.steps, config.time_shift), generator=dice)
        cache.push(kit.dit.remember(x0, text, *part, past=past))
        frames, past_pixels = kit.vae.decode(x0, past_pixels)
    if f == 15:
        cache._sinks = [cache._recent[-1]]
    made.append(psnr(frames[0].float().cpu(), clip.frames[0]).mean().item())
print("PSNR against the picture, chunk by chunk; the sink is replaced after the sixth:", [round(m, 1) for m in made])

# %% [markdown]
# 4. Attention grows with the tokens that are looked at; the rest of the transformer does not, so the price of a
#    remembered chunk is small.

# %%
cost = []
for sink in range(5):
    stream = msk.Stream(kit, clip.captions[0], picture, seed=0, config=replace(config, sink=sink))
    for _ in range(sink + 3):
        stream.step()
    began = perf_counter()
    for _ in range(4):
        stream.step()
    cost.append(1000 * (perf_counter() - began) / 4)
rows, columns = (n // 2 for n in geometry.latent_size)                      # of tokens
tokens = [3 * rows * columns * (sink + 1 + 1) for sink in range(5)]
viz.curves({"a chunk of 12 frames": (tokens, cost)}, "tokens looked at", "milliseconds", f"sink 0 to 4, on {kit.device}")
