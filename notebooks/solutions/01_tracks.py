# %% [markdown]
# # 01 · Tracks: solutions

# %%
import tempfile
from pathlib import Path

import torch

import msk
from msk import viz
from msk.world import HELD_OUT, World, grid_points

geometry = msk.PRESETS["tiny"].geometry
clip = World(geometry, level="full").sample(1, frames=45, seed=HELD_OUT + 29)
points = grid_points(geometry, 7, 7)
exact = clip.track(points)

# %% [markdown]
# 1. The longest silence: count hidden frames a track, among those that are seen in the last frame as well.

# %%
silent = (~exact.visible[0]).sum(dim=0)
back = exact.visible[0, 0] & exact.visible[0, -1]
most = torch.where(back, silent, -1).argmax().item()
print(f"track {silent.argmax()} is silent for {silent.max()} frames; of those that come back, {most} for {silent[most]}")
alone = msk.Tracks.of(exact.xy[0, :, [most]], exact.visible[0, :, [most]])
viz.strip(viz.draw_tracks(clip.frames[0], alone, zoom=2), count=6)

# %% [markdown]
# 2. Now all points are seen at the end, and the silence moves towards the beginning: what comes into view later has no
#    place in the first frame.

# %%
late = clip.track(points, at=44)
for name, each in (("from the first frame", exact), ("from the last frame", late)):
    print(name, [f"{share:.0%}" for share in each.visible[0].float().mean(dim=1)[::11]])
viz.score(late, (geometry.height, geometry.width))

# %% [markdown]
# 3. The path stays, the speed does not: half as many frames, twice the pixels a frame.

# %%
drag = msk.Tracks.drag([[25, 70], [40, 30], [75, 40]], 45, spacing=8, size=3)
for frames in (23, 45, 89):
    step = drag.resample(frames).xy.diff(dim=1).norm(dim=-1).mean()
    print(f"{frames} frames: {step:.2f} pixels a frame")

# %% [markdown]
# 4. Positions are written to a thousandth of a pixel; visibility and ids are exact.

# %%
path = Path(tempfile.mkdtemp()) / "tracks.json"
exact.save(path)
again = msk.Tracks.load(path)
print("largest difference:", (again.xy - exact.xy).abs().max().item(), "pixels; the rest equal:",
      torch.equal(again.visible, exact.visible) and torch.equal(again.ids, exact.ids))
