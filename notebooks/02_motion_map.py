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
# # 02 · How do N tracks become a grid the transformer can read?
#
# A transformer over video reads a grid of latents: here 16 x 16 cells of 8 x 8 pixels, one latent frame for every four
# pixel frames. Tracks are a list, of any length, and each point has a number of its own. This notebook takes the list to
# the grid by hand, then with `msk`, then under your own mouse, and weighs it against the obvious way, drawing the tracks
# in colours and encoding that as a video. The last picture shows all of the way on one page: clip, stamps, map.
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
# ## By hand: a number becomes a vector
#
# Which track is which? Each gets a random number, its id, and the id becomes a *fixed* vector, nothing learned: cosines
# and sines at 32 rates, from 1 down to 1/10,000 (Sec. 3.1, after Motion Prompting).
#
# $$\phi(n) = [\cos(n\,\omega_i),\ \sin(n\,\omega_i)]_{i = 0 \dots 31},\qquad \omega_i = 10\,000^{-i/32}$$


# %%
import torch

rates = 10_000 ** -(torch.arange(32) / 32)


def phi(n):
    angle = n.float()[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)                    # [..., 64]


# %% [markdown]
# Its squared length is always 32. How alike are two ids? As likeness take the inner product over 32, which is 1 for the
# same id. Neighbours are near twins, which is why ids are not 0, 1, 2, ... but drawn at random from 16,384 numbers, no
# number twice.

# %%
from msk import viz

apart = torch.arange(0, 300)
alike = phi(torch.tensor(5000)) @ phi(5000 + apart).T / 32
drawn_ids = torch.randperm(16384, generator=torch.Generator().manual_seed(0))[:200]
chance = (phi(drawn_ids) @ phi(drawn_ids).T / 32)[~torch.eye(200, dtype=torch.bool)].mean()
viz.curves({"ids that far apart": (apart, alike), "two ids drawn at random, mean": (apart, chance.expand(300))},
           "difference of two ids", "likeness (1: the same)")

# %% [markdown]
# ## By hand: stamp
#
# Now each visible track leaves its vector in the cell that it lies in (Eq. 1), $s$ = 8 pixels:
#
# $$c_m[t,\ \lfloor y/s \rfloor,\ \lfloor x/s \rfloor] = v[t, n]\ \phi_n$$
#
# Where two meet in one cell, they add.

# %%
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
geometry, config = kit.geometry, kit.preset.tracks
clip = World(geometry).sample(1, frames=45, seed=HELD_OUT + 8)
ids = draw_ids(1, 100, config.max_id, torch.Generator().manual_seed(1))
tracks = clip.track(grid_points(geometry, 10, 10)).with_ids(ids)

# %%
(h, w), s = geometry.latent_size, geometry.stride
by_hand = torch.zeros(45, 64, h, w)
for t, n in tracks.visible[0].nonzero().tolist():                           # the visible ones alone
    x, y = tracks.xy[0, t, n]
    by_hand[t, :, int(y // s), int(x // s)] += phi(ids[0, n])

# %%
from msk.config import TrackConfig
from msk.motion import splat

stamps = splat(tracks, geometry, TrackConfig(splat="floor"))[0]             # the paper's way
print("by hand and splat agree:", torch.allclose(by_hand, stamps, atol=1e-3), list(stamps.shape), "[T, id, h, w]")

# %% [markdown]
# ### Between the cells
#
# With cells of 8 pixels, `floor` does not notice a point that moves by less. The tiny kit has few cells to spare, so
# there the four nearest cells share a point by distance (`splat="bilinear"`). Below, a point goes to the right by two
# cells: who hears it?

# %%
slow = msk.Tracks.drag([[40, 52], [56, 52]], frames=65)
heard = {}
for mode, columns in (("floor", (5, 6)), ("bilinear", (5, 6))):
    loud = splat(slow, geometry, TrackConfig(splat=mode))[0].norm(dim=1)[:, 6] / 32**0.5        # [T, w]
    heard |= {f"{mode}, column {c}": (slow.xy[0, :, 0, 0], loud[:, c]) for c in columns}
viz.curves(heard, "x of the point, pixels", "strength", "where one point is heard")

# %% [markdown]
# ## By hand: four frames into one
#
# One latent frame stands for four pixel frames, but the first for one only. So frame 0 is repeated four times, and then
# every four frames lie side by side in the channels: 4 x 64 = 256 of them (Fig. 2: "Pack Time -> Channel Dim"). Two
# convolutions of size 1x1x1, without bias, make them few. This is all that is learned here: the *track head*.

# %%
import torch.nn.functional as F

stamped = splat(tracks, geometry, config)[0].to(kit.device)                 # [T, 64, h, w]
four = torch.cat([stamped[:1].expand(3, -1, -1, -1), stamped]).unflatten(0, (-1, 4))            # [F, 4, 64, h, w]
packed = four.transpose(1, 2).flatten(1, 2)                                 # [F, 256, h, w]: channel * 4 + sub-frame
first, second = kit.track_head.convs
by_hand = second(F.silu(first(packed.transpose(0, 1)))).transpose(0, 1)     # a Conv3d takes [C, F, h, w]

# %% [markdown]
# ## With msk
#
# The same in one call, without ever writing down the 256 channels. Where no track speaks, the map is *exactly* zero:
# without biases nothing can come from nothing. So "no tracks" and "an empty map" are one and the same, which notebook 05
# needs. (`told` has more channels than these 32; the rest are for what tracks may carry, near the end of this notebook.)

# %%
told = kit.track_head(tracks.to(kit.device))                                # [B, F, Cm, h, w]
silent = (packed == 0).all(dim=1)
print("by hand and track head agree:", torch.allclose(by_hand, told[0, :, :config.channels], atol=1e-2))
print("cells without a track:", int(silent.sum()), "| exactly zero there:",
      bool((told[0].movedim(1, -1)[silent] == 0).all()))
weights = sum(p.numel() for p in kit.track_head.parameters())
print(f"numbers in a latent cell: {packed.shape[1]} -> {config.channels}, by {weights:,} weights")

# %% [markdown]
# A chunk of the map depends on its own pixel frames alone, so a stream can make it piece by piece as the hand moves.
# Cut at the borders of chunks (9 pixel frames, then 12, 12, ...), the pieces are the whole:

# %%
pieces = [kit.track_head(tracks.frames(*geometry.span(f, 3)).to(kit.device), start=f == 0) for f in range(0, 12, 3)]
print("cut in chunks:", torch.allclose(torch.cat(pieces, dim=1), told, atol=1e-5))

# %% [markdown]
# ## Live
#
# Where does the end of a drag go in the map? Three sliders: the place to which the hand pulls, and the latent frame.


# %%
def pull(x=70, y=30, latent_frame=8):
    drag = msk.Tracks.drag([[30, 60], [x, y]], 45, spacing=9, size=3).with_ids(ids[:, :9])
    colours = viz.motion_colours(kit.track_head(drag.to(kit.device))[0, :, :config.channels])[latent_frame]
    film = viz.draw_tracks(clip.frames[0, :1].expand(45, -1, -1, -1), drag, trail=45, zoom=3)[4 * latent_frame]
    pictures = {f"pixel frame {4 * latent_frame}": film, "motion map": colours}
    return viz.panels({name: viz.image(picture) for name, picture in pictures.items()}, width=2.8)


viz.live(pull, x=(0, 127), y=(0, 127), latent_frame=(0, 11))

# %% [markdown]
# And under your hand. This is the live canvas of notebook 00, but in place of a video it shows what the transformer is
# told: press on the picture, drag, and watch cells speak and fall silent. **Enter** starts and ends.

# %%
from msk.live import Stage
from msk.live.mirror import Mirror

picture = viz.image(clip.frames[0, 0])
stage = Stage(kit, picture, open_stream=lambda prompt, image, seed: Mirror(kit, image))
stage

# %% [markdown]
# ## Light head, or tracks drawn in colour?
#
# The obvious way would be to draw each track in a colour of its own, on black, and to send that video through the
# autoencoder, the VAE (Sec. 4.3). The paper's Table 3 (DAVIS, one H100; PSNR and SSIM higher, LPIPS and end-point error,
# EPE, lower is better):
#
# | tracks as | PSNR, dB | SSIM | LPIPS | EPE, pixels | encoding, ms |
# |---|---|---|---|---|---|
# | ids through the light head | 16.29 | 0.452 | 0.456 | 6.54 | 24.8 |
# | colours through the VAE | 16.03 | 0.433 | 0.463 | 8.57 | 1053 |
#
# So the head follows better, looks about the same, and costs a fortieth. Ours, drawn and timed:

# %%
from time import perf_counter

from msk.motion import drawn

colourful = drawn(tracks, geometry)                                         # [B, T, 3, H, W]
viz.strip(torch.cat([colourful[0, ::11]]), count=5, zoom=2)


# %%
@torch.no_grad()
def milliseconds(call, times=3):
    call()
    began = perf_counter()
    for _ in range(times):
        call()
    return 1000 * (perf_counter() - began) / times


here = tracks.to(kit.device)
cost = {"light head": milliseconds(lambda: kit.track_head.forward(here).cpu()),
        "drawn, then encoded": milliseconds(lambda: kit.vae.encode(drawn(here, geometry)).cpu())}
where = f"on {kit.device}, {torch.get_num_threads()} threads"
viz.bars(cost, "milliseconds for 45 frames, 100 tracks", where, digits=1)

# %% [markdown]
# And what arrives? A reader must be able to tell that the point here is the point that was there before. So: let N
# points go their own ways, look at the cell of each in an early and in a late latent frame, and match the two by
# likeness. How many are found?


# %%
@torch.no_grad()
def found_again(read, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    begin, way = 20 + 56 * torch.rand(count, 2, generator=g), 36 * torch.rand(count, 2, generator=g) - 18
    xy = begin + torch.linspace(0, 1, 45).view(-1, 1, 1) * way                                  # [T, N, 2], pixels
    moving = msk.Tracks.of(xy, ids=draw_ids(1, count, config.max_id, g)).to(kit.device)
    row, column = (xy[::4] / geometry.stride).long().flip(-1).unbind(-1)                        # [F, N]
    early, late = (F.normalize(read(moving)[0, f].float().cpu()[:, row[f], column[f]], dim=0) for f in (2, 10))
    return (early.T @ late).argmax(dim=1).eq(torch.arange(count)).float().mean().item()


# %%
readers = {"light head": lambda x: kit.track_head(x)[:, :, :config.channels],
           "drawn, then encoded": lambda x: kit.vae.encode(drawn(x, geometry))}
counts = (2, 5, 10, 20, 40)
share = {name: (counts, [sum(found_again(read, n, seed) for seed in range(5)) / 5 for n in counts])
         for name, read in readers.items()}
viz.curves(share, "tracks in the picture", "share found again",
           f"who is who? (nearest cell, before any transformer, on {kit.device})")

# %% [markdown]
# The head tells more tracks apart than drawn colours do, and costs a fraction of the time: the better following and the
# shorter time of the paper's table fit that. Neither tells forty apart by a single cell: where tracks cross or share cells,
# their vectors mix. The transformer sees all cells and all frames at once.
#
# ## An addition of ours: the picture travels along
#
# The paper's map says *which* point is where, and a transformer of a billion weights looks up in the first frame what
# that point looks like. Ours has a few million, so its tracks may also carry the given picture with them (`msk.carry`;
# Wan-Move, 2512.08765, carries latents). No weights in it. Each pixel goes with one track: the nearest along ways that shun
# edges, so that borders between tracks come to lie where those of things are. It turns and grows as that one's neighbours
# do; where two come to the same place, what moves covers what stays; and the moved picture is encoded. The big models use
# ids alone. A latent has 12 channels here; four more say how near a track is, one for each of the four pixel frames. So the
# whole map is 32 + 16 = 48 channels wide.

# %%
from msk.carry import carry, inpaint, owners, warp

dense, picture = clip.track(grid_points(geometry, 32, 32)), clip.frames[:, 0]
moved, near = warp(dense, picture, reach=3 * geometry.stride)               # [B, T, 3, H, W], [B, T, H, W]
taken = carry(dense.to(kit.device), kit.pixels(picture), kit.vae.encode_alone, geometry)        # [B, F, C + 4, h, w]
seen = kit.vae.decode(taken[:, :, :config.carry])[0][0].float().cpu()
print("channels carried:", taken.shape[2], "| whole map:", config.width(geometry.time_stride))

# %% [markdown]
# Without any transformer it is already a video. It is good where a track is near. It is wrong where something comes into
# view that the first frame does not show: that is filled from around, and leaves smears and gaps. And it knows nothing of
# light and weather, nor of the rest of a thing for which one point alone speaks. All of this is left for the transformer to
# learn, and also where to believe the carried picture: a gate says that, cell by cell (`DiT.pulled`). Why are pixels
# carried and not latents? A latent cell is eight pixels wide, and can only be shifted by whole cells.

# %%
viz.grid([viz.strip(film[0] if film.ndim == 5 else film, count=5, zoom=2) for film in (clip.frames, moved, seen)],
         ["the true clip", "its first frame, carried", "the same as latents, decoded"])

# %% [markdown]
# Whose is a pixel? With only 8 x 8 tracks, and a colour for each: first the nearest as the crow flies, which cuts through
# things, then the nearest along ways that shun edges (a step costs its length, and more the more the colours differ).

# %%
began = grid_points(geometry, 8, 8)[0]                                      # [N, 2], in pixels
everyone, colour = torch.ones(64, dtype=torch.bool), torch.rand(65, 3, generator=torch.Generator().manual_seed(1))
told_apart = [owners(x, began, everyone, reach=3 * geometry.stride)[0] for x in (torch.zeros_like(picture[0]), picture[0])]
areas = [.4 * picture[0] + .6 * colour[whose].T.unflatten(1, picture.shape[-2:]) for whose in told_apart]
viz.strip(torch.stack([picture[0], *areas]), zoom=2)

# %% [markdown]
# What goes away uncovers ground, and takes its shadow along. No track says what is there, so the picture is split before it
# is moved: into what moves and the *clean plate* beneath it, with how much of that is hidden (`msk.plate` learned it on
# scenes that were drawn again without their things; `inpaint` fills from around). Picture = front + (1 - hidden) plate: the
# front laid back where it was gives the very picture again, whatever the plate says. Below, a thing is dragged off to the
# right. Filled from around, the place where it was keeps a grey stain, since its shadow was taken for ground. The learned
# plate shows next to nothing there: to it the shadow, too, is something that hides the ground a little.

# %%
still = World(geometry).sample(1, 1, seed=HELD_OUT + 4)
seen = still.frames[:, 0]
spot = (still.scene.layers()[0] > 0).nonzero().float().mean(dim=0).flip(0) + .5
hand = kit.whole(msk.Tracks.drag([spot.tolist(), (spot + torch.tensor([48, -20])).tolist()], frames=13), seen)
splits = {}


def told(name, split):
    """`split`, keeping what it was asked and what it said."""
    def ask(pictures, moving):
        splits[name] = moving, *split(pictures, moving)
        return splits[name][1:]
    return ask


led = {name: warp(hand, seen, 3 * geometry.stride, told(name, split))[0][0, -1]
       for name, split in (("inpaint", inpaint), ("kit.plate", kit.plate))}
wide = lambda x: x[0].float().expand(3, -1, -1)
rows = [viz.strip(torch.stack([wide(moving), wide(hidden), plate[0], led[name]]), zoom=2)
        for name, (moving, plate, hidden) in splits.items()]
viz.grid(rows, [f"{name}: what moves, how much is hidden, the plate, and the picture after the drag" for name in splits])

# %% [markdown]
# ## The picture
#
# From top to bottom: the clip with tracks on its things alone; the stamps (brighter: more in a cell; a point near a
# border is shared, so it is dimmer); the motion map as the transformer reads it, its channels brought down to three
# colours, white where nobody speaks.

# %%
ground = clip.scene.track(grid_points(geometry, 10, 10))[2] == 0            # [B, N]
things = tracks.hide(ground[:, None])
stamps, told = splat(things, geometry, config)[0], kit.track_head(things.to(kit.device))
shown = [0, 2, 5, 8, 11]                                                    # latent frames
film = viz.draw_tracks(clip.frames[0], things, zoom=2)[[4 * f for f in shown]]
loud = (stamps.norm(dim=1)[[4 * f for f in shown]] / 32**0.5).clamp(0, 1)
colours = viz.motion_colours(told[0, :, :config.channels])[shown]

# %%
viz.grid([viz.strip(film), viz.strip(loud[:, None].expand(-1, 3, -1, -1), zoom=16), viz.strip(colours, zoom=16)],
         [f"clip and tracks, pixel frames {[4 * f for f in shown]}", "stamps", f"motion map, latent frames {shown}"])

# %% [markdown]
# ## Things to try
#
# 1. Give all tracks ids 0, 1, 2, ... in place of random ones. What happens to the colours of the map, and to "who is
#    who"?
# 2. In the drawn video, make the squares larger (`drawn(tracks, geometry, radius=3)`). Does the encoder tell more
#    tracks apart?
# 3. Shift all tracks by four pixel frames. Which part of the map shifts by exactly one latent frame, and why not all of
#    it?
# 4. Carry the picture with a drag of one point, then of 5 x 5. How much of the picture does each take along?
#
# Solutions: [solutions/02_motion_map.py](solutions/02_motion_map.py).
