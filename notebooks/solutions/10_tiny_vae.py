# %% [markdown]
# # 10 · Tiny VAE: solutions

# %%
from time import perf_counter

import torch

import msk
from msk import viz
from msk.world import HELD_OUT, World

kit = msk.load("tiny", dtype=torch.float32)
clip = World(kit.geometry).sample(1, frames=45, seed=HELD_OUT + 15)
latents = kit.vae.encode(clip.frames.to(kit.device))
whole = kit.vae.decode(latents)[0]
cut, at = 6, kit.geometry.span(6, 1)[0]
_, past = kit.vae.decode(latents[:, :cut])


@torch.no_grad()
def onwards(past):
    return (kit.vae.decode(latents[:, cut:], past)[0] - whole[:, at:]).abs().amax(dim=(0, 2, 3, 4)).cpu()


# %% [markdown]
# 1. Blocks before the first growth in time remember one latent frame each, later ones less; added up, that is how far a
#    decoder of this shape *could* reach. How far it does is what its training found useful.

# %%
apart = onwards([torch.zeros_like(p) for p in past])
last = (apart > 1 / 255).nonzero()
rates = torch.tensor([1, *kit.preset.vae.times[:-1]]).cumprod(0)
reach = sum(count / rate for count, rate in zip(kit.preset.vae.stages[1], rates.tolist()))
print(f"visible for {int(last.max()) + 1 if len(last) else 0} pixel frames; could reach {4 * reach:.0f}")
viz.curves({"largest difference": apart}, "pixel frames after the cut", "of 1", "a forgotten past", log=True)

# %% [markdown]
# 2. A ghost of the other clip, for as long as memory reaches.

# %%
other = World(kit.geometry).sample(1, frames=45, seed=HELD_OUT + 20).frames.to(kit.device)
wrong = kit.vae.decode(kit.vae.encode(other)[:, :cut])[1]
print("largest difference, frame by frame:", [f"{d:.2f}" for d in onwards(wrong)[:8]])
viz.strip(kit.vae.decode(latents[:, cut:], wrong)[0][0, :6], zoom=2)


# %% [markdown]
# 3. The work is the same; smaller pieces pay more often for what a call costs by itself.

# %%
@torch.no_grad()
def seconds(size):
    began, past = perf_counter(), None
    for part in latents.split(size, dim=1):
        _, past = kit.vae.decode(part, past)
    return perf_counter() - began


seconds(1)
for size in (1, 3, 12):
    print(f"{size:2} latent frames at a time: {1000 * seconds(size) / 45:.2f} ms a frame on {kit.device}")

# %% [markdown]
# 4. Not at all, from the second latent on: this encoder has no memory block, so it sees each group of four frames by itself.
#    One with memory would have to be handed its past, as the decoder is.

# %%
half = kit.vae.encode(clip.frames[:, at - 1:].to(kit.device))[:, 1:]        # its first latent is one frame, as always
print("decoder, cut with its past:", onwards(past).max().item())
print("encoder, cut:", [f"{d:.3f}" for d in (half - latents[:, cut:]).abs().amax(dim=(0, 2, 3, 4)).tolist()])
