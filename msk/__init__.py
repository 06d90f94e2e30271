"""MotionStream in small: drag points on a picture, and a diffusion model streams the video that follows them.

The alphabet of axes, everywhere in this package, always in the order [B, time, channels, rows, columns]:

    B     batch                                     N      tracks
    T     pixel frames                              L      tokens in a sequence, or in the prompt
    F     latent frames, 1 + (T - 1) / 4            S      tokens in one latent frame
    C, Cm latent channels, motion channels          D      width of one head, or of one id embedding
    H, W  pixel rows, columns                       h, w   latent rows, columns

Frames are floats in [0, 1]; tracks are in pixels, x then y; t = 1 is noise; chunks, sinks and windows count chunks.
"""
import os
import sys

# Spinning threads starve each other on a busy machine; but training is many small regions, and to wake a thread for each is
# dear.
os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if sys.argv[1:2] == ["train"] else "PASSIVE")

from .config import PRESETS, DiTConfig, Geometry, Preset, StreamConfig  # noqa: E402
from .doctor import doctor  # noqa: E402
from .guidance import Condition, joint_guidance  # noqa: E402
from .kit import Kit, load  # noqa: E402
from .sample import sample  # noqa: E402
from .stream import Stream, rollout  # noqa: E402
from .tracks import Tracks  # noqa: E402

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Stage":                 # what it needs is not of the core (msk[notebook])
        from .live import Stage
        return Stage
    raise AttributeError(f"module 'msk' has no attribute {name!r}")


__all__ = ["PRESETS", "Condition", "DiTConfig", "Geometry", "Kit", "Preset", "Stream", "StreamConfig", "Tracks",
           "doctor", "joint_guidance", "load", "rollout", "sample"]
