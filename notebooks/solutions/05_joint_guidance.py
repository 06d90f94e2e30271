# %% [markdown]
# # 05 · Joint guidance: solutions

# %%
from dataclasses import replace

import torch

import msk
from msk import viz
from msk.flow import exact_velocity, schedule
from msk.guidance import joint_guidance
from msk.world import HELD_OUT, World, grid_points

# %% [markdown]
# 1. The tracks of the first clip, the prompt of the second. What can only be said in words (colours, weather) may come
#    from the prompt, but the given picture speaks against it in every pass; where things go is said by the tracks.

# %%
kit = msk.load("tiny", role="teacher")
clip = World(kit.geometry).sample(2, frames=21, seed=HELD_OUT + 35)
first = clip.track(grid_points(kit.geometry, 12, 12, 2))
first = msk.Tracks(first.xy[:1], first.visible[:1], first.ids[:1])
cond = kit.condition(clip.captions[1:], first, clip.frames[:1, 0])
shape = 1, 6, kit.dit.config.latent_channels, *kit.geometry.latent_size
start = torch.randn(shape, generator=torch.Generator().manual_seed(0))


def sampled(w_t, w_m):
    last = list(msk.sample(kit.dit, start.to(kit.device), cond, 8, kit.preset.stream.time_shift, w_t, w_m))[-1]
    return kit.vae.decode(last.x0)[0][0, -1].float().cpu()


print("prompt:", clip.captions[1], "| picture and tracks:", clip.captions[0])
viz.guidance_grid({(a, b): viz.image(sampled(a, b)) for a in (0.0, 3.0, 6.0) for b in (0.0, 3.0)})

# %% [markdown]
# 2. With `both` as the base, the factors still sum to 1, and w_m = 0 or w_t = 0 is still guidance by the other alone,
#    but by one more than the scale says; and scales that sum to 1 are no longer "no guidance".

# %%
unit = torch.eye(3)
for w_t, w_m in ((3.0, 1.5), (0.5, 0.5), (3.0, 0.0), (0.0, 0.0)):
    both, text_only, motion_only = unit
    parts = both + w_t * (both - motion_only) + w_m * (both - text_only)
    print(f"w_t {w_t:g}, w_m {w_m:g}: both {parts[0]:+.2f}, text only {parts[1]:+.2f}, motion only {parts[2]:+.2f}")

# %% [markdown]
# 3. If the text already says where it goes, asking for the motion as well adds nothing: the two pulls get small where
#    one wish is enough to tell, and are no longer at right angles.

# %%
g = torch.Generator().manual_seed(0)
side = torch.randint(0, 2, (1200,), generator=g) * 2 - 1
data = torch.stack([side, -side], dim=1) * 0.7 + 0.6 * torch.randn(1200, 2, generator=g)
right, up = data[:, 0] > 0, data[:, 1] < 0                                  # asked by what is seen, since the wishes are one
told = {"both": data[right & up], "text only": data[right], "motion only": data[up]}
places = torch.cartesian_prod(torch.linspace(-2, 2, 9), torch.linspace(-2, 2, 9))
both, text_only, motion_only = (exact_velocity(places, 0.6, part) for part in told.values())
pulls = {"text pulls": motion_only - both, "motion pulls": text_only - both}
viz.plane({name: [told["both"], (places, pull)] for name, pull in pulls.items()})

# %% [markdown]
# 4. With the paper's shift of 6 most levels lie above 0.5, so little is saved; with even levels it is half of the extra
#    passes.

# %%
passes = 0


def counted(*args, **kwargs):
    global passes
    passes += 1
    return kit.dit(*args, **kwargs)


cond = replace(cond, text=kit.encode_text(clip.captions[:1]))
for until in (0.0, 0.5):
    x, levels, passes = start.to(kit.device), schedule(8, kit.preset.stream.time_shift), 0
    for t, after in zip(levels, [*levels[1:], 0.0]):
        scales = (3.0, 1.5) if t > until else (0.0, 0.0)
        with torch.no_grad():
            x = x + (after - t) * joint_guidance(counted, x, x.new_full(x.shape[:2], t), cond, *scales)
    print(f"guided above t = {until}: {passes} passes")
