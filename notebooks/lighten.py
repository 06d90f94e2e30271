"""Make executed notebooks light: each picture once, a chart as PNG and a photograph as JPEG, as good as there is room for.

    python notebooks/lighten.py notebooks/*.ipynb

It says which are still too large, and exits with 1 if any is.
"""
import base64
import io
import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
from PIL import Image

ROOM = 290_000                  # bytes of a notebook
UNSEEN = 1.0                    # of 255: a mean error of colours that nobody sees


def as_png(picture: Image.Image) -> tuple[bytes, bool]:
    """With 256 colours of its own choice; and whether it still looks the same."""
    packed, few = io.BytesIO(), picture.quantize(256, dither=Image.Dither.NONE)
    few.save(packed, "PNG", optimize=True)
    off = np.asarray(few.convert("RGB"), np.float32) - np.asarray(picture, np.float32)
    return packed.getvalue(), bool(np.sqrt(np.square(off).mean()) < UNSEEN)


def as_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Colours as fine as light while there is room: coloured lines and writing keep their edges."""
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=quality, subsampling=0 if quality > 70 else 2, optimize=True)
    return packed.getvalue()


def lighten(notebook: dict, quality: int) -> dict:
    """Pillow offers each picture twice, and widgets as PNG; what was made light before stays as it is."""
    notebook = deepcopy(notebook)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                continue
            picture = Image.open(io.BytesIO(base64.b64decode("".join(data["image/png"]))))
            if picture.mode == "P":
                continue
            png, same = as_png(picture.convert("RGB"))
            jpeg = as_jpeg(picture.convert("RGB"), quality)
            kind, packed = ("image/png", png) if same and len(png) < 1.5 * len(jpeg) else ("image/jpeg", jpeg)
            data.pop("image/jpeg", None), data.pop("image/png")
            data[kind] = base64.b64encode(packed).decode()
    return notebook


def written(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    heavy = []
    for path in map(Path, sys.argv[1:]):
        whole = json.loads(path.read_text())
        for quality in (92, 85, 75, 65, 55, 45, 35):
            light = written(lighten(whole, quality))
            if (size := len(light.encode())) <= ROOM:
                break
        else:
            heavy.append(f"{path} has {size} bytes with its pictures as small as they get: at most {ROOM} are wanted, "
                         "so print less or draw fewer pictures")
        path.write_text(light)
    sys.exit("\n".join(heavy) or 0)
