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
# (App. A). We write its one idea by hand, a memory of a single frame, then cut a real clip wherever you like. The last
# picture shows the frames around a cut, with the past and without, and how far each way is from the uncut clip.
#
# *Run time: under half a minute on a CPU, a few seconds on a GPU.*

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
# (a memory block, after TAEHV). Without the space, one number a frame, it is this:
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
clip = World(kit.geometry).sample(1, frames=45, seed=HELD_OUT + 15)
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
# of them.


# %%
@torch.no_grad()
def with_past(cuts):
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


cuts = [3, 6, 9]                                                            # chunks of three latent frames
ways = {"with the past": with_past, "three latents again": again,
        "one latent again": lambda cuts: again(cuts, extra=1),
        "forgetting": forgetting}
for name, way in ways.items():
    print(f"{name:20} largest difference from the whole: {(way(cuts) - whole).abs().max():.6f} of 1")

# %% [markdown]
# And not only at chunks. Many random ways to cut twelve latent frames:

# %%
g, worst = torch.Generator().manual_seed(1), 0.0
for _ in range(15 if kit.device.type == "cpu" else 100):
    some = (torch.rand(11, generator=g) < 0.3).nonzero()[:, 0] + 1
    worst = max(worst, (with_past(some.tolist()) - whole).abs().max().item())
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
viz.bars(effect, "mean change of the block's output", "the decoder's memory blocks, first to last", digits=4)

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


viz.live(around, cut=(1, 11), way=list(ways))

# %% [markdown]
# ## What does it lose, and what does it cost?
#
# Decoding what was encoded is the ceiling of everything the kit can show. Measured as the paper does (its table in App.
# A: PSNR of the full decoder 31.43 dB, of its tiny one 29.27 dB, at 832 x 480 on real videos; ours is another world at
# another size, so its decibels are not to be compared with those).

# %%
from msk.evaluate import psnr

test = World(kit.geometry).sample(4, frames=21, seed=HELD_OUT + 100).frames.to(kit.device)
with torch.no_grad():
    seen = kit.vae.decode(kit.vae.encode(test))[0]
print(f"through the tiny VAE: {psnr(seen, test).mean():.2f} dB",
      f"over {len(test)} held-out clips of {test.shape[1]} frames")
rows = {"true": test, "encoded and decoded": seen, "difference, four times": (0.5 + 4 * (seen - test)).clamp(0, 1)}
viz.grid([viz.strip(clips[:, -1], zoom=2) for clips in rows.values()], list(rows))

# %% [markdown]
# The paper's seconds for 81 frames of 832 x 480 (App. A), full decoder and tiny one:

# %%
paper = {"Wan 2.1, full decoder": 1.67, "Wan 2.1, tiny decoder": 0.12, "Wan 2.2, full decoder": 1.75,
         "Wan 2.2, tiny decoder": 0.23}
viz.bars(paper, "seconds for 81 frames of 832 x 480", "as the paper reports them")

# %% [markdown]
# And here: the whole loop of the tiny kit, chunk by chunk, in its own fastest number type. Where does the time go? (The
# preset spares the pass that remembers a clean chunk, `clean=False`; for the picture we ask for it.)

# %%
fast = msk.load("tiny")
paper_way = replace(fast.preset.stream, clean=True)
stream, spent = msk.Stream(fast, clip.captions[0], viz.image(clip.frames[0, 0]), seed=0, config=paper_way), []
for _ in range(12):
    stream.step()
    stream.settle()
    spent.append(dict(stream.stats))
middle = {name: sorted(s[name] for s in spent[2:])[5] for name in ("denoise_ms", "clean_ms", "decode_ms")}
about = f"{stream.kit.device}, {str(stream.kit.dtype)[6:]}, {torch.get_num_threads()} threads"
print(f"decoding is {middle['decode_ms'] / sum(middle.values()):.0%} of the loop")
names = ("denoise (3 passes)", "remember (1 pass)", "decode")
viz.bars(dict(zip(names, middle.values())), "milliseconds a chunk of 12 frames, median", about, digits=1)

# %% [markdown]
# ## The picture
#
# The frames around a cut in the middle of the clip, with the past and without, and how near every way is to the uncut
# clip in every frame (PSNR in decibels; the scale ends at 100, which is "the same"). The dotted lines are the cuts.

# %%
made, at = {name: way(cuts) for name, way in ways.items()}, kit.geometry.span(6, 1)[0]
strips = [viz.strip(frames[0, at - 1:at + 3], zoom=2) for frames in (whole, made["with the past"], made["forgetting"])]
near = {name: psnr(frames, whole)[0] for name, frames in made.items()}
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
#
# Solutions: [solutions/10_tiny_vae.py](solutions/10_tiny_vae.py).
