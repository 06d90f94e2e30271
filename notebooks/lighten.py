"""Make executed notebooks light: each picture once, and no larger than it needs to be. What is seen stays the same.

    python notebooks/lighten.py notebooks/*.ipynb
"""
import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image


def fewer_colours(png: str) -> str:
    """A picture with 256 colours of its own choice, where that is smaller; both as base64."""
    packed = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    small = base64.b64encode(packed.getvalue()).decode()
    return small if len(small) < len(png) else png


def smaller(jpeg: str, quality: int = 50) -> str:
    """The same photograph, packed more tightly; both as base64."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(jpeg))).convert("RGB").save(packed, "JPEG", quality=quality, optimize=True)
    small = base64.b64encode(packed.getvalue()).decode()
    return small if len(small) < len(jpeg) else jpeg


def lighten(notebook: dict) -> dict:
    """Of the JPEG and the PNG that Pillow offers the smaller: photographs keep the first, charts the second."""
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = fewer_colours("".join(data["image/png"]))
            if "image/jpeg" in data:
                data["image/jpeg"] = smaller("".join(data["image/jpeg"]))
            if "image/png" in data and "image/jpeg" in data:
                del data["image/png" if len(data["image/jpeg"]) < len(data["image/png"]) else "image/jpeg"]
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(json.dumps(lighten(json.loads(path.read_text())), indent=1, ensure_ascii=False) + "\n")
