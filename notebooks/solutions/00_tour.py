# %% [markdown]
# # 00 · The tour: solutions

# %%
import torch

import msk
from msk import viz
from msk.motion import draw_ids
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny")
scene = World(kit.geometry, level="calm").sample(1, frames=1, seed=HELD_OUT + 7)
picture, prompt = viz.image(scene.frames[0, 0]), scene.captions[0]
points = grid_points(kit.geometry, 32, 32)
thing = points[0, scene.scene.track(points)[2][0] == 1]
ids = draw_ids(1, 200, kit.preset.tracks.max_id, torch.Generator().manual_seed(0))


def asked(way):
    """way [T, 1 or N, 2]: how far from where they began the kite's points are."""
    return msk.Tracks.of(thing + way, ids=ids[:, :len(thing)])


def play(tracks, prompt=prompt):
    stream, chunks, at = msk.Stream(kit, prompt, picture, seed=0), [], 0
    while at + stream.frames_wanted <= tracks.xy.shape[1]:
        n = stream.frames_wanted
        chunks.append(stream.step(tracks.frames(at, at + n))[0].float().cpu())
        at += n
    return torch.cat(chunks)


# %% [markdown]
# 1. It does, and one sees no difference: its tracks go on outside the picture and bring back what they hold of the given
#    one.

# %%
there = 90 * torch.sin(torch.linspace(0, torch.pi, 45))[:, None, None] * torch.tensor([1.0, 0.0])
viz.strip(play(asked(there)), count=7)

# %% [markdown]
# 2. It wags. A thing is stiff only as long as its points are told so.

# %%
low = ((thing[:, 1] - thing[:, 1].mean()) / 10 - 1).clamp(min=0)            # 0 for the kite, growing down the tail
swing = torch.sin(torch.linspace(0, 4 * torch.pi, 45))[:, None] * 6 * low
viz.strip(play(asked(torch.stack([swing, torch.zeros_like(swing)], dim=-1))), count=7)

# %% [markdown]
# 3. Hardly: a plain sky stays by itself. Above the kite it changes by 0.0006 of 1 without pins, and by 0.0000 with them; and
#    pinned, a torn edge shows beside the kite for a while. Pins are for pictures with more in them, and not on the kite's
#    own way, where they would hold its parts back; so those are left out.

# %%
way = torch.linspace(0, -40, 45)[:, None, None] * torch.tensor([1.0, 0.0])
pins = msk.Tracks.grid(kit.geometry, spacing=24, frames=45)
pins = pins.with_ids(ids[:, len(thing):len(thing) + pins.ids.shape[1]])
outside = (pins.xy[0, 0, :, None] - asked(way).xy[0].flatten(0, 1)).norm(dim=-1).amin(dim=1) > 8
pins = msk.Tracks(pins.xy[:, :, outside], pins.visible[:, :, outside], pins.ids[:, outside])
made = {"kite alone": play(asked(way)), "ground pinned": play(asked(way).concat(pins))}
for name, frames in made.items():
    change = (frames - frames[0])[:, :, :24].abs().mean()
    print(f"{name:15} mean change of the sky above: {change:.4f} of 1, on {kit.device}")
viz.grid([viz.strip(frames, count=7) for frames in made.values()], list(made))

# %% [markdown]
# 4. Light, weather, waves: all that no point of the picture goes along with.

# %%
still = asked(torch.zeros(45, 1, 2))
words = ("", ", night falls", ", ripples running")
viz.grid([viz.strip(play(still, prompt + more), count=7) for more in words], [prompt + more for more in words])
