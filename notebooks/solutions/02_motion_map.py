# %% [markdown]
# # 02 · Motion map: solutions

# %%
import torch
import torch.nn.functional as F

import msk
from msk import viz
from msk.carry import warp
from msk.motion import drawn, splat
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
geometry, config = kit.geometry, kit.preset.tracks
clip = World(geometry).sample(1, frames=45, seed=HELD_OUT + 8)
tracks = clip.track(grid_points(geometry, 10, 10))


@torch.no_grad()
def found_again(read, count, ids, seed=0):
    g = torch.Generator().manual_seed(seed)
    begin, way = 20 + 56 * torch.rand(count, 2, generator=g), 36 * torch.rand(count, 2, generator=g) - 18
    xy = begin + torch.linspace(0, 1, 45).view(-1, 1, 1) * way
    row, column = (xy[::4] / geometry.stride).long().flip(-1).unbind(-1)
    told = read(msk.Tracks.of(xy, ids=ids).to(kit.device))[0].float().cpu()
    early, late = (F.normalize(told[f][:, row[f], column[f]], dim=0) for f in (2, 10))
    return (early.T @ late).argmax(dim=1).eq(torch.arange(count)).float().mean().item()


# %% [markdown]
# 1. Neighbouring numbers have nearly the same vector: the map becomes smooth, its colours flow from one row of points
#    to the next, and the points are harder to tell apart.

# %%
head = lambda x: kit.track_head(x)[:, :, :config.channels]
mean = lambda read, ids: sum(found_again(read, 20, ids(seed), seed) for seed in range(5)) / 5
print(f"ids in order: {mean(head, lambda seed: torch.arange(20)):.2f}, ids at random: "
      f"{mean(head, lambda seed: torch.randperm(config.max_id, generator=torch.Generator().manual_seed(seed))[:20]):.2f}")
viz.strip(viz.motion_colours(head(tracks.to(kit.device))[0]), count=5, zoom=16)

# %% [markdown]
# 2. More pixels of a colour reach the encoder, but large squares also cover each other.

# %%
ids = lambda seed: torch.randperm(config.max_id, generator=torch.Generator().manual_seed(seed))[:20]
for radius in (0, 1, 2, 3, 5):
    share = mean(lambda x, radius=radius: kit.vae.encode(drawn(x, geometry, radius)), ids)
    print(f"squares of {2 * radius + 1} pixels: {share:.2f} found again")

# %% [markdown]
# 3. Latent frame 0 holds one pixel frame, four times; every later one holds four different ones. So from latent frame 1
#    on, the shifted map is the map one frame later.

# %%
whole = kit.track_head(tracks.to(kit.device))
shifted = kit.track_head(tracks.frames(4, 45).to(kit.device))
print("from latent frame 1 on:", torch.allclose(shifted[:, 1:], whole[:, 2:], atol=1e-5),
      "| frame 0 as well:", torch.allclose(shifted[:, 0], whole[:, 1], atol=1e-5))

# %% [markdown]
# 4. Pixels go with a track that is at most three cells away: one point alone carries a disc, 5 x 5
#    points 9 pixels apart a patch.

# %%
for size in (1, 5):
    drag = msk.Tracks.drag([[40, 40], [60, 60]], 45, spacing=9, size=size)
    near = warp(drag, clip.frames[:, 0], reach=3 * geometry.stride)[1][0, -1]
    print(f"{size} x {size}: {(near > 0).float().mean():.0%} of the pixels are carried,",
          f"{(splat(drag, geometry, config)[0, -1].abs().sum(0) > 0).float().mean():.0%} of the cells hold an id")
