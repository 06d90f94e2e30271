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
# # 10 · How do you decode a stream, cut anywhere, and get the same frames?
#
# The transformer works on latents; somebody has to turn them into pixels, a chunk at a time, without seams, and fast.
# In the paper the full decoder takes about half of a chunk's time, and a tiny one brings 16.7 frames a second to 29.5
# (App. A). We write its one idea by hand, a memory of a single frame, cut a real clip wherever you like, and train such a
# decoder from nothing. The last picture shows the frames around a cut, with the past and without, and how far each way is
# from the uncut clip.
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
# ## By hand: a memory of one frame
#
# A layer of the tiny decoder is a 2D convolution that sees its input of now **and its own input of one frame before**
# (a memory block, after TAEHV, a public tiny autoencoder for Wan). Without the space, one number a frame, it is this:
#
# $$y_t = \mathrm{relu}(a\,x_t + b\,x_{t-1})$$
#
# What came before the first frame is zero. To go on later, hand over the last input. It is a value, taken in and given
# out: the layer itself remembers nothing.

# %%
from dataclasses import replace

import torch


def layer(x, before):
    seen = torch.cat([before, x[:-1]])                                      # the frame before, for every frame
    return torch.relu(0.7 * x - 0.5 * seen), x[-1:]                         # the output, and what to hand over


# %%
x, nothing = torch.randn(20, generator=torch.Generator().manual_seed(0)), torch.zeros(1)
whole, _ = layer(x, nothing)
pieces, before = [], nothing
for part in x.split([3, 1, 7, 9]):                                          # cut anywhere
    made, before = layer(part, before)
    pieces.append(made)
print("cut and whole agree:", torch.equal(torch.cat(pieces), whole))

# %% [markdown]
# ## With msk
#
# The tiny decoder stacks such blocks, and between them enlarges: twice in rows and columns, twice in time, until one
# latent frame has become four pixel frames. TAEHV has three of them before each step; ours has them only where its training
# made use of them, before the last. Its past is a list with one frame for each block. The first latent frame of a video
# stands for one pixel frame, so there the first three are dropped: 1, then 4, 4, 4, ...

# %%
from msk import viz
from msk.tinyvae import MemBlock
from msk.world import HELD_OUT, World

kit = msk.load("tiny", dtype=torch.float32)                                 # so that "the same" can be seen
clip = World(kit.geometry).sample(1, frames=33, seed=HELD_OUT + 15)
latents = kit.vae.encode(clip.frames.to(kit.device))                        # [B, F, C, h, w]
whole, past = kit.vae.decode(latents)                                       # [B, T, 3, H, W]
print("latents", list(latents.shape), "-> frames", list(whole.shape))
print(sum(isinstance(m, MemBlock) for m in kit.vae.decoder), "memory blocks;", len(past), "frames of past,",
      f"{sum(p.nbytes for p in past) / 1024:.0f} KiB, however long the video")

# %% [markdown]
# Full against tiny is a matter of size. The paper's tiny decoder for Wan 2.1 has 9.84 million weights (App. A), TAEHV's
# layout; ours is that layout, made narrower:

# %%
from msk.tinyvae import TinyVAE

count = lambda vae: sum(p.numel() for p in vae.decoder.parameters()) / 1e6
with torch.device("meta"):
    large = TinyVAE(msk.PRESETS["wan2.1-1.3b"].vae)
print(f"decoder at the paper's widths: {count(large):.2f} million weights;",
      f"of the tiny kit: {count(kit.vae):.2f} million")

# %% [markdown]
# ### Cut anywhere
#
# Ways to decode in pieces. **With the past**, handed from piece to piece. **Forgetting** it: each piece begins from
# zeros. And the way of streams whose decoder has no memory to hand over: **decode the three latents before it again**
# and throw their frames away: twice the work, and the right state as far as three latent frames reach back. Or only one
# of them, which is enough where the decoder remembers for less than one latent frame.


# %%
@torch.no_grad()
def with_past(cuts, latents=latents):
    frames, past = [], None
    for part in latents.tensor_split(cuts, dim=1):
        made, past = kit.vae.decode(part, past)
        frames.append(made)
    return torch.cat(frames, dim=1)


@torch.no_grad()
def forgetting(cuts):
    frames, past = [], None
    for part in latents.tensor_split(cuts, dim=1):
        made, past = kit.vae.decode(part, past)
        frames, past = [*frames, made], [torch.zeros_like(p) for p in past]
    return torch.cat(frames, dim=1)


# %%
@torch.no_grad()
def again(cuts, extra=3):
    frames, edges = [], [0, *cuts, latents.shape[1]]
    for begin, end in zip(edges, edges[1:]):
        made, _ = kit.vae.decode(latents[:, max(0, begin - extra):end])
        first, last = kit.geometry.span(begin, end - begin)
        frames.append(made[:, -(last - first):])
    return torch.cat(frames, dim=1)


cuts = [3, 6]                                                               # chunks of three latent frames
ways = {"with the past": with_past, "three latents again": again,
        "one latent again": lambda cuts: again(cuts, extra=1),
        "forgetting": forgetting}
pieced = {name: way(cuts) for name, way in ways.items()}
for name, frames in pieced.items():
    print(f"{name:20} largest difference from the whole: {(frames - whole).abs().max():.6f} of 1")

# %% [markdown]
# And not only at chunks. Many random ways to cut nine latent frames (of a corner: convolutions take any size):

# %%
corner, g, worst = latents[..., :4, :4], torch.Generator().manual_seed(1), 0.0
uncut = kit.vae.decode(corner)[0]
for _ in range(20):
    some = (torch.rand(8, generator=g) < 0.3).nonzero()[:, 0] + 1
    worst = max(worst, (with_past(some.tolist(), corner) - uncut).abs().max().item())
print(f"largest difference over all of them: {worst:.7f}")

# %% [markdown]
# ### Who uses the memory?
#
# How far back a decoder *could* look is a matter of its plan; how far it does look, of its training. Ask each memory
# block: by how much does your output change if the frame before is taken away? Four more blocks of this decoder, and all
# six of its encoder, once answered 0: asleep since early in their training, they added a constant. They were folded into
# the convolutions before them, so that the plan says what is used, and the loop got faster by a third.

# %%
effect = {}


def ask(name):
    def hook(block, given, made):
        x, before = given
        effect[name] = (made - block.forward(x, torch.zeros_like(before))).abs().mean().item()
    return hook


blocks = {f"layer {i}, width {m.conv[-1].out_channels}": m for i, m in enumerate(kit.vae.decoder)
          if isinstance(m, MemBlock)}
hooks = [block.register_forward_hook(ask(name)) for name, block in blocks.items()]
with torch.no_grad():
    kit.vae.decode(latents)

# %%
for hook in hooks:
    hook.remove()
viz.bars(effect, "mean change of the block's output", f"the decoder's memory blocks in order, on {kit.device}", 4)

# %% [markdown]
# ## Live
#
# Put the cut where you like, and choose the way. Four frames around the cut, the same from the uncut clip, and their
# difference, ten times enlarged.


# %%
def around(cut=6, way="forgetting"):
    at = kit.geometry.span(cut, 1)[0]
    seen = slice(at - 1, at + 3)
    made, asked = ways[way]([cut])[0, seen], whole[0, seen]
    rows = {f"{way}: frames {seen.start} to {seen.stop - 1}": made, "uncut": asked,
            "difference, ten times": (0.5 + 10 * (made - asked)).clamp(0, 1)}
    return viz.grid([viz.strip(frames, zoom=2) for frames in rows.values()], list(rows))


viz.live(around, cut=(1, 8), way=list(ways))

# %% [markdown]
# ## What does it lose?
#
# Decoding what was encoded is the ceiling of what latents can show. Two rulers, as in the paper: PSNR, how near the
# frames are to the true ones (decibels, higher is nearer), and EPE, how far points are from where they should be (pixels;
# notebook 11 says how they are found).

# %%
from msk import trackers
from msk.evaluate import epe, psnr

held, every = World(kit.geometry).sample(2, frames=21, seed=HELD_OUT + 102), list(range(0, 21, 4))   # frames looked at
true, coded = held.frames[:, every], kit.vae.encode(held.frames.to(kit.device))
points = trackers.trackable(true, lambda at: held.track(at).when(every), 12, torch.Generator().manual_seed(0))


@torch.no_grad()
def judged(vae):
    made = vae.decode(coded)[0][:, every].cpu()
    off = epe(trackers.register(made, true, points.xy), points).mean().item()
    return made, psnr(made, true)[:, 1:].mean().item(), off


# %%
rows = {"shipped": judged(kit.vae)}
made, decibels, off = rows["shipped"]
print(f"through the shipped VAE: {decibels:.2f} dB, EPE {off:.2f} px, 2 held-out clips of 21 frames, on {kit.device}")
shown = {"true": true, "encoded and decoded": made, "difference, four times": (0.5 + 4 * (made - true)).clamp(0, 1)}
viz.grid([viz.strip(clips[:, -1], zoom=2) for clips in shown.values()], list(shown))

# %% [markdown]
# ### And given back
#
# Eyes and spots are gone, though the given picture has them. So what the kit streams is *finished*: tracks say where each
# pixel of the picture is now (notebook 02), $m$, and three convolutions of 20 thousand weights say for each pixel how far to
# go there: $a$ for the coarse part, which is the mean of 5 x 5 pixels (the bar), and $b$ for the detail, which is the rest.
# They can add nothing of their own. (Where one could, it made things up in crowded clips.) $a$ and $b$ lie between -1 and
# 1, and fade at the border of what is carried. The paper has no such thing; ToonCrafter (2405.17933) lets its decoder see
# the given frames. Here a hand drags a thing that it took hold of.
#
# $$\hat x \leftarrow \hat x + a\,\overline{(m - \hat x)} + b\,\big(m - \hat x - \overline{(m - \hat x)}\big)$$

# %%
from msk import cutter, hands

shot = next(hands.takes(World(kit.geometry), "drag", HELD_OUT, count=1, frames=33))
shot = hands.held(kit, shot) if cutter.can_cut() else shot                  # (with OpenCV) the whole thing, the rest held
decoded = hands.play(replace(kit, finish=None), shot)                       # [B, T, 3, H, W]
moved = kit.moved(shot.told, shot.truth[:, 0])
done = kit.finished(decoded.to(kit.device), moved).cpu()
shown = {"true": shot.truth, "streamed, decoded": decoded, "the picture, moved": moved[:, :, :3].cpu(), "finished": done}
print({name: f"{psnr(x, shot.truth)[:, 1:].mean().item():.2f} dB" for name, x in list(shown.items())[1:]})
viz.grid([viz.strip(frames[0, 8::12], zoom=2) for frames in shown.values()], list(shown))

# %% [markdown]
# The turtle has its shell back, and the kite it passes before stays; a foot stays behind, too, which the cut has missed.
# What it uncovers, and that its shadow goes along, the moved picture knows (notebook 02). Look at the numbers: it alone
# comes a little nearer to the truth than what is finished. But it knows nothing of light and weather; the finish has to
# serve where these count as well.

# %% [markdown]
# ## Train one
#
# The paper keeps Wan's encoder as it is and trains a small decoder on its latents, from nothing (App. A: 200,000 steps of
# 16 crops of 144 x 144 pixels and 21 frames). So do we, for a quarter of a minute: the shipped encoder, frozen; a new
# decoder; crops of 32 x 32 pixels and 5 frames, drawn once.

# %%
from msk.train import lesson
from msk.train import vae as stage

drawn = stage.clips(kit.geometry, batch=12, frames=5, crop=0.25, device=kit.device)
batches = [next(drawn) for _ in range(8)]                                   # each [B, T, 3, 32, 32]
torch.manual_seed(0)
fresh = TinyVAE(kit.preset.vae).to(kit.device)
fresh.load_state_dict(fresh.state_dict() | {k: v for k, v in kit.vae.state_dict().items() if "decoder" not in k})
fresh.encoder.requires_grad_(False)
rows["untrained"] = judged(fresh)

# %% [markdown]
# Its loss asks for the pixels, and for the steps between neighbours across, down and in time, since squares alone forgive a
# blur; $\hat x$ is decoded from latents with a little noise on them, as a sampler's will have. (The paper adds LPIPS and a
# critic of patches. Ours too gets a critic, late in a long training.)
#
# $$\mathcal{L} = |\hat x - x| + 4\,|\hat x - x|^2 + \sum_{d}|\partial_d \hat x - \partial_d x|$$

# %%
frames = batches[0]
torch.manual_seed(1)
seen = kit.vae.encode(frames)
decoded = fresh.decode(seen + 0.05 * torch.randn_like(seen), clamp=False)[0]
steps = sum((a - b).abs().mean() for a, b in zip(stage.slopes(decoded), stage.slopes(frames)))
loss = (decoded - frames).abs().mean() + 4 * (decoded - frames).square().mean() + steps
torch.manual_seed(1)
same = stage.vae_loss(fresh, frames, noise=0.05, calibrated=True)[0]        # calibrated: of unit variance already
print("by hand and vae_loss agree:", torch.allclose(loss, same, atol=1e-4), f"| {loss.item():.3f}")

# %%
from msk.train.loop import Learner

learner, lost = Learner(fresh, 2e-3, ema=0.9, muon=lambda name, p: p.ndim == 4, muon_lr=8e-3), []
loss_of = lambda frames: stage.vae_loss(fresh, frames, noise=0.05, calibrated=True)[:2]
for step in lesson.taught(learner, loss_of, batches, steps=40):
    lost.append(step.loss)
viz.loss_curves({"decoder": lost}, 0.8, f"12 crops a step, on {kit.device}")

# %%
rows["after 40 steps"] = judged(fresh)
order = ("untrained", "after 40 steps", "shipped")
print(f"{'':16}{'PSNR':>10}{'EPE':>10}   {len(true)} held-out clips, on {kit.device}")
for name in order:
    print(f"{name:16}{rows[name][1]:>7.2f} dB{rows[name][2]:>7.2f} px")
viz.grid([viz.strip(clips[:, -1], zoom=2) for clips in (true, *(rows[name][0] for name in order))], ["true", *order])

# %% [markdown]
# Forty steps see where things are and roughly in which colours; edges and thin lines are what hours are for. (The rim comes
# of the crops: a part of what it saw was border.) The whole stage, encoder and all, and the decoder alone on
# latents that others already know:
#
# ```
# msk train vae --preset tiny --budget 30m --out runs/tiny
# msk train vae --init assets/tiny --budget 30m --out runs/vae
# ```
#
# ## What does it cost?
#
# Full against tiny, as the paper reports them (App. A; 832 x 480, seconds for 81 frames; real videos, so its decibels are
# not to be compared with those above):
#
# | decoder | weights, millions | seconds | PSNR, dB | SSIM | LPIPS |
# |---|---|---|---|---|---|
# | Wan 2.1, full | 73.3 | 1.67 | 31.43 | 0.934 | 0.069 |
# | Wan 2.1, TAEHV | 9.84 | 0.12 | 28.85 | 0.899 | 0.168 |
# | Wan 2.1, the paper's tiny | 9.84 | 0.12 | 29.27 | 0.904 | 0.107 |
# | Wan 2.2, full | 555 | 1.75 | 31.87 | 0.938 | 0.065 |
# | Wan 2.2, the paper's tiny | 56.7 | 0.23 | 28.43 | 0.883 | 0.126 |
#
# Time needs no trained weights. Here are both of Wan 2.1's decoders at their true widths, random, side by side on this
# machine. (The full one comes with diffusers; without that, the tiny ones alone.) On the paper's H100 the full one
# takes 14 times the tiny one's time.

# %%
from time import perf_counter

decoders = {"tiny kit's": (kit.vae, 12), "tiny, at Wan's widths": (TinyVAE(msk.PRESETS["wan2.1-1.3b"].vae), 16)}
try:
    from diffusers import AutoencoderKLWan

    from msk.encoders import FullVAE
    decoders["full, Wan 2.1"] = FullVAE(AutoencoderKLWan()), 16
except ImportError:
    print("diffusers is not installed: no full decoder here")


@torch.no_grad()
def milliseconds(vae, channels):
    latents, began = torch.randn(1, 2, channels, 4, 4, device=kit.device), perf_counter()
    vae.to(kit.device).decode(latents)[0].cpu()
    return 1000 * (perf_counter() - began)


# %%
spent = {name: min(milliseconds(*decoder) for _ in range(2)) for name, decoder in decoders.items()}
weights = {name: count(getattr(vae, "vae", vae)) for name, (vae, _) in decoders.items()}
chart = {f"{name}, {weights[name]:.2f} M weights": ms for name, ms in spent.items()}
times = {name: round(ms / spent["tiny, at Wan's widths"], 1) for name, ms in spent.items()}
print("as a multiple of the tiny one's at Wan's widths:", times)
viz.bars(chart, "milliseconds for 5 frames of 32 x 32", f"float32, on {kit.device}", digits=0)

# %% [markdown]
# And in the loop of the tiny kit, chunk by chunk, in its own fastest number type: where does the time go? (The preset
# spares the pass that remembers a clean chunk, `clean=False`; for the picture we ask for it. Without tracks nothing is
# finished; with them that counts as decoding.) In the paper's loop the
# full decoder takes 47 % of a chunk; with the tiny one 16.7 frames a second become 29.5, and LPIPS goes from 0.360 to
# 0.365: hardly anything.

# %%
fast = msk.load("tiny")
paper_way = replace(fast.preset.stream, clean=True)
stream, spent = msk.Stream(fast, clip.captions[0], viz.image(clip.frames[0, 0]), seed=0, config=paper_way), []
for _ in range(4):
    stream.step()
    stream.settle()
    spent.append(dict(stream.stats))
middle = {name: sorted(s[name] for s in spent[1:])[1] for name in ("denoise_ms", "clean_ms", "decode_ms")}
about = f"{stream.kit.device}, {str(stream.kit.dtype)[6:]}, {torch.get_num_threads()} threads"
print(f"decoding is {middle['decode_ms'] / sum(middle.values()):.0%} of the loop")
names = ("denoise (3 passes)", "remember (1 pass)", "decode")
viz.bars(dict(zip(names, middle.values())), "milliseconds a chunk of 12 frames, median", about, digits=1)

# %% [markdown]
# ## The picture
#
# The frames around one of the cuts, with the past and without, and how near every way is to the uncut
# clip in every frame (PSNR in decibels; the scale ends at 100, which is "the same"). The dotted lines are the cuts.

# %%
at = kit.geometry.span(6, 1)[0]
strips = [viz.strip(frames[0, at - 1:at + 3], zoom=2) for frames in (whole, pieced["with the past"], pieced["forgetting"])]
near = {name: psnr(frames, whole)[0] for name, frames in pieced.items()}
marks = {f"cut {i + 1}": kit.geometry.span(f, 1)[0] - 0.5 for i, f in enumerate(cuts)}
chart = viz.curves(near, "pixel frame", "PSNR against the uncut clip, dB",
                   "cut in chunks of three latent frames", marks)
viz.grid([*strips, chart], [f"uncut, frames {at - 1} to {at + 2}", "with the past", "forgetting"])

# %% [markdown]
# ## Things to try
#
# 1. How long does a forgotten past hurt? Find the frame after a cut from which the difference stays below 1/255, and
#    compare it with how far the blocks, one behind the other, could reach at most.
# 2. Hand over the past of *another* clip at the cut. What do you see, and for how long?
# 3. Decode one latent frame at a time. Is it slower than three at a time, and by how much?
# 4. Encode the clip from its middle on, `encode(frames[:, at - 1:])`. For how long do its latents differ from the uncut
#    ones, and why? (Count the memory blocks of the encoder.)
# 5. Train the new decoder for as many steps with squared errors alone. What do PSNR, EPE and your eye say?
#
# Solutions: [solutions/10_tiny_vae.py](solutions/10_tiny_vae.py).
