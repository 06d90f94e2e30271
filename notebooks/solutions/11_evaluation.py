# %% [markdown]
# # 11 · Evaluation: solutions

# %%
from dataclasses import replace

import torch

import msk
from msk import camera, trackers, viz
from msk.evaluate import by_student, epe, followed, psnr, ssim
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
geometry, world = kit.geometry, World(kit.geometry)
clip = world.sample(1, frames=33, seed=HELD_OUT + 210)
points = trackers.trackable(clip.frames, clip.track, 16, torch.Generator().manual_seed(0))


def numbered(tracks, seed=0):
    return tracks.with_ids(draw_ids(1, tracks.ids.shape[1], kit.preset.tracks.max_id, torch.Generator().manual_seed(seed)))


# %% [markdown]
# 1. Frozen halfway: SSIM falls a little (0.971), EPE says by how far (5.03 pixels); the mean PSNR, 63 dB, is flattered by
#    frames that are exactly right, which count as 100 dB each. Two frames swapped: nobody minds, as each frame is compared
#    by itself, and two neighbours are nearly alike; a measure of smoothness would. Mirrored: all is wrong for the three of
#    them, and yet it is a good video. All three ask for *this* video, and for nothing else.

# %%
frames = clip.frames
swapped = frames[:, [*range(15), 16, 15, *range(17, 33)]]
changed = {"frozen halfway": torch.cat([frames[:, :17], frames[:, 16:17].expand(-1, 16, -1, -1, -1)], dim=1),
           "two frames swapped": swapped, "mirrored": frames.flip(-1)}
for name, made in changed.items():
    off = epe(trackers.register(made, frames, points.xy), points).mean()
    near, alike = psnr(made, frames)[:, 1:].mean(), ssim(made[0], frames[0])[1:].mean()
    print(f"{name:20} {near:.2f} dB, SSIM {alike:.3f}, EPE {off:.2f} px")

# %% [markdown]
# 2. From 2.61 pixels frame by frame to 2.18 by every eighth; by every sixteenth the points are lost, 48 pixels away. Fewer
#    steps, fewer errors to add; but over a long step things turn, come into shadow and leave the search radius, and a
#    single match is less sure. That trade is what `trackers.chain` weighs for each point in each frame.

# %%
grainy = (frames + 0.03 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
for step in (1, 2, 4, 8, 16, 32):
    place = points.xy[:, 0]
    for t in range(step, 33, step):
        place, _ = trackers.match(grainy[:, t - step], place, grainy[:, t], place, 8.0 * geometry.width / trackers.REFERENCE)
    off = (place - points.xy[:, 32]).norm(dim=-1)[points.visible[:, 32]]
    print(f"every {step:2} frames: {off.mean():.2f} px in frame 32")

# %% [markdown]
# 3. No: 4.88 pixels forwards and 2.93 backwards. The start is another picture: what was uncovered is now covered, and the
#    other way round.

# %%
told = numbered(clip.track(grid_points(geometry, 20, 20)))
back = clip.track(grid_points(geometry, 20, 20), at=32)
back = numbered(replace(back, xy=back.xy.flip(1), visible=back.visible.flip(1)))
for name, tracks, truth in (("forwards", told, frames), ("backwards", back, frames.flip(1))):
    made = by_student(kit, clip.captions, truth[:, 0].to(kit.device), tracks, 33, seed=0).cpu()
    found, measured = followed(made, tracks)
    near = psnr(made, truth)[:, 1:].mean()
    print(f"{name:10} EPE {epe(found, measured).mean():.2f} px, PSNR {near:.2f} dB on {kit.device}")

# %% [markdown]
# 4. The student keeps up with all four: EPE is 0.04, 0.04, 0.08 and 0.17 pixels. But of a fast pan less and less of the
#    given picture is left; what comes into view is invented, here a plain smear, and the eye sees that first. EPE asks only
#    about points that are still there.

# %%
scene, strips, names = world.sample(1, 1, seed=HELD_OUT + 1), [], []
for right in (8, 16, 32, 64):
    tracks = numbered(camera.pan(geometry, 33, right=right, grid=(16, 16)))
    made = by_student(kit, scene.captions, scene.frames[:, 0].to(kit.device), tracks, 33, seed=0).cpu()
    found, measured = followed(made, tracks)
    strips.append(viz.strip(made[0], 6))
    names.append(f"{right} px: EPE {epe(found, measured).mean():.2f} px at {measured.xy.shape[2]} points")
viz.grid(strips, names)
