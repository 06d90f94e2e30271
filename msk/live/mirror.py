"""A stage that shows what a model is told: in place of a stream of video, the motion map of the tracks under the hand.

    Stage(kit, image, open_stream=lambda prompt, image, seed: Mirror(kit, image))
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..picture import picture
from ..tracks import Tracks


class Mirror:
    """Plays the part of `Stream`; its frames are the picture, dimmed, and on it each cell that a track speaks in.

    A cell's colour is a fixed view of the head's channels, so one id in one place always has one colour.
    """

    def __init__(self, kit, image=None):
        self.kit, self.geometry = kit, kit.geometry
        self.ground = 0.35 * picture(image, kit.geometry).cpu() if image is not None else torch.zeros(1, 3, 1, 1)
        count = kit.preset.tracks.channels
        self.view = torch.linalg.qr(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)))[0]
        self.reset()

    @property
    def frames_wanted(self) -> int:
        start, stop = self.kit.preset.stream.span(self.index)
        first, last = self.geometry.span(start, stop - start)
        return last - first

    def reset(self, prompt: str | None = None, image=None, seed: int | None = None) -> None:
        self.index = 0

    def settle(self) -> None:
        """Nothing to remember."""

    @torch.no_grad()
    def step(self, tracks: Tracks | None = None) -> Tensor:
        """Frames [1, T, 3, H, W], T = `frames_wanted`: each shows the latent frame that it belongs to."""
        wanted, sub, start = self.frames_wanted, self.geometry.time_stride, self.index == 0
        size = self.geometry.height, self.geometry.width
        self.index += 1
        frames = self.ground.expand(wanted, 3, *size)
        if tracks is not None:
            told = self.kit.motion(tracks.check(frames=wanted, batch=1), None, start)[0].float().cpu()      # [F, Cm, h, w]
            told = told[:, :self.kit.preset.tracks.channels]
            colour = torch.einsum("fchw,cd->fdhw", told, self.view)
            colour = (0.5 + 0.5 * colour / colour.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6))
            shown, spoken = (F.interpolate(x.float(), size).repeat_interleave(sub, dim=0)[-wanted:]
                             for x in (colour, (told != 0).any(dim=1, keepdim=True)))
            frames = torch.where(spoken > 0, shown, frames)
        return frames[None]
