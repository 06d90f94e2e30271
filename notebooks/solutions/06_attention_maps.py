# %% [markdown]
# # 06 · Attention maps: solutions

# %%
import torch

import msk
from msk import viz
from msk.attention import capture, chunk_mask
from msk.cache import ChunkCache
from msk.flow import add_noise
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny", dtype=torch.float32)
clip = World(kit.geometry).sample(1, frames=45, seed=HELD_OUT + 27)
cond = kit.condition(clip.captions, clip.track(grid_points(kit.geometry, 12, 12)), clip.frames[:, 0].to(kit.device))
clean = kit.vae.encode(clip.frames.to(kit.device))
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(kit.device)
frames, tokens = clean.shape[1], (kit.geometry.latent_size[0] // 2) * (kit.geometry.latent_size[1] // 2)


@torch.no_grad()
def maps(level, mask=None, kind="self"):
    t = torch.full((1, frames), level, device=kit.device)
    with capture(kind) as layers:
        kit.dit(add_noise(clean, noise, t), t, cond.text, cond.motion, cond.image, mask=mask)
    return torch.cat(layers)


# %% [markdown]
# 1. A chunk of one frame, two chunks of window: each row sees itself and the two before it, the first two rows less.

# %%
mask = chunk_mask(frames=12, tokens_per_frame=1, chunk=1, sink=0, window=2)
print("a row may see:", mask.sum(dim=1).tolist())
viz.show_mask(mask, chunk=1)

# %% [markdown]
# 2. The share that stays in the frame of the token itself, at four noise levels: it grows a little as the noise goes, since
#    with a clean frame of its own a token needs the others less.

# %%
for level in (0.1, 0.5, 0.75, 0.95):
    share = maps(level, chunk_mask(frames, tokens, 3, 1, 1, kit.device)).mean(0)
    share = share.unflatten(-1, (-1, tokens)).sum(-1).unflatten(-2, (-1, tokens)).mean(-2)
    print(f"t = {level}: {share.diagonal()[3:].mean():.0%} at its own frame (from the second chunk on)")

# %% [markdown]
# 3. Words of the caption, looked at from the tokens of the thing and from those of the ground, as a ratio. The world
#    knows which is which. The thing looks most at its own noun, by far more than the ground does; the ground looks most at
#    the word that names it.

# %%
middles = grid_points(kit.geometry, *(n // 2 for n in kit.geometry.latent_size))        # one point a token
layer_of = clip.scene.track(middles)[2][0]
looks = maps(0.75, kind="cross").mean(0).unflatten(0, (frames, tokens)).mean(0)         # [tokens, words]
words = clip.captions[0].replace(",", "").split()
for word, thing, ground in zip(words, looks[layer_of > 0].mean(0), looks[layer_of == 0].mean(0)):
    print(f"{word:12} thing {thing:.3f}  ground {ground:.3f}  ratio {thing / ground:.2f}")

# %% [markdown]
# 4. The keys of the sinks are the very same after ten chunks; those of the window have moved on.

# %%
cache, kept = ChunkCache(2, 1), []
for i in range(10):
    cache.push([(torch.full((1, 4, 1, 1), float(i)), torch.zeros(1, 4, 1, 1))])
    kept.append(cache.past()[0][0].flatten()[::4].tolist())
print("remembered after each chunk:", kept)
