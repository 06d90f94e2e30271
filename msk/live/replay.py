"""The same video again, from a session file: what was asked, chunk by chunk, asked once more."""
from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from ..picture import read_picture
from ..tracks import Tracks
from .hold import told
from .record import anchors


def fingerprint(kit) -> str:
    """A short name for these very weights: a look at every tensor, at 256 places each, not at every number.

    The cutter does not count: no video passes through it.
    """
    seen = hashlib.sha256(kit.name.encode())
    for part, module in sorted(kit.modules().items()):
        if part == "cutter":
            continue
        for name, x in module.state_dict().items():
            flat = x.detach().flatten()
            seen.update(f"{part}.{name}{list(x.shape)}".encode())
            seen.update(flat[::max(1, len(flat) // 256)].double().cpu().numpy().tobytes())
    return seen.hexdigest()[:12]


def picture_of(session: dict) -> Image.Image:
    """The picture a session began with."""
    try:
        return read_picture(base64.b64decode(session["picture"], validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the session's picture cannot be read ({error}): it is damaged") from error


def packed(image: Image.Image) -> str:
    """A picture as a session holds it: PNG, so that nothing is lost, in base64."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def tracks_of(chunk: dict) -> Tracks | None:
    """What the model was asked for in one chunk of a session; None: nothing."""
    if not (chunk["ids"] or chunk.get("held")):
        return None
    count = len(chunk["xy"]) or chunk["frames"]
    xy = torch.tensor(chunk["xy"], dtype=torch.float32).reshape(count, -1, 2)                               # [T, N, 2]
    seen = torch.tensor(chunk.get("seen") or [[1] * len(chunk["ids"])] * count, dtype=torch.bool).reshape(count, -1)
    origin = torch.tensor([o if o is not None else (torch.nan, torch.nan) for o in chunk["origin"]], dtype=torch.float32)
    own = xy, seen, torch.tensor(chunk["ids"], dtype=torch.long), origin.reshape(-1, 2)
    sets = own, told(chunk.get("held", []), count)
    xy, seen, ids, origin = (torch.cat(both, dim=k)[None] for both, k in zip(zip(*sets), (1, 1, 0, 0)))
    return Tracks(xy, seen, ids, origin)


def replay(kit, session: dict) -> Iterator[Tensor]:
    """Yield the chunks [T, 3, H, W] in [0, 1] of the session, frame for frame what was shown.

    With the same weights, device and number of threads, in float32, they are the same to the last bit.
    """
    from ..stream import Stream
    size = kit.geometry.width, kit.geometry.height
    if (session["width"], session["height"]) != size:
        raise ValueError(f"the session was played at {session['width']}x{session['height']}, and {kit.name} makes "
                         f"{size[0]}x{size[1]}: use the model it names, {session['model']}")
    stream, left = Stream(kit, session["prompt"], picture_of(session), seed=session["seed"]), session.get("shown")
    usual = stream.tuning
    for k, chunk in enumerate(session["chunks"]):
        if "say" in chunk:
            stream.say(chunk["say"])
        for on in anchors(chunk):
            stream.anchor(on)
        if "tune" in chunk:
            stream.tune(**usual | chunk["tune"])
        if stream.frames_wanted != chunk["frames"]:
            raise ValueError(f"chunk {k} of the session has {chunk['frames']} frames where {kit.name} makes "
                             f"{stream.frames_wanted}: use the model it names, {session['model']}")
        made = stream.step(tracks_of(chunk), chunk.get("steps"))[0]
        made = made if left is None else made[:left]
        left = None if left is None else left - len(made)
        if not len(made):
            return
        yield made


def ids_of(chunk: dict) -> list[int]:
    return chunk["ids"] + [i for group in chunk.get("held", []) for i in group["ids"]]


def whole(session: dict) -> Tracks:
    """All that was asked in a session as one set of tracks; what was not asked in a frame is hidden there."""
    chunks, columns = session["chunks"], {}
    for chunk in chunks:
        for i in ids_of(chunk):
            columns.setdefault(i, len(columns))
    total = sum(chunk["frames"] for chunk in chunks)
    xy, visible, at = torch.zeros(1, total, len(columns), 2), torch.zeros(1, total, len(columns), dtype=torch.bool), 0
    for chunk in chunks:
        now, asked = slice(at, at + chunk["frames"]), tracks_of(chunk)
        if asked is not None:
            place = [columns[i] for i in ids_of(chunk)]
            xy[:, now, place], visible[:, now, place] = asked.xy, asked.visible
        at = now.stop
    return Tracks(xy, visible, torch.tensor([list(columns)], dtype=torch.long).reshape(1, -1))
