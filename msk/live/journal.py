"""The takes of a session: the one that runs, what it knows already, and those that are to be closed."""
from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from .protocol import ProtocolError
from .record import Take

log = logging.getLogger("msk.live")


class Journal:
    """All under the lock of `changed`, which wakes who waits for it; `write` and `close_next` take it only to tell what
    came of it. `send` gives an event to the page."""

    def __init__(self, changed: threading.Condition, send: Callable[[dict], None]):
        self.changed, self.send = changed, send
        self.take: Take | None = None           # the one that runs; None: nothing is recorded
        self.before: Take | None = None         # the last one that has frames
        self.ending: deque[Take] = deque()      # to be closed
        self.writing = False                    # a frame that is shown is on its way into a take
        self._known: dict = {}                  # points, prompt, ... as the take knows them
        self._began = 0.0

    def begin(self, take: Take | None, **known) -> None:
        """Another take, in whose first lines this stands anyway."""
        self.take, self._known, self._began = take, known, time.monotonic()

    def end(self) -> None:
        """The take that runs will be closed; its frames are kept."""
        if self.take is not None:
            self._close(self.take)

    def _close(self, take: Take) -> None:
        if take not in self.ending:
            self.ending.append(take)
            self.before = take if take.frames else self.before
        self.changed.notify_all()

    def made(self) -> Take:
        """The latest take that has a frame."""
        for take in (self.take, self.before):
            if take is not None and take.frames:
                return take
        raise ProtocolError("nothing has been made yet: start the stream, then export")

    def news(self, **now) -> dict:
        """What of all this the take does not know yet; from now on it does."""
        new = {what: value for what, value in now.items() if value != self._known.get(what)}
        self._known |= new
        return new

    def keep(self, record: dict) -> None:
        """Write a line of the session, if there is where to, and something to write."""
        if self.take is not None and record:
            try:
                self.take.note(record)
            except (OSError, ValueError) as error:      # a full disk; a file that could not be closed
                self._lose(self.take, error)

    def event(self, kind: str, at: int, fields: dict) -> None:
        """What a hand did before frame `at`; a take that has not begun is not begun by it."""
        if self.take is not None and self.take.begun:
            self.keep({"event": kind, "at": at, "seconds": round(time.monotonic() - self._began, 3), **fields})

    def _lose(self, take: Take, error: Exception) -> None:
        """A take that cannot be written any more is closed: what it has is kept."""
        self._close(take)
        if self.take is take:
            self.take = None
        self.send({"type": "error", "message": f"recording has stopped, the stream goes on: {error}"})

    def write(self, take: Take, picture) -> None:
        """A frame that was shown; `writing` was set as it was."""
        try:
            take.write(picture)
        except Exception as error:
            log.exception("recording")
            with self.changed:
                self._lose(take, error)
        with self.changed:
            self.writing = False
            self.changed.notify_all()

    def close_next(self) -> None:
        """Close a take that has ended, once what was shown of it is in it."""
        with self.changed:
            self.changed.wait_for(lambda: not self.writing)
            take = self.ending.popleft()
        try:
            take.close()
        except Exception as error:                      # a full disk must not end the session
            log.exception("closing a take")
            self.send({"type": "error", "message": f"the recording could not be finished: {error}"})
