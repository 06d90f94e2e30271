"""Pictures in: whatever a person hands over, made upright, without alpha, cut and sized for a model."""
from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .config import Geometry
from .weights import first_line

MAX_BYTES = 100_000_000
MAX_PIXELS = 50_000_000             # beyond it a file is more likely a mistake or an attack


def read_picture(source, most_bytes: int = MAX_BYTES, near: tuple[int, int] | None = None) -> Image.Image:
    """A file's path, its bytes or a PIL image -> RGB, upright, white where it is transparent.

    near: (width, height) that is enough, where the format can be decoded smaller. Raises FileNotFoundError, or ValueError
    for what is too big, has too many pixels or is no picture; its size is judged before it is decoded.
    """
    name = "the picture"
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no picture at {path}")
        name, size = path.name, path.stat().st_size
        source = path.read_bytes() if size <= most_bytes else b""
    elif isinstance(source, (bytes, bytearray)):
        size = len(source)
    elif isinstance(source, Image.Image):
        return _upright(source)
    else:
        raise ValueError(f"a picture came as {type(source).__name__}: give a path, the file's bytes or a PIL image")
    if size > most_bytes:
        raise ValueError(f"{name} has {size / 1e6:.0f} MB: give one of at most {most_bytes / 1e6:.0f} MB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # judged here
        try:
            image = Image.open(io.BytesIO(source))
            width, height = image.size
            if width * height <= MAX_PIXELS:
                if near is not None:
                    image.draft("RGB", near)
                return _upright(image)
        except Exception as error:                                          # Pillow's plug-ins raise anything
            why = "of no known kind" if isinstance(error, UnidentifiedImageError) else first_line(error)
            raise ValueError(f"{name} could not be read as a picture ({why}): "
                             "give a whole PNG, JPEG or WebP") from error
    raise ValueError(f"{name} has {width} x {height} pixels: give one of at most {MAX_PIXELS / 1e6:.0f} million pixels")


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def middle(width: int, height: int, geometry: Geometry) -> tuple[int, int, int, int]:
    """The largest part about the centre that has the geometry's aspect: left, top, wide, tall, in pixels."""
    wide = max(1, min(width, round(height * geometry.width / geometry.height)))
    tall = max(1, min(height, round(width * geometry.height / geometry.width)))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def fitted(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The middle of an RGB image at the geometry's size."""
    left, top, wide, tall = middle(*image.size, geometry)
    return image.resize((geometry.width, geometry.height), Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))


def picture(image, geometry: Geometry) -> Tensor:
    """Any picture as [B, 3, H, W] in [0, 1]: cut from its centre to the geometry's aspect, then resized.

    Whatever `read_picture` reads, numpy [h, w, 3] uint8, or tensor [3, h, w] or [B, 3, h, w] in [0, 1].
    """
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
            raise ValueError(f"a picture came as {list(image.shape)} {image.dtype}: give [3, H, W] floats in [0, 1]")
        pixels = (image if image.ndim == 4 else image[None]).float()
        left, top, wide, tall = middle(pixels.shape[-1], pixels.shape[-2], geometry)
        pixels, size = pixels[..., top:top + tall, left:left + wide], (geometry.height, geometry.width)
        if tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return pixels.clamp(0, 1)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] not in (3, 4) or image.dtype != np.uint8:
            raise ValueError(f"a picture came as {list(image.shape)} {image.dtype}: give [H, W, 3] uint8")
        image = Image.fromarray(image[..., :3])
    image = fitted(read_picture(image, near=(2 * geometry.width, 2 * geometry.height)), geometry)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
