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
# # 03 · How does noise become data along straight lines?
#
# The transformer of this kit answers one question only: *which way?* Given a point somewhere between data and noise, it
# names a velocity. All else, training and sampling, is a few lines around that answer. We write them by hand for points
# in the plane, where the best possible answer is known in closed form, then meet them again in `msk.flow`. The last
# picture shows the same noise walking into a star, and into a video, in one step, in three, and in many.
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
# ## Data: a star
#
# Points of the plane that lie on a star of the drawn world, of mean 0 and variance 1, and as many points of noise.

# %%
import torch

from msk import viz
from msk.world import HELD_OUT, World, grid_points

geometry = msk.PRESETS["tiny"].geometry
scene, _ = World(geometry).scene(1, frames=1, seed=HELD_OUT + 33)
points = grid_points(geometry, 128, 128)
data = points[0, scene.track(points)[2][0] == 1]            # 1 is the thing, 0 the ground
data = (data - data.mean(0)) / data.std()

# %%
torch.manual_seed(0)
data = data[torch.randperm(len(data))[:500]]
noise = torch.randn(500, 2)
viz.plane({f"data: {len(data)} points": [data], "noise": [noise]})

# %% [markdown]
# ## By hand: the straight line
#
# Each point of data is joined to a point of noise, and $t$ says how far along we are: 0 is data, **1 is noise** (Eq.
# A1).
#
# $$x_t = (1 - t)\,x_0 + t\,\epsilon$$

# %%
between = {f"t = {t}": [(1 - t) * data + t * noise] for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
viz.plane(between, title="data on the left, noise on the right")

# %% [markdown]
# Along its line each point moves with one and the same velocity, $dx_t/dt = \epsilon - x_0$. But who only sees the
# place $x_t$ cannot know which line it is on: many cross there. The best answer, in the mean of squares, is the mean
# over all of them, each weighted with how likely it is. With finitely many data that is a softmax:
#
# $$v(x, t) = \mathbb{E}[\epsilon - x_0 \mid x_t = x] = \frac{x - \sum_k w_k x_0^k}{t},\qquad
# w = \mathrm{softmax}\Big(-\frac{|x - (1-t)\,x_0^k|^2}{2t^2}\Big)$$


# %%
def best(x, t):
    away = (x[:, None] - (1 - t) * data).square().sum(-1)           # [N, K] squared distances
    likely = (-away / (2 * t**2)).softmax(-1)                       # noise is Gaussian
    return (x - likely @ data) / t                                  # noise - x0, in the mean


# %% [markdown]
# These are its arrows: against the velocity, since we go from noise to data. Near noise they all point to the middle;
# the star comes in late. Move through the time:

# %%
places = torch.cartesian_prod(torch.linspace(-2.4, 2.4, 15), torch.linspace(-2.4, 2.4, 15))


def field(t=0.5):
    now = (1 - t) * data + t * noise
    return viz.plane({f"t = {t:.2f}": [now, (places, -best(places, t))]}, size=4)


viz.live(field, t=(0.05, 1.0, 0.05))

# %% [markdown]
# ## Walk
#
# Sampling is walking along the arrows, from $t = 1$ to $t = 0$: $x \leftarrow x + (t' - t)\,v(x, t)$. The straight
# lines were only for training; lines that walkers take never cross, so they bend. One step lands at the mean of all
# data.


# %%
def walk(x, levels, velocity=best):
    path = [x]
    for t, after in zip(levels, [*levels[1:], 0.0]):
        path.append(path[-1] + (after - t) * velocity(path[-1], t))
    return torch.stack(path)                                        # [K, N, 2]


# %%
walks = {f"steps: {n}": walk(noise, [1 - i / n for i in range(n)]) for n in (1, 3, 10, 50)}
ways = {name: [path[-1], path[:, :80]] for name, path in walks.items()}
viz.plane(ways, title="paths from noise, and where they end")

# %% [markdown]
# ## Learn it
#
# With more data than one can list, the mean has to be learned. That asks for no more than the squared error against the
# velocity of single lines (Sec. 3.1, App. D): its minimum is the mean.
#
# $$\mathcal{L} = \mathbb{E}_{x_0, \epsilon, t}\ \big|v_\theta(x_t, t) - (\epsilon - x_0)\big|^2$$
#
# A small network will do; it is given its place and time as waves too, since a few smooth layers draw no sharp star.

# %%
from torch import nn


def waves(x, t):
    seen = torch.cat([x, t.expand(len(x), 1)], dim=1)                       # [N, 3]
    angle = (seen[:, :, None] * 2.0 ** torch.arange(4)).flatten(1)
    return torch.cat([seen, angle.sin(), angle.cos()], dim=1)               # [N, 27]


net = nn.Sequential(nn.Linear(27, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

# %%
steps, losses = 2000, []
optimizer = torch.optim.Adam(net.parameters())
pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
for _ in range(steps):
    x0, eps, t = data[torch.randint(len(data), (512,))], torch.randn(512, 2), torch.rand(512, 1)
    loss = (net(waves((1 - t) * x0 + t * eps, t)) - (eps - x0)).square().mean()
    optimizer.zero_grad(), loss.backward(), optimizer.step(), pace.step()
    losses.append(loss.item())

# %% [markdown]
# The loss does not go to zero and should not: what remains is how much the lines disagree where they cross. Below is
# the loss of the best answer of all, measured on the same kind of draws.

# %%
t = torch.rand(4000)
x0, eps = data[torch.randint(len(data), (4000,))], torch.randn(4000, 2)
floor = torch.stack([best(((1 - s) * a + s * e)[None], s)[0] - (e - a) for a, e, s in zip(x0, eps, t)]).square().mean()
print(f"learned {sum(losses[-200:]) / 200:.3f}, best possible {floor:.3f}")
curves = {"learned": losses, "best possible": [floor.item()] * len(losses)}
viz.loss_curves(curves, title="points in the plane, on the CPU")

# %%
learned = lambda x, t: net(waves(x, torch.tensor([[t]]))).detach()
even, fields = [1 - i / 50 for i in range(50)], {"best": best, "learned": learned}
ends = {name: walk(noise, even, v)[-1] for name, v in fields.items()}
viz.plane({f"{name}, 50 steps": [end] for name, end in ends.items()})

# %% [markdown]
# ## With msk
#
# The same lines, as the kit has them: `flow.add_noise`, `flow.to_x0`, `flow.exact_velocity`. Nothing else in the
# package knows which end of $t$ is noise.

# %%
from msk import flow

t = torch.full((500,), 0.4)
x_t = flow.add_noise(data, noise, t)
print("the line:    ", torch.allclose(x_t, 0.6 * data + 0.4 * noise, atol=1e-5))
print("back to data:", torch.allclose(flow.to_x0(x_t, noise - data, t), data, atol=1e-5))
print("the field:   ", torch.allclose(flow.exact_velocity(x_t, 0.4, data), best(x_t, 0.4), atol=1e-5))

# %% [markdown]
# ### Where to spend the steps
#
# A *level* is a value of $t$ that the walk visits. The hard decisions fall near noise, the more so the larger the
# picture, so levels are shifted towards 1 (App. D, with $k = 6$): $t' = k t / (1 + (k - 1) t)$.

# %%
even = torch.linspace(0, 1, 50)
print("three steps of the paper's student:", [round(s, 3) for s in flow.schedule(3, 6.0)])
viz.curves({f"k = {k}": (even, flow.shift(even, k)) for k in (1, 3, 6)}, "t, evenly spaced", "t', as visited",
           f"shift; the tiny kit uses k = {msk.PRESETS['tiny'].stream.time_shift:g}")

# %% [markdown]
# ### Two ways to walk in few steps
#
# The teacher takes small steps along the velocity (`msk.sample`). The student takes three, and differently: at each
# level it jumps all the way to its guess of the data, then adds fresh noise and goes on from the next level (Sec. 3.2;
# `stream.denoise`). Both are given the exact field here in place of a transformer. A jump lands at a mean; only a
# *trained* student jumps well, and notebook 08 trains one.

# %%
from msk.guidance import Condition
from msk.stream import denoise

oracle = lambda x, t, *_, **__: flow.exact_velocity(x[:, 0], t[0, 0].item(), data)[:, None]
start, nothing = noise[:, None], Condition(None, None, None, None)                  # [N, F, 2] with F = 1
ways = {f"teacher, {n} steps": list(msk.sample(oracle, start, nothing, n, 1.0, 0, 0))[-1].x0 for n in (3, 24)}
ways["untrained student, 3 jumps"] = denoise(oracle, start, None, None, None, None, flow.schedule(3, 1.0),
                                             generator=torch.Generator().manual_seed(1))
viz.plane({name: [end[:, 0]] for name, end in ways.items()})

# %% [markdown]
# ## The same with a video
#
# Now the teacher of the tiny kit, and in place of a point of the plane the latents of a clip: 3 latent frames, 9 pixel
# frames. The given picture and the tracks tell it what is wanted (notebooks 02 and 05); the walk is the one from above.
# At four of its twelve steps we look at both: at $x_t$ (above), and at the data that the velocity points to,
# $x_0 = x_t - t\,v$ (below), decoded to pixels.

# %%
kit = msk.load("tiny", role="teacher")
clip = World(kit.geometry).sample(1, frames=9, seed=HELD_OUT + 33)
cond = kit.condition(clip.captions, clip.track(grid_points(kit.geometry, 12, 12)), clip.frames[:, 0])
shape = 1, 3, kit.dit.config.latent_channels, *kit.geometry.latent_size
draw = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kit.device)
shift = kit.preset.stream.time_shift

# %%
steps = list(msk.sample(kit.dit, draw, cond, 12, shift, 0, 0))              # 0, 0: no guidance, one pass a step
seen = lambda latents: kit.vae.decode(latents)[0][0, -1:].float().cpu()             # the last of the nine frames
some = steps[::4] + steps[-1:]
rows = {"x_t": torch.cat([seen(s.latents) for s in some]), "x_0": torch.cat([seen(s.x0) for s in some])}
viz.grid([viz.strip(rows[name], count=4, zoom=2) for name in rows],
         [f"{name} at t = " + ", ".join(f"{s.t:.2f}" for s in some) for name in rows])

# %% [markdown]
# ## The picture
#
# One step, three, many: the walkers of the plane, and below them the last frame of the clip, from the same noise each
# time. The print says how near each comes to the true last frame (PSNR in decibels, higher is nearer). Mind what it
# rewards: squared error likes a mean, so the blur of a single step can score above a sharp sample. And mind the
# difference: for the star nothing was given, and one step is hopeless. The clip comes with its picture and its tracks, so
# little is left open and one step is enough. Further steps add this small teacher's own mistakes, such as the coloured
# fringes at the thing. Where much is open, as for the star, steps count.

# %%
from msk.evaluate import psnr

counts = (1, 3, 24)
last = {n: seen(list(msk.sample(kit.dit, draw, cond, n, shift, 0, 0))[-1].x0) for n in counts}
near = {f"steps: {n}": f"{psnr(end, clip.frames[0, -1:]).item():.1f} dB" for n, end in last.items()}
print(near, kit.device, kit.dtype)
above = viz.plane({f"steps: {n}": [path[-1], path[:, :80]] for n in counts
                   for path in [walk(noise, [1 - i / n for i in range(n)])]})
viz.grid([above, viz.panels({f"steps: {n}": viz.image(end[0]) for n, end in last.items()}, width=2.1)])

# %% [markdown]
# ## Things to try
#
# 1. Train the little network for 100 steps only and walk with it in 50. Which part of the star comes last?
# 2. Shift the levels of the walk in the plane with `flow.schedule(n, k)`. Which `k` is best for three steps here, and
#    why is it not 6?
# 3. Let the noise be the *same* point for everyone (`torch.zeros(500, 2)`). Where does everyone end, and why must noise
#    be noise?
# 4. The exact field only ever returns the data it was made of. Count how many of the 500 points are hit by 500 walkers
#    of 50 steps. What does that say about a network that fits its training videos perfectly?
#
# Solutions: [solutions/03_rectified_flow.py](solutions/03_rectified_flow.py).
