"""Serve the canvas by hand: `python -m tests.pages.serve [exact | KIT | random:PRESET] [PORT]`."""
import socket as sockets
import sys
import time

import msk
from demos import canvas

from . import exact


def free_port() -> int:
    with sockets.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(name: str = "exact", port: int = 7861, **options):
    """(page, lobby, url) of a running canvas."""
    if name == "exact":
        kit = exact.exact_kit()
        options.setdefault("pictures", [(exact.picture(), "a red ball")] + canvas.example_pictures(kit.geometry, 7))
        options.setdefault("open_stream", lambda prompt, image, seed: exact.ExactStream(kit, prompt, image, seed=seed))
    elif name.startswith("random:"):
        kit = msk.Kit.random(name[7:])
    else:
        kit = msk.load(name)
    return canvas.launch(kit, port=port, open_browser=False, block=False, **options)


if __name__ == "__main__":
    serve(*sys.argv[1:2], port=int(sys.argv[2]) if len(sys.argv) > 2 else 7861)
    while True:
        time.sleep(60)
