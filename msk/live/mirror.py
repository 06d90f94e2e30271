"""A stage that shows what a model is told: in place of a stream of video, the motion map of the tracks under the hand.

    Stage(kit, image, open_stream=lambda prompt, image, seed: Mirror(kit, image))
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..picture import picture
from ..tracks import Tracks


class Eye:
    """What the transformer is told of tracks, as colours: a fixed view of the head's channels, so that one id in one place
    always has one colour. (tracks, start) -> [F, h, w, 3] uint8; black where nothing is said."""

    def __init__(self, kit):
        self.kit, count = kit, kit.preset.tracks.channels
        self.view = torch.linalg.qr(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)))[0]

    @torch.no_grad()
    def colours(self, tracks: Tracks, start: bool) -> tuple[Tensor, Tensor]:
        """Colours [F, 3, h, w] in [0, 1], and where something is said [F, 1, h, w] bool."""
        told = self.kit.motion(tracks, None, start)[0].float().cpu()[:, :len(self.view)]                    # [F, Cm, h, w]
        colour = torch.einsum("fchw,cd->fdhw", told, self.view)
        colour = 0.5 + 0.5 * colour / colour.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
        return colour, (told != 0).any(dim=1, keepdim=True)

    def __call__(self, tracks: Tracks | None, start: bool):
        if tracks is None:
            return np.zeros((1, *self.kit.geometry.latent_size, 3), np.uint8)
        colour, spoken = self.colours(tracks, start)
        return (255 * colour * spoken).round().byte().permute(0, 2, 3, 1).numpy()


class Mirror:
    """Plays the part of `Stream`; its frames are the picture, dimmed, and on it each cell that a track speaks in."""

    memory = {"sink": [], "window": []}
    steps = 1

    def __init__(self, kit, image=None):
        self.kit, self.geometry, self.eye = kit, kit.geometry, Eye(kit)
        self.ground = 0.35 * picture(image, kit.geometry).cpu() if image is not None else torch.zeros(1, 3, 1, 1)
        self.reset()

    @property
    def frames_wanted(self) -> int:
        start, stop = self.kit.preset.stream.span(self.index)
        first, last = self.geometry.span(start, stop - start)
        return last - first

    def reset(self, prompt: str | None = None, image=None, seed: int | None = None) -> None:
        self.index = 0

    def say(self, prompt: str) -> None:
        """A motion map knows no text."""

    def anchor(self, on: bool = True) -> None:
        """Nothing is remembered."""

    settle = anchor

    def step(self, tracks: Tracks | None = None, steps: int | None = None) -> Tensor:
        """Frames [1, T, 3, H, W], T = `frames_wanted`: each shows the latent frame that it belongs to."""
        wanted, sub, start = self.frames_wanted, self.geometry.time_stride, self.index == 0
        size = self.geometry.height, self.geometry.width
        self.index += 1
        frames = self.ground.expand(wanted, 3, *size)
        if tracks is not None:
            shown, spoken = (F.interpolate(x.float(), size).repeat_interleave(sub, dim=0)[-wanted:]
                             for x in self.eye.colours(tracks.check(frames=wanted, batch=1), start))
            frames = torch.where(spoken > 0, shown, frames)
        return frames[None]
