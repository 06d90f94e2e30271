"""The stage's second way: one long answer carries frames down and posts carry messages up, where no WebSocket gets through.
The third, Gradio's own events (events.py), is the same line.

Both ways, each message stands behind u8 (0 text, 1 binary) and u32 (its length), little endian; the messages themselves are
those of protocol.py.
"""
from __future__ import annotations

import asyncio
import json
import math
import secrets
import struct
from collections.abc import AsyncIterator

from .protocol import MAX_BINARY, ProtocolError

MAX_POST = 4 * MAX_BINARY           # bytes of one post
MAX_WAITING = 512                   # messages that have come and are not yet heard
ROOM = 4                            # messages on their way down before the sender waits
HELD = 24                           # pieces that Gradio may hold for a page: it would hold any number
BEAT = 5.0                          # seconds after which Gradio is given something: only then it sees that a page has gone
SILENCE = 90.0                      # seconds without a post after which the page has gone; a hidden one pings once a minute
_HEAD = struct.Struct("<BI")


def wrap(data: str | bytes) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return _HEAD.pack(not isinstance(data, str), len(raw)) + raw


def unwrap(data: bytes) -> list[str | bytes]:
    """What one post holds."""
    messages, at = [], 0
    while at < len(data):
        kind, length = _HEAD.unpack_from(data, at) if at + _HEAD.size <= len(data) else (None, 0)
        at += _HEAD.size + length
        if kind not in (0, 1) or at > len(data):
            raise ProtocolError(f"a post of {len(data)} bytes came that is cut off or no row of messages")
        raw = data[at - length:at]
        messages.append(raw if kind else raw.decode(errors="replace"))
    return messages


class PostLine:
    """Both ways as one line, with the methods of a starlette WebSocket that a Lobby uses.

    events: it goes through Gradio, which takes all it is given: no more than HELD pieces are on their way at once, and the
    page tells with its posts how many have come.
    """

    def __init__(self, silence: float = SILENCE, events: bool = False):
        self.key, self.silence, self.events = secrets.token_urlsafe(18), silence, events     # who knows the key may post
        self.loop = asyncio.get_running_loop()
        self._up: asyncio.Queue[dict] = asyncio.Queue()
        self._down: asyncio.Queue[bytes | None] = asyncio.Queue(ROOM)
        self._given, self._may_give, self._news = 0, HELD if events else math.inf, asyncio.Event()
        self._over = False

    async def receive(self) -> dict:
        try:
            return await asyncio.wait_for(self._up.get(), self.silence)
        except TimeoutError:
            return {"type": "websocket.disconnect", "code": 1006}

    async def send_json(self, message: dict) -> None:
        await self._down.put(wrap(json.dumps(message)))

    async def send_bytes(self, data: bytes) -> None:
        await self._down.put(wrap(data))

    def hear(self, messages: list[str | bytes]) -> bool:
        """What a post brought; False: too much is waiting already, and none of it is taken."""
        if self._up.qsize() + len(messages) > MAX_WAITING:
            return False
        for data in messages:
            self._up.put_nowait({"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data})
        return True

    def took(self, pieces: int) -> None:
        """So many of the pieces given have come."""
        self._may_give = max(self._may_give, min(pieces, self._given) + HELD)
        self._news.set()

    def end(self, code: int) -> None:
        """The line ends, for both sides; only the first end counts."""
        if not self._over:
            self._over = True
            self._news.set()
            self._up.put_nowait({"type": "websocket.disconnect", "code": code})
            while self._down.full():
                self._down.get_nowait()
            self._down.put_nowait(None)

    async def down(self) -> AsyncIterator[bytes]:
        """The long answer. When its reader goes, a good-bye may still be on its way by post: a moment is left for it."""
        try:
            while (piece := await self._next()) is not None:
                self._given += 1
                yield piece
        finally:
            self.loop.call_later(0.5, self.end, 1006)

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(BEAT if self.events else None):
                while self._given >= self._may_give and not self._over:
                    self._news.clear()
                    await self._news.wait()
                return await self._down.get()
        except TimeoutError:
            return b""
