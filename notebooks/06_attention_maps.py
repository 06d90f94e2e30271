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
# # 06 · Who looks at whom?
#
# A teacher sees the whole clip at once; a stream must not look into the future, and cannot keep all of the past. What
# lies between the two is one rule about who may look at whom, and it can be written in two ways: as a *mask* over a
# whole clip, or as a *past* that is carried along. We write both by hand, check that they agree, and find where they
# must not. The last picture is the paper's comparison on our own models: bidirectional, full causal, sink and window.
#
# *Run time: under half a minute on a CPU; on a GPU not timed yet.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

# %% [markdown]
# ## By hand: the rule
#
# A *chunk* is three latent frames that are made together. Chunk $q$ may look at chunk $k$ if $k$ is not later, and is
# either one of the first $S$ (the *sink*, remembered for good) or one of the last $W$ (the *window*). In the words of
# the paper, the context of chunk $i$ is itself and $\{z^j\}_{j \le S} \cup \{z^j\}_{i - W \le j < i}$ (Sec. 3.2).

# %%
import torch

from msk import viz

q, k = torch.arange(8)[:, None], torch.arange(8)
rules = {"bidirectional": (k <= 7) & (q >= 0), "full causal": k <= q,
         "sink 1, window 1": (k <= q) & ((k < 1) | (q - k <= 1))}
viz.matrices({name: rule.float() for name, rule in rules.items()}, "chunk that is looked at", "chunk that looks",
             unit="may look")

# %% [markdown]
# Count a row, and you have the price of a chunk: full causal pays more for each new one, sink and window never more
# than three.

# %%
many_q, many_k = torch.arange(40)[:, None], torch.arange(40)
price = {"full causal": (many_k <= many_q).sum(1),
         "sink 1, window 1": ((many_k <= many_q) & ((many_k < 1) | (many_q - many_k <= 1))).sum(1)}
viz.curves(price, "chunk", "chunks looked at", "what a stream pays for its next chunk")

# %% [markdown]
# ## By hand: attention under a mask
#
# Scores where one may not look become minus infinity, and after the softmax zero: $\mathrm{softmax}(q k^\top /
# \sqrt{D})\,v$.

# %%
from msk.attention import attend, chunk_mask

g = torch.Generator().manual_seed(0)
a, b, c = (torch.randn(24, 16, generator=g) for _ in range(3))              # queries, keys, values [L, D]
mask = chunk_mask(frames=24, tokens_per_frame=1, chunk=3, sink=1, window=1)
look = (a @ b.T / 16**0.5).masked_fill(~mask, -torch.inf).softmax(-1)       # who looks at whom, and how much
same = attend(*(x[None, :, None] for x in (a, b, c)), mask=mask)[0]         # [B, L, heads, D] -> [B, L, heads * D]
agree, whole = torch.allclose(look @ c, same, atol=1e-5), look.sum(1).allclose(torch.ones(24))
print("by hand and attend agree:", agree, "| every row sums to 1:", whole)

# %% [markdown]
# ## With msk: maps of a real model
#
# `capture()` collects the attention maps of every layer while a model runs. We hand the models a clip with much noise
# in it, as they meet it on their way: the teacher without any mask, the student with the two causal ones. A latent
# frame is 8 x 8 tokens, so a map has 768 rows; here they are gathered into frames, over all layers and heads.

# %%
from msk.attention import capture
from msk.flow import add_noise
from msk.world import HELD_OUT, World, grid_points

teacher, kit = (msk.load("tiny", role, dtype=torch.float32) for role in ("teacher", "student"))
clip = World(kit.geometry).sample(1, frames=69, seed=HELD_OUT + 27)
cond = kit.condition(clip.captions, clip.track(grid_points(kit.geometry, 12, 12)), clip.frames[:, 0].to(kit.device))
clean = kit.vae.encode(clip.frames.to(kit.device))                          # [B, F, C, h, w], 18 latent frames
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(kit.device)

# %%
rows, columns = (n // 2 for n in kit.geometry.latent_size)                  # of tokens: patches of 2 x 2 cells
frames, tokens = 12, rows * columns
t = torch.full((1, frames), 0.75, device=kit.device)
noisy = add_noise(clean[:, :frames], noise[:, :frames], t)


@torch.no_grad()
def maps(dit, sink, window):
    rule = None if window is None else chunk_mask(frames, tokens, 3, sink, window, kit.device)
    with capture() as layers:
        dit(noisy, t, cond.text, cond.motion[:, :frames], cond.image, mask=rule)
    return torch.cat(layers)                                                # [layers, L, L], the mean over heads


# %%
def by_frame(weights):
    sums = weights.unflatten(-1, (-1, tokens)).sum(-1)                      # all that goes to a frame
    return sums.unflatten(-2, (-1, tokens)).mean(-2)                        # from a token of this one, on average


kinds = {"bidirectional (teacher)": maps(teacher.dit, 0, None), "full causal": maps(kit.dit, 0, frames),
         "sink 1, window 1": maps(kit.dit, 1, 1)}
gathered = {name: by_frame(layers).mean(0) for name, layers in kinds.items()}
viz.matrices(gathered, "latent frame looked at", "latent frame that looks", unit="share of attention", every=3)

# %% [markdown]
# How much of the attention of the later frames goes to the very first one? In the paper's maps of the same three kinds
# (Fig. 3, Sec. 3.2) several heads keep looking at the first frame throughout, however far away it is, and that is why a
# sink pays. Ours is shown the given picture beside every frame as well, so it can do with less. Compare with 1: all
# frames alike.

# %%
for name, share in gathered.items():
    late = share[6:, 0] * (share[6:] > 0).sum(1)
    print(f"{name:24} frame 0 gets {late.mean():.2f} times its fair share from frames 6 to 11")
layers = kinds["full causal"]
viz.curves({f"layer {i}": (range(6, frames), by_frame(layer)[6:, 0]) for i, layer in enumerate(layers)},
           "latent frame that looks", "share on frame 0", "full causal, layer by layer")

# %% [markdown]
# ### One token
#
# And where does a single token look? The circle is the token; each panel is a latent frame.

# %%
query = 11 * tokens + 3 * columns + 3                                       # frame 11, row 3, column 3
viz.grid([viz.attention_map(layers.mean(0), (rows, columns), query, name) for name, layers in kinds.items()])

# %% [markdown]
# ## Mask against past
#
# A stream has no clip to mask. It takes each chunk with what the earlier ones left behind, their keys and values: the
# `past`. `ChunkCache` keeps exactly what the rule allows. Is the result the same?

# %%
from msk.cache import ChunkCache

zero = torch.zeros(1, 18, device=kit.device)                                # t = 0: the clip is clean


@torch.no_grad()
def streamed(sink, window):
    cache, made = ChunkCache(sink, window), []
    for f in range(0, 18, 3):
        part = clean[:, f:f + 3], cond.text, cond.motion[:, f:f + 3], cond.image
        made.append(kit.dit(part[0], zero[:, f:f + 3], *part[1:], past=cache.past()))
        cache.push(kit.dit.remember(*part, past=cache.past()))
    return torch.cat(made, dim=1)


# %%
@torch.no_grad()
def difference(sink, window):
    rule = chunk_mask(18, tokens, 3, sink, window, kit.device)
    masked = kit.dit(clean, zero, cond.text, cond.motion, cond.image, mask=rule)
    return (masked - streamed(sink, window)).abs().unflatten(1, (-1, 3)).amax((0, 2, 3, 4, 5)).clamp_min(1e-8).cpu()


parted = {f"sink {s}, window {w}": difference(s, w) for s, w in ((0, 1), (0, 2), (1, 1), (1, 2))}
viz.curves(parted, "chunk", "largest difference in velocity", "mask against past, float32", log=True)

# %% [markdown]
# The model knows time by rotary positions: a score depends on the *difference* of the positions of the two that meet. So
# without a sink, mask and past agree for as long as you like, up to rounding. With a sink they agree until the first
# chunk is forgotten, and then part *on purpose*. Under the mask the sink moves ever further away; in the stream it stays
# where it is, at the front of the cache, and positions are those of **cache slots**, not of frames (Sec. 3.2,
# "Inference"). So no position ever leaves the range of training, however long the video.

# %%
table = torch.full((8, 8), -1.0)
cache = ChunkCache(sink=1, window=1)
for i in range(8):
    held = cache.past()[0][0].flatten().long().tolist() if i else []        # which chunks, in the order of slots
    for slot, chunk in enumerate([*held, i]):
        table[i, chunk] = 3 * slot                                          # position of its first frame
    cache.push([(torch.full((1, 1, 1, 1), i),) * 2])                        # "keys" and "values" that say who they are
viz.matrices({"position of a chunk's first frame (-1: forgotten)": table}, "chunk in the cache", "chunk being made",
             numbers=".0f", size=3.4)

# %% [markdown]
# ## Live
#
# Step through a real stream: which chunk, which of its three denoising steps, which layer, which token. The panels are
# the slots of the cache: sink, window, and the chunk that is being made.

# %%
from msk.stream import Roll, given

roll, seen, config = Roll(kit.dit, kit.dit.read(cond.text), kit.preset.stream), {}, kit.preset.stream
for chunk in range(6):
    now = slice(3 * chunk, 3 * chunk + 3)
    roll.settle()                                                           # remember the chunk before, unobserved
    with capture() as layers, torch.no_grad():
        roll.next(noise[:, now], cond.motion[:, now], given(kit.dit, cond.image, now),
                  generator=torch.Generator().manual_seed(chunk))
    for step, part in enumerate(torch.cat(layers).chunk(config.steps)):
        seen[chunk, step] = part                                            # [layers, Lq, Lk]


# %%
def slots(chunk=4, step=0, layer=2, down=3, right=3):
    weights = seen[chunk, step][layer]
    held = {"sink": 0} if chunk else {}
    held |= {"window": chunk - 1} if chunk > 1 else {}
    names = [f"{slot} {3 * c + f}" for slot, c in (held | {"now": chunk}).items() for f in range(3)]
    query = tokens + down * columns + right                                 # in the middle frame of its own chunk
    share = weights[query].unflatten(0, (-1, 3 * tokens)).sum(1).tolist()
    told = ", ".join(f"{name.split()[0]} {part:.0%}" for name, part in zip(names[::3], share))
    told = f"chunk {chunk}, step {step + 1}, layer {layer}: {told}"
    return viz.attention_map(weights, (rows, columns), query, told, names)


viz.live(slots, chunk=(0, 5), step=(0, config.steps - 1), layer=(0, len(kit.dit.blocks) - 1), down=(0, rows - 1),
         right=(0, columns - 1))

# %% [markdown]
# ## The picture
#
# The paper's comparison (its Fig. 3), on ours: who looks at whom with no rule, with "never ahead", and with sink and
# window. In the first column stands what a sink lives on. Below it the stream: what share of the attention goes to the
# sink, to the window and to the chunk itself, over layers and steps, from the chunk on at which the cache is full. All
# three parts are equally long, so a third each would be an even share: the chunk looks most at itself, and at the sink
# more than at the window, however far the sink lies back.

# %%
full = [torch.stack([seen[chunk, step].mean((0, 1)).unflatten(0, (3, -1)).sum(1) for step in range(config.steps)])
        for chunk in range(2, 6)]                                           # [steps, slots] a chunk
parts = torch.stack(full).mean(1).T                                         # [slots, chunks]
above = viz.matrices(gathered, "latent frame looked at", "latent frame that looks", unit="share", every=3)
below = viz.curves({name: (range(2, 6), part) for name, part in zip(("sink", "window", "now"), parts)},
                   "chunk", "share of attention", f"a stream of chunks, sink 1, window 1, on {kit.device}")
viz.grid([above, below])

# %% [markdown]
# ## Things to try
#
# 1. Write the rule for "no sink, a window of two frames, chunks of one frame" with `chunk_mask`, and count what each
#    row may see.
# 2. Take `t = 0.1` in place of 0.75. Do the models look more, or less, at their own frame when there is little noise
#    left?
# 3. `capture("cross")` collects who looks at which *word*. Which word does the thing look at, and which the ground?
# 4. Show that the sink is held: push ten chunks into a `ChunkCache(2, 1)` and compare the first keys of `past()` before
#    and after.
#
# Solutions: [solutions/06_attention_maps.py](solutions/06_attention_maps.py).
