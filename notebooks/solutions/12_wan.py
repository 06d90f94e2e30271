# %% [markdown]
# # 12 · Wan: solutions

# %%
import tempfile
from pathlib import Path

import torch

import msk
from msk import checkpoints
from msk.dit import DiT
from msk.models import flops, toy

RATE = 989                                                                  # TFLOP/s, an H100's data sheet
kit = msk.Kit.random(toy(msk.PRESETS["wan2.1-1.3b"]))

# %% [markdown]
# 1. Passes are what is paid for: three in place of four are a third more frames. A smaller window helps 1.3B more, where
#    self-attention is half of the work (less than a chunk is a budget in latent frames). Not seen in a ceiling: the student
#    must be trained for two steps, or to live on what the last denoising pass left in place of a clean one; and a shorter
#    window forgets sooner.


# %%
def ceiling(preset, passes, held=6):
    return 12e12 * RATE / (passes * flops(preset, held))


for name in ("wan2.1-1.3b", "wan2.2-5b"):
    p = msk.PRESETS[name]
    ways = {"3 steps + 1": ceiling(p, 4), "2 steps + 1": ceiling(p, 3), "3 steps, no clean pass": ceiling(p, 3),
            "a window of one latent frame": ceiling(p, 4, 4), "no window": ceiling(p, 4, 3)}
    print(name, {way: f"{fps:.0f}" for way, fps in ways.items()})

# %% [markdown]
# 2. Self-attention is 4 T K d with K = 3 T, all else grows with T alone; so they meet where 12 T d = 2 (6 d^2 + 2 d f) + 4 d
#    words, a number of tokens that does not ask for layers. For 1.3B that is about 480 x 832; 5B, wider and with larger
#    patches of pixels, is far from it at 704 x 1280.

# %%
for name in ("wan2.1-1.3b", "wan2.2-5b"):
    p = msk.PRESETS[name]
    d, f, g = p.dit.dim, p.dit.ffn_dim, p.geometry
    even = (2 * (6 * d**2 + 2 * d * f) + 4 * d * 512) / (12 * d) / 3        # tokens of a latent frame
    now = g.latent_size[0] * g.latent_size[1] // 4
    scale = (even / now) ** 0.5
    print(f"{name}: {now} tokens a frame now, half at {even:.0f}: {scale * g.height:.0f} x {scale * g.width:.0f} pixels")

# %% [markdown]
# 3. Columns times map is a product of two factors, and each one's gradient is the other: both zero is a saddle, and
#    nothing moves. One of them must begin elsewhere; with the columns at zero the base is kept as it is.

# %%
dit, head = DiT(kit.dit.config), msk.Kit.random(kit.preset).track_head.requires_grad_(True)
torch.nn.init.normal_(dit.head.head.weight, std=0.05)
noise, goal = torch.randn(2, 1, 3, 16, 6, 8, generator=torch.Generator().manual_seed(0)).unbind()
tracks, t, text = msk.Tracks.grid(kit.geometry, 16, 9), torch.full((1, 3), 0.7), torch.zeros(1, 16, 16)
with torch.no_grad():
    dit.patch_embedding.weight[:, 16:32] = 0
    for p in head.parameters():
        p.zero_()
optimiser = torch.optim.SGD([*dit.parameters(), *head.parameters()], lr=0.1)
for _ in range(5):
    optimiser.zero_grad()
    dit(noise, t, text, head(tracks)).sub(goal).square().mean().backward()
    columns = dit.patch_embedding.weight.grad[:, 16:32].norm()
    behind = sum(p.grad.norm() for p in head.parameters() if p.grad is not None)
    print(f"gradients: motion columns {columns:.1e}, track head {behind:.1e}")
    optimiser.step()

# %% [markdown]
# 4. The sum of a weight and a thin product: 2 x 4 x dim numbers in place of dim x dim. Saved in bfloat16 it would be lost in
#    rounding if it were small: merge in float32, as `merge_lora` does.

# %%
g, target = torch.Generator().manual_seed(1), "blocks.0.self_attn.q"
a, b = torch.randn(4, 48, generator=g), torch.randn(48, 4, generator=g)
with tempfile.TemporaryDirectory() as place:
    file = Path(place) / "lora.pt"
    torch.save({f"base_model.model.{target}.lora_A.weight": a, f"base_model.model.{target}.lora_B.weight": b}, file)
    lora = checkpoints.read(file)
state = kit.dit.state_dict()
merged = checkpoints.merge_lora(state, lora)
print("the same by hand:", torch.allclose(merged[f"{target}.weight"], state[f"{target}.weight"] + b @ a),
      "| changed:", [name for name in state if not torch.equal(merged[name], state[name])])
