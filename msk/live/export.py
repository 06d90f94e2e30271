"""What a take becomes outside: a clip, an animation, a still, its tracks, its session. Each says that it was generated."""
from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from .. import video
from .protocol import EXPORTS, ProtocolError
from .record import Take, packed_session
from .replay import whole

SUFFIX = dict(zip(EXPORTS, (".mp4", ".webp", ".gif", ".png", ".npz", ".tracks.json", ".session.json")))
MIME = dict(zip(EXPORTS, ("video/mp4", "image/webp", "image/gif", "image/png", "application/zip", "application/json",
                          "application/json")))
MOST_ANIMATED = 720                     # frames of a webp or gif, the latest ones: 30 seconds


def export(session, what: str, folder: str | Path, mark: bool = False) -> Path:
    """One of EXPORTS, of the latest take of a Session, as a file in `folder`; the take may be running.

    mark: say on the picture, in a corner, that it was generated. Raises ProtocolError where there is nothing yet.
    """
    take = session.take if what == "session" and session.take is not None and session.take.begun else session.made()
    path = Path(folder) / f"{take.name}{SUFFIX[what]}"
    try:
        if what == "session":
            path.write_bytes(packed_session(take.session()))
        elif what in ("npz", "tracks"):
            write_tracks(take, path)
        elif what == "png":
            write_still(take, path, mark)
        elif what == "mp4" and not mark:
            take.join(path)
        else:
            write_frames(take, path, mark)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    return path


def write_tracks(take: Take, path: Path) -> None:
    """tracks [T, N, 2] in pixels, visibility [T, N], ids [N], and the size of the picture: what `msk generate` reads."""
    tracks, about = whole(take.session()), take.metadata()
    if not tracks.ids.shape[1]:
        raise ValueError("no point has been used yet: there are no tracks to export")
    arrays = {"tracks": tracks.xy[0].numpy(), "visibility": tracks.visible[0].numpy(), "ids": tracks.ids[0].numpy()}
    size = {"width": about["width"], "height": about["height"]}
    if path.suffix == ".npz":
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays, **size, about=json.dumps(about))
    else:
        lists = {name: array.astype(float).round(3).tolist() if name == "tracks" else array.tolist()
                 for name, array in arrays.items()}
        path.write_text(json.dumps({**lists, **size, "about": about}), encoding="utf-8")


def write_still(take: Take, path: Path, mark: bool) -> None:
    """The last frame shown, with all that is known of it in the file's text."""
    about = PngInfo()
    about.add_text("Comment", video.GENERATED)
    about.add_text("msk", json.dumps(take.metadata()))
    Image.fromarray(marked(take.last) if mark else take.last).save(path, pnginfo=about)


def write_frames(take: Take, path: Path, mark: bool) -> None:
    """The take coded anew: as an animation, or with a mark."""
    with tempfile.TemporaryDirectory(prefix="msk-export-") as folder:
        whole_take = take.join(Path(folder) / "take.mp4")
        skip = max(0, take.frames - MOST_ANIMATED) if path.suffix != ".mp4" else 0
        with video.Writer(path, float(take.fps), take.metadata(), crf=14) as writer:
            for k, (_, picture, _) in enumerate(video.pictures_of(whole_take)):
                if k >= skip:
                    picture = marked(picture) if mark else picture
                    writer.add(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1))


def marked(picture: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] uint8 with a small tag in its lower right corner."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    size = max(9, image.height // 22)
    pen, text = ImageDraw.Draw(image, "RGBA"), "AI-generated"
    left, top, right, bottom = pen.textbbox((0, 0), text, font_size=size)
    wide, tall, pad = right - left, bottom - top, max(2, size // 4)
    x, y = image.width - wide - 2 * pad, image.height - tall - 2 * pad
    pen.rectangle([x, y, image.width, image.height], fill=(0, 0, 0, 130))
    pen.text((x + pad - left, y + pad - top), text, fill=(255, 255, 255, 230), font_size=size)
    return np.asarray(image)
