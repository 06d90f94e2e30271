# %% [markdown]
# # 07 · Causal initialisation: solutions

# %%
from dataclasses import replace
from unittest import mock

import torch
from torch import nn

import msk
from msk import flow, viz
from msk.motion import draw_ids
from msk.train import lesson, ode
from msk.train.loop import Learner
from msk.train.pipeline import condition, in_blocks
from msk.world import HELD_OUT, World, grid_points

kit = msk.load("tiny", role="teacher", dtype=torch.float32)
preset = lesson.small(kit.preset)
config = preset.stream
batches = lesson.drawn_batches(preset, kit.vae, count=16, batch=4, latent_frames=12, clips=64)
models = lesson.teach(preset, batches, steps=70, lr=3e-3)
torch.manual_seed(1)
paths = [lesson.trajectories(models, preset, batch) for batch in batches]

clip = World(preset.geometry).sample(8, frames=45, seed=HELD_OUT + 251)
tracks = clip.track(grid_points(preset.geometry, 8, 8, 8))
tracks = tracks.with_ids(draw_ids(8, 64, preset.tracks.max_id, torch.Generator().manual_seed(0)))
cond = lesson.as_kit(models, preset, kit.vae).condition(clip.captions, tracks, clip.frames[:, 0].to(kit.device))
truth = kit.vae.encode(clip.frames.to(kit.device))
start = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).to(kit.device)
whole = list(msk.sample(models.dit, start, cond, preset.sample_steps, config.time_shift, preset.text_scale,
                        preset.motion_scale))[-1].x0


def adapted(paths, loss=ode.ode_loss, steps=50):
    torch.manual_seed(0)
    student = lesson.copy(models.dit)
    learner = Learner(student, 1e-3, ema=0.95, muon=in_blocks, muon_lr=2e-3)
    for _ in lesson.taught(learner, lambda p: loss(student, p, config), paths, steps):
        pass
    return student.eval().requires_grad_(False)


@torch.no_grad()
def streamed(dit, **changes):
    chunks = msk.rollout(dit, start, cond.text, cond.motion, cond.image, replace(config, **{"steps": 1} | changes))
    return torch.cat(list(chunks), dim=1)


def by_chunk(latents, target=whole):
    return [f"{e:.4f}" for e in (latents - target).square().mean(dim=(0, 2, 3, 4)).unflatten(0, (4, 3)).mean(1).tolist()]


# %% [markdown]
# 1. `chunk_mask` is told so whatever the dice say. There is next to no difference: of four chunks only the last has lost one
#    from sight, and our student leans little on its past. Where the past is all that knows the picture, it would tell.

# %%
usual = adapted(paths)
whole_past = lambda f, s, chunk, sink, window, device=None: msk.attention.chunk_mask(f, s, chunk, 0, f, device)
with mock.patch.object(ode, "chunk_mask", whole_past):
    full = adapted(paths)
for name, student in {"varied masks": usual, "full masks": full}.items():
    print(f"{name:13}", by_chunk(streamed(student, sink=1, window=1)), "| no sink", by_chunk(streamed(student, sink=0)))

# %% [markdown]
# 2. Without level 0 the student never sees a clean chunk before a noisy one, as the stream has them. Ours does not mind:
#    it leans little on its past, and with no lot spent on clean chunks it even comes a little nearer in as many steps.
#    Where the past is all that knows the picture, the later chunks would tell.


# %%
def never_clean(student, paths, config):
    b, k, f = len(paths.latents), config.steps, paths.latents.shape[2]
    level = torch.randint(k, (b, f // config.chunk)).repeat_interleave(config.chunk, dim=1)
    x = paths.latents[torch.arange(b)[:, None], level, torch.arange(f)]
    t = torch.tensor(flow.schedule(k, config.time_shift))[level].to(x.device)
    mask = msk.attention.chunk_mask(f, 16, config.chunk, int(torch.randint(3, ())), 1, x.device)
    x0 = flow.to_x0(x, student(x, t, paths.text, paths.motion, paths.image, mask=mask), t)
    return (x0 - paths.latents[:, -1]).square().mean(), {}


print("with level 0   ", by_chunk(streamed(usual)))
print("without level 0", by_chunk(streamed(adapted(paths, never_clean))))

# %% [markdown]
# 3. On straight lines the noise says nothing about the clip, so the student learns the mean of all clips that fit: far from
#    the teacher's own, near to the true one in squared error, and blurred.

# %%
torch.manual_seed(1)
lines = [ode.straight(batch.latents, condition(models, batch), config, torch.randn_like(batch.latents)) for batch in batches]
straight = adapted(lines)
for name, student in {"trajectories": usual, "straight lines": straight}.items():
    stream = streamed(student)
    print(f"{name:15} from the teacher's clip", by_chunk(stream), "from the true one", by_chunk(stream, truth))

# %% [markdown]
# 4. With 50 pairs the student knows 50 ends and guesses between them; with the last level only, it was never asked about
#    pure noise, and one jump from there is anyone's guess.

# %%
g = torch.Generator().manual_seed(0)
angle = torch.randint(5, (400,), generator=g) * 2 * torch.pi / 5
data = 1.5 * torch.stack([angle.sin(), -angle.cos()], dim=1) + 0.15 * torch.randn(400, 2, generator=g)
noise, levels = torch.randn(1500, 2, generator=g), flow.schedule(24, 3.0)
path = [noise]
for t, after in zip(levels, [*levels[1:], 0.0]):
    path.append(path[-1] + (after - t) * flow.exact_velocity(path[-1], t, data))
path = torch.stack(path)
waves = lambda x: torch.cat([x, *(f(x * n) for n in (1, 2, 4) for f in (torch.sin, torch.cos))], dim=1)


def learned(pairs, ks):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(21, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(600):
        k, n = torch.tensor(ks)[torch.randint(len(ks), (256,))], torch.randint(pairs, (256,))
        error = (net(waves(torch.cat([path[k, n], torch.tensor(levels)[k, None]], dim=1))) - path[-1, n]).square().mean()
        optimizer.zero_grad(), error.backward(), optimizer.step()
    return net(waves(torch.cat([noise[1000:], torch.ones(500, 1)], dim=1))).detach()


viz.plane({"50 pairs": [learned(50, (0, 8, 16))], "1,000 pairs": [learned(1000, (0, 8, 16))],
           "last level only": [learned(1000, (16,))]})
