"""The bidirectional teacher, by rectified flow. It learns the track head and the text encoder along the way."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..flow import add_noise, shift
from ..tracks import Tracks
from .data import Batch


class Teacher(nn.Module):
    """The transformer with the two encoders that are trained with it, and frozen after it."""

    def __init__(self, dit: nn.Module, track_head: nn.Module, text: nn.Module):
        super().__init__()
        self.dit, self.track_head, self.text = dit, track_head, text


@torch.no_grad()
def seek_ids(models: Teacher, tracks: Tracks, blocks: int = 1, heads: int = 2, loud: float = 1., given: float = 12.) -> None:
    """Start with some heads that look for tokens of the same ids, the given frame first: the rest follows from there.

    A point is followed once queries and keys agree on its id, and gradients find that agreement only after a long plateau.
    Here the map of `tracks` is made as loud as the latents, and the first `heads` heads of the first `blocks` begin with
    queries equal to keys that read a token's ids, wherever in the token they lie; `given` is what the mask adds.
    """
    dit, c = models.dit, models.dit.config
    own = models.track_head.config.channels                             # the ids' part of the map; the rest is carried
    drawn = models.track_head(tracks)[:, :, :own]
    models.track_head.convs[-1].weight.mul_(loud / drawn[drawn.abs().sum(2, keepdim=True).expand_as(drawn) > 0].std())
    volume = c.patch_volume
    p = dit.patch_embedding.weight.flatten(1)                                                       # [dim, inputs * volume]
    gram = p.T @ p
    read = torch.linalg.solve(gram + gram.diagonal().mean() * torch.eye(len(gram)).to(gram), p.T)   # inputs from tokens
    start, parts = 0, {}
    for name in c.inputs:
        parts[name] = read[start:start + dit.channels[name] * volume].unflatten(0, (-1, volume)).sum(1)
        start += dit.channels[name] * volume
    parts["motion"] = parts["motion"][:own]
    width = c.dim // c.heads
    slow = width - 4 * (width // 6) - 2                                 # the slowest pair of the temporal rotation
    for block in dit.blocks[:blocks]:
        a = block.self_attn
        for head in range(heads):
            mix = torch.randn(width, len(parts["motion"]), generator=torch.Generator().manual_seed(head)).to(read)
            rows = slice(head * width, (head + 1) * width)
            ids = mix @ parts["motion"]
            usual = a.q.weight[heads * width:].norm(dim=1).mean() if heads < c.heads else a.q.weight.norm(dim=1).mean()
            for linear in (a.q, a.k):
                linear.weight[rows] = ids * (1.5 * usual / ids.norm(dim=1).mean())
                linear.bias[rows] = 0
            if "mask" in parts and dit.channels["mask"]:
                mask = parts["mask"].sum(0)
                a.q.weight[rows.start + slow] = 0
                a.q.bias[rows.start + slow] = given
                a.k.weight[rows.start + slow] = mask * (given * usual / mask.norm())


def teacher_loss(models: Teacher, batch: Batch, time_shift: float = 3.0, moving: float = 0.) -> tuple[Tensor, dict]:
    """|| v(x_t, t, text, motion, image) - (noise - x0) ||^2, t uniform before the shift. MotionStream, Sec. 3.1, App. A.

    moving: extra weight on cells that differ from what is known of them (`DiT.known`; without it, from the first frame),
    while following, and what no track says, is still to be learnt.
    """
    x0 = batch.latents
    t = shift(torch.rand(len(x0), 1, device=x0.device), time_shift).expand(-1, x0.shape[1])          # [B, F]
    noise = torch.randn_like(x0)
    text, motion = models.text(batch.prompts), models.track_head(batch.tracks, carried=batch.carried)
    given = batch.given(models.dit.config.mask_channels)
    velocity = models.dit(add_noise(x0, noise, t), t, text, motion, given)
    error = (velocity.float() - (noise - x0)).square()
    if moving:
        known = models.dit.known(x0, motion.detach(), given)[0] if models.dit.config.pull >= 0 else x0[:, :1]
        weight = 1 + moving * (x0 - known).abs().mean(dim=2, keepdim=True)
        error = error * weight / weight.mean()
    error = error.mean(dim=(2, 3, 4))                                                               # [B, F]
    high = t[:, 0] > .75
    logs = {"late": error[~high].mean().item()} if (~high).any() else {}
    logs |= {"early": error[high].mean().item()} if high.any() else {}
    return error.mean(), logs
