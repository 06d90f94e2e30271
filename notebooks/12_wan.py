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
# # 12 · What changes at Wan's size?
#
# Everything so far ran in a small drawn world. The paper's models are Wan's: hundreds of times larger. Which lines
# change, how much memory does it take, how fast could it be at best, and how does a model that never heard of
# tracks get columns for them without forgetting anything? On a CPU we run Wan's layout at toy size with random weights,
# and count at full size without holding a single weight. The picture near the end shows the frame rate that a card's
# arithmetic allows at most, and what the paper measured.
#
# *Run time: under half a minute on a CPU; with real weights at hand and a GPU, as long as these take to load.*

# %%
try:
    import msk
except ImportError:
    raise ImportError('first, once, in the folder of msk:  pip install -e ".[notebook]"') from None

# %%
msk.doctor(short=True)

# %% [markdown]
# ## The same lines
#
# `msk.load("wan2.1-1.3b", "teacher")` fetches many gigabytes and wants a GPU. `models.toy` keeps what makes that model
# different, its inputs, their order, its autoencoder's stride and the stream's chunks, and makes all of it narrow. Such a
# kit has learned nothing and shows grey; its wiring is real.

# %%
import torch

from msk import viz
from msk.models import toy
from msk.world import World

picture = viz.image(World(msk.PRESETS["tiny"].geometry).sample(1, 1, seed=7).frames[0, 0])
kits = {"tiny": msk.load("tiny", dtype=torch.float32)}
for name in ("wan2.1-1.3b", "wan2.2-5b"):
    kits[name] = msk.Kit.random(toy(msk.PRESETS[name])).to(kits["tiny"].device, torch.float32)

# %%
strips = []
for name, kit in kits.items():
    stream, chunks = msk.Stream(kit, "a red fish in the sea", picture, seed=0), []
    for _ in range(3):
        chunks.append(stream.step(msk.Tracks.grid(kit.geometry, 16, stream.frames_wanted)))
    strips.append(viz.strip(torch.cat(chunks, dim=1), 6))
    inputs = ", ".join(f"{part} {kit.dit.channels[part]}" for part in kit.dit.config.inputs)
    print(f"{name:12} chunks of {[made.shape[1] for made in chunks]} frames; channels: {inputs}")

# %%
viz.grid(strips, ["tiny, as shipped", *(f"layout of {name}, random weights" for name in list(kits)[1:])])

# %% [markdown]
# Nothing in that loop knows which model it drives. What differs is data: Wan 2.1 gets the picture as channels of their own,
# Wan 2.2 has it stand as the clean first latent frame; the one has 8 pixels a latent cell, the other 16.
#
# ## By hand: how many weights?
#
# A block of width $d$ with a feed-forward of width $f$ has two attentions (to itself, and to the words) of four $d \times
# d$ products each, the feed-forward's two, and small change:
#
# $$8 d^2 + 2 d f + 21 d + f$$
#
# (and two more products, $2 d^2 + 3 d$, where it also looks at a picture through CLIP: with them the model called 14B has
# more than 16 billion). On torch's `meta` device a block has shapes and no numbers, so such a model can be counted anywhere.


# %%
def by_hand(c):
    d, f = c.dim, c.ffn_dim
    return 8 * d**2 + 2 * d * f + 21 * d + f + (2 * d**2 + 3 * d if c.clip_dim else 0)


# %%
from msk.dit import Block

for name in ("wan2.1-1.3b", "wan2.2-5b", "wan2.1-i2v-14b"):
    c = msk.PRESETS[name].dit
    with torch.device("meta"):
        counted = sum(p.numel() for p in Block(c).parameters())
    all_of_them = c.layers * counted / 1e9
    print(f"{name:15} a block: {by_hand(c):>11,} by hand, {counted:>11,} counted; all {c.layers}: {all_of_them:.2f} B")

# %% [markdown]
# ## With msk: all presets
#
# `msk models` prints them as a table. Memory is what a stream wants in bfloat16: weights, what it remembers, one chunk's
# work. umT5, which reads the prompt once, is not in it: another 10.6 GiB, on the CPU if need be.

# %%
from msk.models import card

cards = {name: card(preset) for name, preset in msk.PRESETS.items() if preset.text is None}
charts = [viz.bars({name: c.parameters / 1e9 for name, c in cards.items()}, "billions of parameters"),
          viz.bars({name: c.memory_gib for name, c in cards.items()}, "GiB while streaming, bfloat16", digits=1)]
viz.grid(charts, ["counted on the meta device", "computed from the sizes"], columns=2)

# %% [markdown]
# ## By hand: what a chunk costs
#
# A latent frame of $h \times w$ cells in patches of 2 x 2 is $n = hw/4$ tokens. A chunk of three makes $T = 3n$ tokens,
# which see $K$: those of sink, window and themselves. (Some public relatives, printed below as well, say in latent frames
# how many may be seen at once; that is `budget`.) What is remembered are keys and values, in every layer:
#
# $$\text{bytes} = 2 \cdot \text{layers} \cdot (K - T) \cdot d \cdot \text{bytes per number}$$


# %%
def tokens(preset, window=None):
    (h, w), s = preset.geometry.latent_size, preset.stream
    n = h * w // 4
    seen = s.budget or s.chunk * (s.sink + (s.window if window is None else window) + 1)
    return n, s.chunk * n, seen * n                                         # of a frame, of a chunk, seen


def cache(preset, each=2, window=None):
    _, T, K = tokens(preset, window)
    return 2 * preset.dit.layers * (K - T) * preset.dit.dim * each


# %%
for name in ("wan2.1-1.3b", "wan2.2-5b", "longlive-1.3b", "self-forcing-1.3b", "wantrack-14b"):
    (n, T, K), held = tokens(msk.PRESETS[name]), cache(msk.PRESETS[name]) / 2**30
    print(f"{name:18} {n:>5,} tokens a frame, {T:>6,} a chunk, {K:>6,} seen; remembers {held:.2f} GiB")

# %% [markdown]
# That is what the next chunk looks at. It does not grow with the length of the video, and the toy can prove both:

# %%
kit = kits["wan2.1-1.3b"]
stream, held = msk.Stream(kit, "a fish", picture), []
for _ in range(6):
    stream.step()
    stream.settle()
    held.append(stream._roll.cache.nbytes)
print("bytes after each chunk:", held)
print("by hand, once it is full:", cache(kit.preset, each=4))

# %% [markdown]
# ### Arithmetic
#
# A product of $T$ rows with a $d \times d$ matrix is $2Td^2$ operations. A pass has six such products in each block (of
# the words, keys and values are made once per prompt), the feed-forward, and attention to $K$ tokens and 512 words (and
# to 257 tokens of CLIP, where a model looks at its picture through that):
#
# $$\text{layers} \cdot \big(\,2T\,(6d^2 + 2df) + 4T\,(K + 512)\,d\,\big)$$
#
# `models.flops` does not use it: it lets torch count one block at full size, on the meta device.


# %%
def parts(preset, window=None):
    c, (_, T, K) = preset.dit, tokens(preset, window)
    words = 512 + (257 if c.clip_dim else 0)
    each = {"self-attention": 4 * T * K * c.dim, "feed-forward": 4 * T * c.dim * c.ffn_dim,
            "products with d x d": 12 * T * c.dim**2, "words": 4 * T * words * c.dim}
    return {name: c.layers * x / 1e12 for name, x in each.items()}


# %%
from msk.models import flops

for name in ("wan2.1-1.3b", "wan2.2-5b", "wan2.1-i2v-14b"):
    shares, preset = parts(msk.PRESETS[name]), msk.PRESETS[name]
    total = sum(shares.values())
    print(f"{name}: {total:.2f} T operations a pass by hand, {flops(preset) / 1e12:.2f} counted")
    print("   ", ", ".join(f"{part} {x / total:.0%}" for part, x in shares.items()))

# %% [markdown]
# ### A ceiling, not a measurement
#
# Three denoising passes and one that remembers, for twelve frames. If a card did nothing but these products at its highest
# rate, decoding were free and memory never waited for:
#
# $$\text{frames a second} \le \frac{12 \cdot \text{rate}}{(3 + 1) \cdot \text{operations a pass}}$$
#
# Rates are from data sheets (dense bfloat16), but for one: on an H200 large products by themselves are said to reach 790.

# %%
rates = {"RTX 4090, 165 TFLOP/s": 165, "A100, 312": 312, "H200, 790 in large products": 790, "H100, 989": 989}


def ceiling(preset, rate, steps=None, window=None):
    s = preset.stream
    return 4 * s.chunk * rate / (((steps or s.steps) + 1) * sum(parts(preset, window).values()))


# %%
for name in ("wan2.1-1.3b", "wan2.2-5b", "wan2.1-i2v-14b"):
    most = {on.split(",")[0]: ceiling(msk.PRESETS[name], rate) for on, rate in rates.items()}
    print(f"{name:15}", ", ".join(f"{on} {fps:.1f}" for on, fps in most.items()))
reached = 29.5 / ceiling(msk.PRESETS["wan2.1-1.3b"], 989)
print(f"the paper's 29.5 frames a second (1.3B, one H100, tiny decoder) are {reached:.0%} of the ceiling there")

# %% [markdown]
# What fills the rest: decoding, memory traffic of all that is no matrix product, starting of kernels, attention that runs
# below the rate of large products. None of it is counted here.
#
# ### Live
#
# The ceiling over the size of the window, at a rate of your choice. The level line is playback at 24 frames a second; Wan
# 2.1's own videos play at 16.


# %%
def look(preset="wan2.1-1.3b", steps=3, rate=989):
    p, windows = msk.PRESETS[preset], list(range(8))
    fps = [ceiling(p, rate, steps, window) for window in windows]
    memory = f"remembered: {cache(p, window=0) / 2**30:.1f} to {cache(p, window=7) / 2**30:.1f} GiB"
    return viz.curves({f"{steps} + 1 passes": (windows, fps), "24 a second": (windows, [24] * 8)}, "window, chunks",
                      "frames a second, at most", f"{preset}, {rate} TFLOP/s; {memory}")


viz.live(look, preset=["wan2.1-1.3b", "wan2.2-5b", "wan2.1-i2v-14b"], steps=(1, 4), rate=list(rates.values()))

# %% [markdown]
# ## By hand: columns that change nothing
#
# A base model reads 16 channels of noise. Ours shall also read 16 of motion and 16 of a picture. Give the patch embedding
# columns of zeros for them: what they read is multiplied by zero, so the wide model *is* the base, until it is trained.

# %%
from dataclasses import replace

from msk.dit import DiT

config = kit.dit.config
torch.manual_seed(0)
base = DiT(replace(config, inputs=("noise",), motion_channels=0, image_channels=0)).eval()
torch.nn.init.normal_(base.head.head.weight, std=0.05)                      # an untrained head says nothing
state = dict(base.state_dict())

# %%
narrow = state["patch_embedding.weight"]                                    # [dim, 16, 1, 2, 2]
columns = torch.cat([narrow, torch.zeros(len(narrow), 32, 1, 2, 2)], dim=1)
wide = DiT(config).eval()
wide.load_state_dict({**state, "patch_embedding.weight": columns})
noise, motion, image = torch.randn(3, 1, 3, 16, 6, 8).unbind()              # each [B, F, C, h, w]
t, text = torch.full((1, 3), 0.7), torch.randn(1, 16, config.text_dim)
with torch.no_grad():
    want, made = base(noise, t, text), wide(noise, t, text, motion, image)
print("48 columns, one product:", torch.equal(made, want), f"(largest difference {(made - want).abs().max():.1e})")

# %% [markdown]
# Adding zeros changes no sum, but in which order a product adds its terms is the library's choice: more columns, sometimes
# another order, and another last bit. The patch embeddings of three base models, as bare products:

# %%
for name, (own, more) in {"wan2.1-1.3b": (16, 48), "wan2.1-i2v-14b": (36, 52), "wan2.2-5b": (48, 96)}.items():
    x, weight = torch.randn(144, 4 * more), torch.randn(48, 4 * more)       # each channel gives a patch of 2 x 2
    weight[:, 4 * own:] = 0
    apart = (x @ weight.T - x[:, :4 * own].contiguous() @ weight[:, :4 * own].contiguous().T).abs().max()
    print(f"{name:15} {own} columns widened to {more}: largest difference {apart:.1e} here")

# %% [markdown]
# `DiTConfig.base_channels` says how many columns came with the base; new ones are then summed apart, and not a bit differs,
# wherever it runs.

# %%
exact = DiT(replace(config, base_channels=16)).eval()
exact.load_state_dict(wide.state_dict())
with torch.no_grad():
    print("16 and 32 columns, summed apart:", torch.equal(exact(noise, t, text, motion, image), want))

# %% [markdown]
# And it can learn. The columns are zero, but what they read is not, so they get a gradient in the first step. The track
# head, behind them, gets none: its message is multiplied by zero. If it were zero too, neither would ever move.

# %%
head = msk.Kit.random(kit.preset).track_head.requires_grad_(True)
tracks = msk.Tracks.grid(kit.geometry, 16, 9)
for step in range(2):
    exact.zero_grad(), head.zero_grad()
    exact(noise, t, text, head(tracks)).sub(motion).square().mean().backward()
    new, behind = exact.patch_embedding.weight.grad[:, 16:32], next(head.parameters()).grad
    print(f"step {step + 1}: gradient of the motion columns {new.norm():.1e}, of the track head {behind.norm():.1e}")
    with torch.no_grad():
        exact.patch_embedding.weight -= 0.1 * exact.patch_embedding.weight.grad

# %% [markdown]
# ## With msk: files
#
# Three families of names are about for the same weights. Ours are Wan's own, so most of loading is renaming, and refusing
# what does not fit.

# %%
from msk import checkpoints

print(f"{'Wan, msk':30}{'diffusers':37}FastVideo")
for name in ("patch_embedding.weight", "time_projection.1.weight", "blocks.0.self_attn.q.weight",
             "blocks.0.ffn.0.weight", "head.head.weight"):
    own = {name: state[name]}
    theirs = [*checkpoints.rename(own, checkpoints.DIFFUSERS), *checkpoints.rename(own, checkpoints.FASTVIDEO)]
    print(f"{name:30}{theirs[0]:37}{theirs[1]}")

# %% [markdown]
# The base as a public file, then: diffusers' names, diffusers' config. `wan.recognise` reads the sizes from the weights
# and the meaning of the inputs from their number; what it gives is the plan of the *wide* model, motion and picture
# included. `msk.load(folder)` does that and what follows for a real one; at toy size we hand over picture size and
# autoencoder ourselves.

# %%
import json
import tempfile
from pathlib import Path

from msk import wan
from msk.weights import save_weights

place = tempfile.TemporaryDirectory()
folder, data = Path(place.name), {"num_attention_heads": config.heads}
save_weights(checkpoints.to_diffusers_names(state), folder / "diffusion_pytorch_model.safetensors")
(folder / "config.json").write_text(json.dumps(data))
public = checkpoints.read(folder)
found = wan.recognise(public, data, name="base")
print({size: getattr(found.dit, size) for size in ("dim", "ffn_dim", "heads", "layers", "text_dim", "inputs")})

# %%
tiny = {name: x.cpu() for name, x in kit.vae.state_dict().items() if name not in ("mean", "std")}
save_weights(tiny, folder / "taew2_1.safetensors")                          # as TAEHV's file for Wan 2.1 is called
small = replace(found, geometry=kit.geometry, vae=kit.preset.vae)
opened = wan.assemble(small, public, "teacher", folder, "base", "cpu", torch.float32)
with torch.no_grad():
    print("columns now", opened.dit.patch_embedding.in_channels, "| the base's own answer:",
          torch.equal(opened.dit(noise, t, text, motion, image), want))

# %% [markdown]
# And out again, with columns and track head: `wan.export` writes what diffusers' `WanTransformer3DModel` reads (on the
# command line: `msk widen`). `msk.load` opens it in one line. The words would come from umT5; the toy's small text encoder
# takes its place.

# %%
out = wan.export(opened, folder / "wide")
(out / "taew2_1.safetensors").write_bytes((folder / "taew2_1.safetensors").read_bytes())
for file in sorted(out.rglob("*.*")):
    print(f"{file.relative_to(out).as_posix():55}{file.stat().st_size / 1024:>7.0f} KiB")
again = msk.load(out, device="cpu", dtype=torch.float32)
opened.text = again.text = msk.Kit.random(kit.preset).text
frames = [msk.Stream(k, "a fish", picture, seed=0).step() for k in (opened, again)]
print(f"saved, loaded, streamed the same: {torch.equal(*frames)}; a {again.role},",
      f"{again.dit.config.base_channels} of its columns the base's")

# %% [markdown]
# ## The picture
#
# What a card's arithmetic allows at most, three denoising passes and one clean one a chunk; and what the paper measured
# with everything counted, on one H100 with its tiny decoder. Wan 2.1's videos play at 16 frames a second, 2.2's at 24.

# %%
chart = {f"{name}, ceiling on {on.split(',')[0]}": ceiling(msk.PRESETS[name], rate)
         for name in ("wan2.1-1.3b", "wan2.2-5b") for on, rate in rates.items() if "H200" not in on}
computed, chart = chart.keys(), chart | {"paper, 1.3B, H100, measured": 29.5}
viz.bars(chart, "frames a second", "blue: computed; orange: measured, by the paper", 1, chart.keys() - computed)

# %% [markdown]
# ## With real weights
#
# What fits on which card, by the sizes counted above, with 15 % of it left free? umT5 is opened for a prompt and let go;
# where the card has no room for it, it reads on the CPU, and what it said is kept on disk. A model too large for the card
# runs all the same, slower: blocks wait in the CPU's memory for their turn (`msk models`, "slower on").

# %%
for less, gigabytes in ((0, 16), (16, 24), (24, 80)):
    more = [name for name, c in cards.items() if c.fits(gigabytes) and not c.fits(less)]
    print(f"from {gigabytes} GB on:", ", ".join(more))
if torch.cuda.is_available():
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info())
    print(f"this one: {free:.0f} of {total:.0f} GB free")

# %% [markdown]
# The variable MSK_WAN says what to play: a folder (a diffusers pipeline, Wan's own, a WanTrack export), a file (Self
# Forcing's `.pt`), or the name of a preset, which is fetched then. TAEHV's file beside the weights, or at MSK_TAEHV,
# makes decoding fast. Where nothing is said, the same lines play the toy that was just saved, and show grey. A base has
# never seen tracks: it ignores them until trained, and a teacher streamed in three steps is no student. On real
# checkpoints these lines have not yet been run; msk's layouts are tested against diffusers and WanTrack at toy sizes.

# %%
import os

weights = os.environ.get("MSK_WAN") or out
real = msk.load(weights)
if weights is out:
    real.text = again.text.to(real.device, real.dtype)                      # a small encoder in place of umT5
stream = msk.Stream(real, "a red fish in the sea", picture)
chunks = [stream.step(msk.Tracks.grid(real.geometry, 16, stream.frames_wanted)).cpu() for _ in range(3)]
told = ", ".join(f"{name.removesuffix('_ms')} {ms:.0f} ms" for name, ms in stream.stats.items())
print(f"{real.name}, a {real.role} on {real.device}; the last chunk: {told}")

# %%
film = viz.strip(torch.cat(chunks, dim=1), 6)
film.thumbnail((1248, 400))
film

# %% [markdown]
# ## Things to try
#
# 1. Two steps in place of three, no clean pass, a shorter window: which of them buys most on paper for 1.3B, and which for
#    5B? What does each cost that a ceiling does not show?
# 2. From what picture size on does self-attention cost more than everything else together, for 1.3B and for 5B?
# 3. Start the columns *and* the track head at zero, and train both for a few steps. What are their gradients?
# 4. Write a LoRA by hand: two thin matrices for one `q`, saved as PEFT names them; merge it with `checkpoints.merge_lora`
#    and compare with adding it yourself.
#
# Solutions: [solutions/12_wan.py](solutions/12_wan.py).
