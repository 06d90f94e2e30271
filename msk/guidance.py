"""Joint text and motion guidance."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Everything a clip is asked to follow; None stands for zeros."""
    text: Tensor                    # [B, L, text_dim]
    motion: Tensor | None           # [B, F, Cm, h, w]
    image: Tensor | None            # [B, F, Ci, h, w], frame 0 the given picture, zeros after
    null_text: Tensor               # [B, L, text_dim], the empty prompt
    clip: Tensor | None = None      # [B, 257, clip_dim], only models with image cross-attention

    def without_text(self) -> Condition:
        return replace(self, text=self.null_text)

    def without_motion(self) -> Condition:
        return replace(self, motion=None)


def joint_guidance(dit, latents: Tensor, t: Tensor, cond: Condition, text_scale: float = 3.0, motion_scale: float = 1.5,
                   together: bool = False) -> Tensor:
    """Velocity pulled toward the prompt and toward the tracks: up to three passes of the teacher.

    A scale of 0 leaves its pass out; scales that sum to 1 (or both 0) mean no guidance. together: one pass over a batch of
    three, for devices that a single clip does not fill; it takes three times the memory.
    MotionStream (2511.01266 v5), Eq. 2.
    """
    def velocity(c: Condition) -> Tensor:
        return dit(latents, t, c.text, c.motion, c.image, clip=c.clip)

    if text_scale + motion_scale in (0, 1):
        return velocity(cond)
    if cond.motion is None:                             # nothing to leave out: guidance by text alone
        motion_scale = 0.
        if not text_scale:
            return velocity(cond)
    if together and text_scale and motion_scale:
        thrice = lambda x: None if x is None else torch.cat([x] * 3)
        text = torch.cat([cond.text, cond.null_text, cond.text])
        motion = torch.cat([cond.motion, cond.motion, torch.zeros_like(cond.motion)])
        both, motion_only, text_only = dit(thrice(latents), thrice(t), text, motion, thrice(cond.image),
                                           clip=thrice(cond.clip)).chunk(3)
    else:
        both = velocity(cond)
        motion_only = velocity(cond.without_text()) if text_scale else both
        text_only = velocity(cond.without_motion()) if motion_scale else both
    a = text_scale / (text_scale + motion_scale)
    base = a * motion_only + (1 - a) * text_only
    return base + text_scale * (both - motion_only) + motion_scale * (both - text_only)


@dataclass(frozen=True)
class Guided:
    """A student that is pulled on towards prompt and tracks, called as a DiT is: the passes of `joint_guidance` on one past.

    What it learned from was guided already; this is for looking what more, or less, would do.
    """
    dit: object
    null_text: object               # the empty prompt, as `DiT.read` gives it
    text_scale: float
    motion_scale: float

    def __call__(self, latents: Tensor, t: Tensor, text, motion: Tensor | None, image: Tensor | None, past=None,
                 keys: list | None = None, places=None) -> Tensor:
        def velocity(x, t, its_text, its_motion, image, clip):
            asked = its_text is text and its_motion is motion           # what is remembered is the pass that was asked for
            return self.dit(x, t, its_text, its_motion, image, past=past, keys=keys if asked else None, places=places)

        return joint_guidance(velocity, latents, t, Condition(text, motion, image, self.null_text), self.text_scale,
                              self.motion_scale)
