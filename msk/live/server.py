"""The stage's lines: who may come in, who plays, and no more frames in flight than the link can carry.

    lobby = Lobby(lambda: Session(...), pictures)
    demo.launch(app_kwargs={"routes": lobby.routes()})

One model, one player: the first page plays, the others wait and are told their place. A page's line is a WebSocket or,
where none gets through, a long answer and posts (post.py), by routes of ours or by Gradio's own (events.py). It proves that
it was served by us with a token (the WebSocket's subprotocol, a header of posts), and its Origin must be the host it asks; a
custom route would otherwise answer any page and pass by any login.
"""
from __future__ import annotations

import asyncio
import io
import logging
import math
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote, urlsplit

from PIL import Image

from .choose import Choice
from .export import export
from .post import MAX_POST, MAX_WAITING, PostLine, unwrap
from .protocol import MAX_BINARY, MAX_NODES, MAX_POINTS, MAX_TEXT, VERSION, ProtocolError, is_ack, read, write_frame
from .record import parse_session, recover
from .session import Frame, Session

log = logging.getLogger("msk.live")

PROTOCOL = f"msk.v{VERSION}"
LADDER = (95, 85, 70, 55, 40, 25)       # JPEG qualities, best first
RATE, BURST = 240, 480                  # messages a page may send, per second and at once
MAX_UPLOAD = 64 * 1024 ** 2             # bytes of a session file that a page may bring
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Tokens:
    """Proofs that a page was served by us: made per page, good for a day, the oldest forgotten first."""

    def __init__(self, limit: int = 2000, seconds: float = 86400):
        self._issued: OrderedDict[str, float] = OrderedDict()
        self.limit, self.seconds = limit, seconds

    def issue(self) -> str:
        token = secrets.token_urlsafe(24)
        self._issued[token] = time.monotonic()
        while len(self._issued) > self.limit:
            self._issued.popitem(last=False)
        return token

    def known(self, token: str) -> bool:
        born = self._issued.get(token)
        return born is not None and time.monotonic() - born < self.seconds


class Pictures:
    """Starting pictures by id: the gallery's stay, of the uploads the latest are kept."""

    def __init__(self, uploads: int = 32):
        self.uploads = uploads
        self._kept: dict[str, Image.Image] = {}
        self._uploaded: OrderedDict[str, Image.Image] = OrderedDict()

    def keep(self, id: str, image: Image.Image) -> str:
        self._kept[id] = image
        return id

    def upload(self, image: Image.Image) -> str:
        id = secrets.token_urlsafe(9)
        self._uploaded[id] = image
        while len(self._uploaded) > self.uploads:
            self._uploaded.popitem(last=False)
        return id

    def get(self, id: str) -> Image.Image | None:
        return self._kept.get(id) or self._uploaded.get(id)

    def __getitem__(self, id: str) -> Image.Image:
        image = self.get(id)
        if image is None:
            raise ProtocolError(f"there is no picture {id!r:.40} any more: choose or upload one")
        return image


class Link:
    """Frames on their way to one page: at most `window` unacknowledged; quality falls when they keep piling up.

    The window is what a good link holds (its quickest trip so far, and the `ahead` seconds frames are sent early) and
    `patience` seconds more, so that a page that pauses for breath is not taken for a thin link. A frame unanswered for
    `lost` seconds is forgotten: an answer that never comes must not end the stream.
    """
    patience, lost = 0.25, 3.0

    def __init__(self, fps: float, ahead: float):
        self.fps, self.ahead = fps, ahead
        self.seq = self.dropped = 0
        self.rung = self._piled = 0
        self._flying: OrderedDict[int, float] = OrderedDict()
        self._trips: deque[float] = deque(maxlen=120)
        self._changed = time.monotonic()

    @property
    def quality(self) -> int:
        return LADDER[self.rung]

    @property
    def window(self) -> int:
        quickest = min(self._trips, default=0.1)
        return math.ceil((quickest + self.ahead + self.patience) * self.fps) + 2

    def may_send(self) -> bool:
        """Whether the next frame goes out; if not, it is dropped and the next ones are made smaller."""
        now = time.monotonic()
        while self._flying and now - next(iter(self._flying.values())) > self.lost:
            self._flying.popitem(last=False)
        if len(self._flying) < self.window:
            if now - self._changed > 2:
                self.rung, self._piled, self._changed = max(self.rung - 1, 0), 0, now
            return True
        self.dropped += 1
        self._piled += 1
        if self._piled >= 4 and now - self._changed > 0.5:
            self.rung, self._piled, self._changed = min(self.rung + 1, len(LADDER) - 1), 0, now
        return False

    def sent(self) -> int:
        self.seq += 1
        self._flying[self.seq] = time.monotonic()
        return self.seq

    def acked(self, seq: int) -> None:
        if seq in self._flying:
            self._trips.append(time.monotonic() - self._flying[seq])
        for older in [s for s in self._flying if s <= seq]:
            del self._flying[older]


def to_jpeg(picture, quality: int) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "JPEG", quality=quality, subsampling=0 if quality > 60 else 2)
    return packed.getvalue()


def pack(frame: Frame, quality: int, seq: int) -> bytes:
    """A frame as the page gets it."""
    return write_frame(to_jpeg(frame.picture, quality), quality=quality, seq=seq, chunk=frame.chunk, index=frame.index,
                       pts=frame.due * 1000, sent=time.monotonic() * 1000, echo=frame.echo, marks=frame.marks,
                       still=frame.still)


def greeting(session: Session, id: str) -> dict:
    g = session.geometry
    return {"type": "hello", "version": VERSION, "session": id, "model": session.name, "width": g.width, "height": g.height,
            "fps": session.fps, "max_points": MAX_POINTS, "max_nodes": MAX_NODES, "max_step": session.follow.max_step,
            "map": session.eye is not None, "gaze": session.watch is not None, "grips": session.hold.cut is not None,
            "keeps": session.folder is not None}


def same(secret: str, guess: str) -> bool:
    """Whether a guess, which is not empty, is right; how long the answer takes tells nothing."""
    return bool(guess) and secrets.compare_digest(secret.encode(), guess.encode(errors="replace"))


def span(seconds: float) -> str:
    """A time in words."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{minutes} minutes"


def name_of(host: str) -> str:
    """A Host header without its port; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def body_of(request, most: int) -> bytes | None:
    """What a request brings; None as soon as it is more than `most` bytes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            return None
    return bytes(data)


class Visitor:
    """One page on the line. Its outbox is bounded: of frames only the latest second is kept."""

    def __init__(self, socket, loop, resume: str = ""):
        self.socket, self.loop = socket, loop           # a WebSocket, or a PostLine
        self.session: Session | None = None
        self.id, self.resume = "", resume[:64]
        self.gave_way = False                           # played, touched nothing while others waited, and waits itself
        self.link: Link | None = None
        self.words: deque[dict] = deque(maxlen=256)
        self.frames: deque[Frame] = deque(maxlen=32)
        self.news = asyncio.Event()

    def say(self, message: dict) -> None:
        self.words.append(message)
        self.news.set()

    def show(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.news.set()

    async def send_all(self) -> None:
        """Words first, then frames, for as long as the line holds."""
        from starlette.websockets import WebSocketDisconnect
        try:
            while True:
                await self.news.wait()
                self.news.clear()
                while self.words or self.frames:
                    while self.words:
                        await self.socket.send_json(self.words.popleft())
                    if self.frames:
                        frame = self.frames.popleft()
                        if frame.still or self.link.may_send():
                            packed = await asyncio.to_thread(pack, frame, self.link.quality, self.link.sent())
                            await self.socket.send_bytes(packed)
        except (RuntimeError, WebSocketDisconnect):
            return                                      # the line is gone; the listener says what follows


class Lobby:
    """The one player, the line of those who wait, and what a lost link leaves behind for `grace` seconds.

    While others wait, who plays and touches nothing for `turn` seconds gives way, and goes to the end of the line.
    """

    def __init__(self, new_session: Callable[[], Session], pictures: Pictures | None = None, *, first: tuple | None = None,
                 grace: float = 8.0, turn: float = 120.0, folder: str | Path | None = None, choice: Choice | None = None,
                 files: str | Path | None = None):
        self.choice = choice                            # of models; None: this one stays
        self.new_session, self.pictures, self.first = new_session, pictures or Pictures(), first
        self.grace, self.turn = grace, turn
        self.tokens = Tokens()
        self.hosts: set[str] | None = set(LOOPBACK)     # host names we answer to; None: any
        self.player: Visitor | None = None
        self.picture = ""                               # id of the one that the player opened last; none: a kept session's
        self.waiting: list[Visitor] = []
        self._turns: asyncio.Task | None = None         # looks, while people wait, whether who plays still does
        self._orphan: tuple[str, Session, bool] | None = None
        self._orphan_ends: asyncio.Task | None = None
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._lines: dict[str, PostLine] = {}
        self._held: set[asyncio.Task] = set()           # visitors by post, a model on its way: the loop alone forgets them
        if folder is not None:
            for kept in recover(folder):
                log.warning("a take that was cut off is whole again: %s", kept)
        self._folder = Path(tempfile.mkdtemp(prefix="msk-export-", dir=files))
        self._ending = False

    def routes(self) -> list:
        from starlette.routing import Route, WebSocketRoute
        return [WebSocketRoute("/msk/ws", self.meet), Route("/msk/stream", self.stream, methods=["POST"]),
                Route("/msk/in/{key}", self.take_post, methods=["POST"]), Route("/msk/file/{key}", self.give_file),
                Route("/msk/session/{id}", self.take_session, methods=["POST"])]

    # -- the door ----------------------------------------------------------------------------------------------------

    def stranger(self, headers, token: str) -> str | None:
        """Why what has these headers does not come from a page of ours; None: it does."""
        host, forwarded = headers.get("host", ""), headers.get("x-forwarded-host", "").split(",")[0].strip()
        if self.hosts is not None and name_of(host) not in self.hosts:
            return f"this server does not answer to the name {name_of(host)!r:.80}"
        believed = self.hosts is None or name_of(forwarded) in self.hosts.difference(LOOPBACK)  # any page may claim those
        origin = headers.get("origin", "")
        if not host or not origin or origin.partition("://")[2] not in (host, forwarded if believed and forwarded else host):
            return f"a page from {origin or 'nowhere'!r:.80} may not use the stage of {host!r:.80}"
        return None if self.tokens.known(token) else "the page's token is missing or too old: reload it"

    def refusal(self, socket) -> str | None:
        """Why this page may not come in; None: it may."""
        offered = [p.strip() for p in socket.headers.get("sec-websocket-protocol", "").split(",")]
        token = next((p[6:] for p in offered if p.startswith("token.")), "")
        why = self.stranger(socket.headers, token)
        return why or (None if PROTOCOL in offered else f"the page does not speak {PROTOCOL}: reload it")

    async def meet(self, socket) -> None:
        """A page that comes by WebSocket."""
        why = self.refusal(socket)
        if why is not None:
            log.warning("refused a page: %s", why)
            return await socket.close(code=1008, reason=why[:120])
        await socket.accept(subprotocol=PROTOCOL)
        await self.attend(socket, socket.query_params.get("resume", ""))

    async def stream(self, request):
        """A page that no WebSocket reaches: words and frames go down as one long answer, its own come to `take_post`."""
        from starlette.responses import StreamingResponse
        refused = self._turn_away(request)
        if refused is not None:
            return refused
        line = self.new_line(request.query_params.get("resume", ""))
        return StreamingResponse(line.down(), media_type="application/octet-stream", headers={
            "x-msk-line": line.key, "cache-control": "no-store, no-transform", "x-accel-buffering": "no"})

    def new_line(self, resume: str, events: bool = False) -> PostLine:
        """A line on which a page is attended to from now on."""
        line = PostLine(events=events)
        self._lines[line.key] = line

        async def attend():
            try:
                await self.attend(line, resume)
            finally:
                del self._lines[line.key]
                line.end(1000)

        self._hold(attend())
        return line

    def _hold(self, work) -> None:
        task = asyncio.create_task(work)
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def take_post(self, request):
        """What a page has to say that came by post."""
        from starlette.responses import PlainTextResponse
        refused = self._turn_away(request)
        if refused is not None:
            return refused
        code, text = self.post(request.path_params["key"], await body_of(request, MAX_POST))
        return PlainTextResponse(text, status_code=code)

    def post(self, key: str, data: bytes | None, took: int = 0) -> tuple[int, str]:
        """An HTTP status and a sentence; nothing at all (b"") is a good-bye, None was too much."""
        line = self._lines.get(key)
        if line is None:
            return 404, "this line has ended: begin another"
        if data is None:
            return 413, f"a post has at most {MAX_POST >> 10} KiB"
        try:
            messages = unwrap(data)
        except ProtocolError as error:
            return 400, str(error)
        line.took(took)
        if not messages:
            line.end(1000)
        elif not line.hear(messages):
            return 429, f"more than {MAX_WAITING} messages wait to be heard: send them later"
        return 204, ""

    def _turn_away(self, request):
        """The answer to what does not come from a page of ours; None: it does."""
        from starlette.responses import PlainTextResponse
        why = self.stranger(request.headers, request.headers.get("x-msk-token", ""))
        if why is None:
            return None
        log.warning("refused a page: %s", why)
        return PlainTextResponse(why, status_code=403)

    async def attend(self, socket, resume: str) -> None:
        """One page, from its first word to its leaving. Nothing it sends ends the server."""
        from starlette.websockets import WebSocketDisconnect
        visitor = Visitor(socket, asyncio.get_running_loop(), resume)
        sending = asyncio.create_task(visitor.send_all())
        clean = False
        try:
            await self.arrive(visitor)
            clean = await self.listen(visitor)
        except WebSocketDisconnect as gone:
            clean = gone.code in (1000, 1001)
        except RuntimeError:                    # the line went away while something was being sent
            pass
        finally:
            sending.cancel()
            await self.leave(visitor, clean)

    async def listen(self, visitor: Visitor) -> bool:
        """Hear the page until it goes; True if it said good-bye."""
        credit, last, warned = float(BURST), time.monotonic(), False
        while True:
            event = await visitor.socket.receive()
            if event["type"] == "websocket.disconnect":
                return event.get("code") in (1000, 1001)
            now = time.monotonic()
            credit, last = min(BURST, credit + (now - last) * RATE), now
            data = event.get("text") if event.get("text") is not None else event.get("bytes") or b""
            if credit < 1 and not is_ack(data):
                if not warned:
                    visitor.say({"type": "error",
                                 "message": f"more than {RATE} messages a second came: some are passed over"})
                    warned = True
                continue
            credit = max(credit - 1, 0)
            try:
                if len(data) > max(MAX_TEXT, MAX_BINARY):
                    raise ProtocolError(f"a message of {len(data)} bytes came: at most {MAX_TEXT} of text or {MAX_BINARY} "
                                        "of samples are read")
                await self.hear(visitor, read(data))
                warned = warned and credit < BURST / 2
            except ProtocolError as error:
                visitor.say({"type": "error", "message": str(error)})
            except Exception as error:
                log.exception("a message could not be obeyed")
                visitor.say({"type": "error", "message": f"that did not work: {error}"})

    async def hear(self, visitor: Visitor, message: dict) -> None:
        kind, session = message["type"], visitor.session
        if kind == "ping":
            visitor.say({"type": "pong", "t": message["t"]})
        elif session is None:
            visitor.say(self._place(visitor))
        elif kind == "ack":
            visitor.link.acked(message["seq"])
        else:
            session.touch()
            await self.obey(visitor, session, message)

    async def obey(self, visitor: Visitor, session: Session, message: dict) -> None:
        """What a hand on the page asks for."""
        kind = message["type"]
        if kind == "open":
            image = self.pictures[message["image"]] if message["image"] else session.source
            if image is None:
                raise ProtocolError("there is no picture yet: choose one")
            self.picture = message["image"] or self.picture
            await asyncio.to_thread(session.open, image, message["prompt"], message["seed"])
        elif kind == "export":
            file = await asyncio.to_thread(self._export, session, message["what"], message["mark"])
            if getattr(visitor.socket, "events", False):        # a file in its folder Gradio gives out itself
                file["url"] = f"gradio_api/file={quote(str(self._files[file['url'].rpartition('/')[2]]))}"
            visitor.say(file)
        elif kind in ("recall", "load"):
            await asyncio.to_thread(session.hear, message)
            if kind == "load":                          # it brings its own
                self.picture = ""
        elif kind == "model":
            if self.choice is None:
                raise ProtocolError("there is no model to choose from: this page plays one")
            self.choice.check(message["name"])
            self._hold(self._change(message["name"]))
        else:
            session.hear(message)

    def _export(self, session: Session, what: str, mark: bool) -> dict:
        key = secrets.token_urlsafe(18)
        (self._folder / key).mkdir()
        self._files[key] = path = export(session, what, self._folder / key, mark)
        while len(self._files) > 16:
            shutil.rmtree(self._files.popitem(last=False)[1].parent, ignore_errors=True)
        return {"type": "file", "url": f"msk/file/{key}", "name": path.name}

    async def give_file(self, request):
        """A file that a player asked for; its key cannot be guessed."""
        from starlette.responses import FileResponse, PlainTextResponse
        path = self._files.get(request.path_params["key"])
        if path is None or not path.exists():
            return PlainTextResponse("this file is gone: export it again", status_code=404)
        return FileResponse(path, filename=path.name)

    async def take_session(self, request):
        """A session file that the player brings."""
        from starlette.responses import PlainTextResponse
        refused = self._turn_away(request)
        if refused is not None:
            return refused
        code, text = await self.bring(request.path_params["id"], lambda: body_of(request, MAX_UPLOAD))
        return PlainTextResponse(text, status_code=code)

    async def bring(self, id: str, read: Callable[[], Awaitable[bytes | None]]) -> tuple[int, str]:
        """Open on the stage what `read` gives, a session file of who plays: an HTTP status and a sentence."""
        if self._touched_by(id) is None:
            return 403, "only who plays may open a session"
        data = await read()
        if data is None:
            return 413, f"a session file has at most {MAX_UPLOAD >> 20} MiB"
        try:
            kept = await asyncio.to_thread(parse_session, data)
            session = self._touched_by(id)              # another may play by now, or the same one another model
            if session is None:
                return 403, "the stage is someone else's by now: open the file again when it is your turn"
            await asyncio.to_thread(session.load, kept)
            self.picture = ""
        except ValueError as error:
            return 400, str(error)
        return 200, ""

    def _touched_by(self, id: str) -> Session | None:
        """The session of who plays, which a hand has just touched, if this is their id."""
        player = self.player
        if player is None or player.session is None or not same(player.id, id):
            return None
        player.session.touch()
        return player.session

    # -- who plays ---------------------------------------------------------------------------------------------------

    def _place(self, visitor: Visitor) -> dict:
        place = self.waiting.index(visitor) + 1 if visitor in self.waiting else 1
        why = ("You touched nothing while others waited, so the stage went to the next of them. What you made is kept; "
               if visitor.gave_way else "Someone else is playing: ")
        return {"type": "queue", "place": place, "message": (
            f"{why}you are number {place} in line. The stage is yours as soon as they leave, or touch nothing for "
            f"{span(self.turn)}.")}

    def _queue_up(self, visitor: Visitor) -> None:
        self.waiting.append(visitor)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())

    async def _take_turns(self) -> None:
        """While people wait: who plays and touches nothing gives way. They are told so before, in time to stay."""
        since, told, notice = time.monotonic(), None, min(20.0, self.turn / 2)
        while self.waiting:
            await asyncio.sleep(min(1.0, self.turn / 10))
            player = self.player
            if player is None or player.session is None:
                since = time.monotonic()
                continue
            rested = time.monotonic() - max(since, player.session.touched)
            if rested > self.turn:
                await self._give_way(player)
                since = time.monotonic()
            elif rested > self.turn - notice and told != (at := (player, player.session.touched)):
                told = at
                player.say({"type": "note", "message": f"others wait for the stage: touch anything within {span(notice)} "
                                                       "to keep it"})

    async def _give_way(self, player: Visitor) -> None:
        """The next in line plays, and who played waits; what they made is kept."""
        session, player.session, player.id, self.player = player.session, None, "", None
        player.gave_way = True                          # told whenever it asks: what it still sends is of its last frames
        self.waiting.append(player)
        player.frames.clear()
        await self._end(session)

    async def arrive(self, visitor: Visitor) -> None:
        orphan, before = self._orphan, self.player
        if before is not None and before.session is not None and same(before.id, visitor.resume):
            session, before.session = before.session, None      # it is back before its lost link was missed
            played = session.state == "playing"
            session.lose_link()
            self._seat(visitor, session, before.id)
            if played:
                session.resume()
        elif orphan is not None and same(orphan[0], visitor.resume):
            self._orphan = None
            self._orphan_ends.cancel()
            self._seat(visitor, orphan[1], orphan[0])
            if orphan[2]:
                orphan[1].resume()
        elif self.player is None and orphan is None and not self._ending:
            await self._begin(visitor)
        else:
            self._queue_up(visitor)
            visitor.say(self._place(visitor))

    async def _begin(self, visitor: Visitor) -> None:
        """A session of one's own, as all begin."""
        self.player = visitor
        try:
            session = self.new_session()
            self._seat(visitor, session, secrets.token_urlsafe(12))
            if self.first is not None:
                image, prompt, seed = self.first
                self.picture = image
                await asyncio.to_thread(session.open, self.pictures[image], prompt, seed)
        except Exception as error:
            log.exception("a session could not begin")
            visitor.say({"type": "error", "message": f"the stage could not be set up: {error}"})

    def _go_on(self, old: Session, picture: str) -> tuple[Session, int]:
        """A session with all that an old one had, which ends; how many of its points are left out."""
        old.close()
        session = self.new_session()
        try:
            if old.source is not None:
                return session, session.go_on_from(old, self.pictures.get(picture))
        except Exception:                               # the new model plays all the same, from the first picture
            log.exception("a session could not go along to another model")
        if self.first is not None:
            image, prompt, seed = self.first
            session.open(self.pictures[image], prompt, seed)
        return session, 0

    def _seat(self, visitor: Visitor, session: Session, id: str) -> None:
        """This visitor sees and steers this session."""
        def safely(call):
            def heard(value):
                if visitor.session is session:          # what comes late is of a stage that is theirs no more
                    call(value)
            return lambda value: visitor.loop.is_closed() or visitor.loop.call_soon_threadsafe(heard, value)

        self.player, visitor.session, visitor.id, session.heard = visitor, session, id, 0
        visitor.gave_way = False
        visitor.link = Link(session.fps, session.ahead)
        choice = self.choice
        offers = {"models": [asdict(offer) for offer in choice.offers], "playing": choice.playing} if choice else {}
        visitor.say(greeting(session, id) | offers)
        with session.changed:                           # what it tells meanwhile comes after
            visitor.say(session.describe())
            if session.state != "playing" and session.still() is not None:
                visitor.show(session.still())
            session.on_event, session.on_frame = safely(visitor.say), safely(visitor.show)

    async def leave(self, visitor: Visitor, clean: bool) -> None:
        if visitor in self.waiting:
            self.waiting.remove(visitor)
            self._call_places()
        if visitor is not self.player:
            return
        session, visitor.session = visitor.session, None
        if session is None:
            self.player = None
            return
        played = session.state == "playing"
        session.lose_link()
        if clean or self.grace <= 0:
            await self._end(session)
        else:
            self.player, self._orphan = None, (visitor.id, session, played)
            self._orphan_ends = asyncio.create_task(self._give_up(session))

    async def _give_up(self, session: Session) -> None:
        await asyncio.sleep(self.grace)
        self._orphan = None
        await self._end(session)

    async def _end(self, session: Session) -> None:
        """What was made is on disk, the next in line plays."""
        self._ending = True
        await asyncio.to_thread(session.close)
        self.player, self._ending = None, False
        if self.waiting:
            await self._begin(self.waiting.pop(0))
            self._call_places()

    async def _change(self, name: str) -> None:
        """Go on with another model once it is there: picture, prompt, points and deeds stay, also of who is away."""
        scene = await self.choice.take(name, lambda word: self.player and self.player.say(word))
        if scene is None:
            return
        for i, (image, _) in enumerate(scene.pictures):
            self.pictures.keep(f"start-{i}", image)
        self.new_session, self.first = scene.new_session, ("start-0", scene.pictures[0][1], 0)
        old = self.player.session if self.player else self._orphan[1] if self._orphan else None
        if old is None:
            return
        new, lost = await asyncio.to_thread(self._go_on, old, self.picture)
        visitor = self.player                           # meanwhile a link may have failed, or come back
        if visitor is not None and visitor.session is old:
            self._seat(visitor, new, visitor.id)
            if lost:
                visitor.say({"type": "note", "message": f"{lost} of the points lie outside of what this model sees of the "
                                                        "picture: they are left out"})
            visitor.say({"type": "model", "name": name, "state": "here", "share": None, "message": "it is here"})
        elif self._orphan is not None and self._orphan[1] is old:
            self._orphan_ends.cancel()
            self._orphan = self._orphan[0], new, False
            self._orphan_ends = asyncio.create_task(self._give_up(new))
        else:
            await asyncio.to_thread(new.close)

    def _call_places(self) -> None:
        for visitor in self.waiting:
            visitor.say(self._place(visitor))

    def close(self) -> None:
        """End whatever plays; for the end of the program and of tests."""
        session = self.player.session if self.player else self._orphan[1] if self._orphan else None
        if session is not None:
            session.close()
        for task in (self._turns, self._orphan_ends):
            if task is not None and not task.get_loop().is_closed():
                task.get_loop().call_soon_threadsafe(task.cancel)
        for line in [line for line in self._lines.values() if not line.loop.is_closed()]:
            line.loop.call_soon_threadsafe(line.end, 1001)          # a server waits for its long answers to end
        shutil.rmtree(self._folder, ignore_errors=True)
