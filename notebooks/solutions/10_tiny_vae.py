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
# 4. Not at all, from the second latent on: this encoder has no memory block, so it sees each group of four frames by
#    itself. One with memory would have to be handed its past, as the decoder is.

# %%
half = kit.vae.encode(clip.frames[:, at - 1:].to(kit.device))[:, 1:]        # its first latent is one frame, as always
print("decoder, cut with its past:", onwards(past).max().item())
print("encoder, cut:", [f"{d:.3f}" for d in (half - latents[:, cut:]).abs().amax(dim=(0, 2, 3, 4)).tolist()])

# %% [markdown]
# 5. After forty steps they lie close, and squares alone even score a little higher in PSNR (23.6 against 22.8 dB; EPE 1.8
#    pixels either way): both are blurs still. Squares are content with a blur, the mean of what it might be, and the
#    steps between neighbours are not; whether that pays, so short a training does not show. Try ten times as many.

# %%
from msk import trackers
from msk.evaluate import epe, psnr
from msk.tinyvae import TinyVAE
from msk.train import lesson
from msk.train import vae as stage
from msk.train.loop import Learner

held, every = World(kit.geometry).sample(2, frames=21, seed=HELD_OUT + 102), list(range(0, 21, 4))
coded = kit.vae.encode(held.frames.to(kit.device))
true = held.frames[:, every]
points = trackers.trackable(true, lambda at: held.track(at).when(every), 12, torch.Generator().manual_seed(0))
drawn = stage.clips(kit.geometry, batch=12, frames=5, crop=0.25, device=kit.device)
batches = [next(drawn) for _ in range(8)]


def squares(vae, frames):
    latents = vae.encode(frames)
    decoded = vae.decode(latents + 0.05 * torch.randn_like(latents), clamp=False)[0]
    return 4 * (decoded.float() - frames).square().mean(), {}


def trained(loss_of):
    torch.manual_seed(0)
    vae = TinyVAE(kit.preset.vae).to(kit.device)
    vae.load_state_dict(vae.state_dict() | {k: v for k, v in kit.vae.state_dict().items() if "decoder" not in k})
    vae.encoder.requires_grad_(False)
    learner = Learner(vae, 2e-3, ema=0.9, muon=lambda name, p: p.ndim == 4, muon_lr=8e-3)
    for _ in lesson.taught(learner, lambda frames: loss_of(vae, frames), batches, steps=40):
        pass
    with torch.no_grad():
        return vae.decode(coded)[0][:, every].cpu()


made = {"squares alone": trained(squares),
        "and steps": trained(lambda vae, frames: stage.vae_loss(vae, frames, 0.05, calibrated=True)[:2])}
for name, frames in made.items():
    off = epe(trackers.register(frames, true, points.xy), points).mean()
    print(f"{name:14} {psnr(frames, true)[:, 1:].mean():.2f} dB, EPE {off:.2f} px, on {kit.device}")
viz.grid([viz.strip(frames[:, [2, 5]].flatten(0, 1), zoom=2) for frames in (true, *made.values())], ["true", *made])
