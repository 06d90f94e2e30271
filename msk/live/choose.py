"""Which model plays: a player chooses one, it is loaded in the background, and the old one goes on until it is there."""
from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import torch

from ..models import Offer
from ..weights import coming, first_line
from .protocol import ProtocolError

log = logging.getLogger("msk.live")
EVERY = 0.5                 # seconds between two words on how far it is


class Choice:
    """The models on offer; the first one plays. `load(name, step)` gives what is to play, and says by `step("...")` what it
    is at."""

    def __init__(self, offers: list[Offer], load: Callable[[str, Callable[[str], None]], object]):
        self.offers, self.load, self.playing = offers, load, offers[0].name
        self.loading = ""                               # what is being loaded, if anything is

    def check(self, name: str) -> Offer:
        """May it be loaded now? Raises ProtocolError."""
        offer = next((offer for offer in self.offers if offer.name == name), None)
        if offer is None:
            raise ProtocolError(f"there is no model {name!r:.60} to choose from")
        if offer.why_not:
            raise ProtocolError(f"{offer.label} cannot be played here: {offer.why_not}")
        if name == self.playing:
            raise ProtocolError(f"{offer.label} is playing already")
        if self.loading:
            raise ProtocolError(f"{self.loading} is being loaded: wait until it is there")
        return offer

    async def take(self, name: str, tell: Callable[[dict], None]):
        """Load it, and tell how far it is (`model` of protocol.py). None: it failed, and that was told."""
        offer, began, at = self.check(name), time.monotonic(), ["getting ready"]
        self.loading = offer.label
        loaded = in_a_thread(lambda: self.load(name, at.append))
        try:
            while not loaded.done():
                tell({"type": "model", "name": name, "state": "loading", **how_far(at[-1], time.monotonic() - began)})
                await asyncio.wait([loaded], timeout=EVERY)
            scene, self.playing = loaded.result(), name
            return scene
        except Exception as error:
            log.exception("a model could not be loaded")
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            why = f"the memory cannot hold both, begin with it: --model {name}" if full else first_line(error, 400)
            tell({"type": "model", "name": name, "state": "failed", "share": None,
                  "message": f"{offer.label} could not be loaded, the old model goes on: {why}"})
            return None
        finally:
            self.loading = ""


def how_far(at: str, seconds: float) -> dict:
    """A message, and the share that is done where that is known: of a download."""
    fetching = coming()
    if fetching is None:
        return {"message": f"{at} ({seconds:.0f} s)", "share": None}
    repo, here, whole = fetching
    unit, size = ("GB", 1e9) if whole > 1e9 else ("MB", 1e6)
    return {"message": f"downloading {repo}: {here / size:.1f} of {whole / size:.1f} {unit}", "share": here / max(whole, 1)}


def in_a_thread(call: Callable) -> asyncio.Future:
    """What it gives, later. The thread is a daemon: the program may end in the midst of a download, which then goes on
    where it stopped when it is asked for again."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(settled: Callable, value) -> None:
        if not future.done():
            settled(value)

    def run():
        try:
            done = future.set_result, call()
        except Exception as error:
            done = future.set_exception, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *done)
    threading.Thread(target=run, name="msk-load", daemon=True).start()
    return future
