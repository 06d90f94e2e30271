"""What the page and the engine say to each other: the same words by each of the page's ways, and through a notebook's comm.

Up, text (JSON, at most 16 KiB), one object with a `type`, and `n`, its number, if `state` is to tell that it was heard:

    open     image (id of a picture), prompt, seed       take this picture, forget the old stream
    start  stop  pause  resume  reset                    the take: begin, end, hold, go on; to the picture
    undo  redo  anchor                                   one deed back, one again; the latest chunk becomes the sink (a deed)
    skip                                                 what is left of a kept session, as fast as it can be made
    say      prompt                                      follow another text, from the next chunk on
    add      id, kind "live" | "pin", x, y, t            a new point; the page chooses the id, 0..65535
    grid     id, kind, box [x, y, x, y], spacing, t      points all over a box, spacing in widths; ids from `id` on
    path     id, nodes [[seconds, x, y], ...], loop "once" | "loop" | "swing", speed, t
                                                         a way drawn in advance, new or in place of the point's old one
    grab     ids, t                                      a pointer takes hold of points
    release  ids, t, keep                                lets them go: they hold their place (keep) or say no more
    pin      ids, on                                     they stay where they are, or live again
    remove   ids
    camera   right, down, zoom, roll, orbit, dolly       fly on by so much (see flight.py)
    grip     on                                          points take hold of the whole thing under them, or of a spot
    rest     on                                          all that no hand moves stays, or is free
    look     on                                          send `map`: what the model is told, chunk by chunk
    gaze     on, point                                   send `gaze`: where the model looks, chunk by chunk, and where
                                                         that point does; -1: none
    export   what (one of EXPORTS), mark                 answered by `file`; mark: say on the picture that it is generated
    recall   take                                        is it kept? answered by `kept`, or not at all
    load     take                                        open a kept take: it plays again, and goes on where it ended
    model    name                                        load this model of those that `hello` offers, and go on with it
    ping     t                                           answered by `pong`, t unchanged

Up, binary, little endian (at most 64 KiB):

    pointer  u8 1, u8 n, then n of  f64 t, u16 id, f32 x, f32 y          at most 64 samples
    ack      u8 2, u32 seq                                               this frame has come

Down, text: `hello` (session, geometry, fps, limits; models to choose from, and which plays), `state` (state, points, prompt,
seed, undo, redo, grip, rest, take, tuning; heard: the number of the latest message that is in it; things: outlines of what
points hold), `queue` (place), `error` (message: one sentence for a person), `note` (the same, not an error), `file` (url,
name), `kept` (take, prompt, frames, points), `chunk` (what it took, in how many steps, what is remembered), `map` (a
picture), `gaze` (layers: rows of a layer's number and the shares of its attention that go to sink, window and the chunk
itself; cells: where the point looks in the sink, a picture),
`model` (name, state "loading", "failed" or "here", message, share of a download or null), `pong`.

Down, binary, little endian: one frame

    u8 1, u8 quality, u8 n, u8 flags (1 = still), u32 seq, u32 chunk, u32 index, f64 pts, f64 sent, f64 echo,
    then n of  u16 id, u8 kind (0 live, 1 pin, 2 path, 3 camera), u8 0, f32 x, f32 y,  then a JPEG

x and y are shares of the picture's width and height, origin top left; outside [0, 1] they are brought back to the edge, but
a hand and a path may leave the picture by half of its size. `t` and `echo` are milliseconds of the page's clock: `echo` is
the newest pointer sample that this frame knows of (NaN: none). `pts` (when to show) and `sent` are milliseconds of the
server's clock, so that their difference needs no common clock.
"""
from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass

from .points import KINDS, LOOPS, MOVE

VERSION = 2
MAX_TEXT = 16 * 1024
MAX_BINARY = 64 * 1024
BEYOND = 0.5                # shares of the picture that a hand may lead beyond its edge
MAX_POINTS = 144            # with a camera's 64 they fit in one byte
MAX_NODES = 160             # of one path
MAX_PROMPT = 1000
MAX_SAMPLES = 64
MAX_SECONDS = 600.0         # that a path may last
EXPORTS = ("mp4", "webp", "gif", "png", "npz", "tracks", "session")
MARKS = (*KINDS, "camera")

_POINTER, _ACK, _FRAME = 1, 2, 1
_SAMPLE = struct.Struct("<dHff")
_HEAD = struct.Struct("<BBBBIIIddd")
_MARK = struct.Struct("<HBBff")


class ProtocolError(ValueError):
    """What came was not the protocol; the text is one sentence for a person."""


@dataclass(frozen=True)
class Sample:
    """Where a pointer was at `t` (milliseconds of the page's clock); x, y are shares of the picture."""
    t: float
    id: int
    x: float
    y: float


@dataclass(frozen=True)
class Mark:
    """Where the model was asked to have a point in one frame."""
    id: int
    kind: str               # one of MARKS
    x: float
    y: float


def _number(name: str, value, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:      # NaN is not
        raise ProtocolError(f"{name} was {value!r:.40}: send a finite number")
    if not low <= value <= high:
        raise ProtocolError(f"{name} was {value}: send a number from {low} to {high}")
    return float(value)


def _whole(name: str, value, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProtocolError(f"{name} was {value!r:.40}: send a whole number from {low} to {high}")
    return value


def _share(name: str, value) -> float:
    """A share of the picture, brought back to its edge."""
    return min(max(_number(name, value), 0.0), 1.0)


def _reach(name: str, value) -> float:
    """A share of the picture, or of what lies about it."""
    return min(max(_number(name, value), -BEYOND), 1.0 + BEYOND)


def _words(name: str, value, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        came = f"{len(value)} characters" if isinstance(value, str) else repr(value)[:40]
        raise ProtocolError(f"{name} was {came}: send text of at most {limit} characters")
    return value


def _one_of(*choices: str):
    def check(name: str, value) -> str:
        if value not in choices:
            raise ProtocolError(f"{name} was {value!r:.40}: send one of {', '.join(choices)}")
        return value
    return check


def _yes_or_no(name: str, value) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} was {value!r:.40}: send true or false")
    return value


def _point_id(name, value):
    return _whole(name, value, 0, 65535)


def _ids(name, value) -> list[int]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_POINTS or len(set(map(str, value))) < len(value):
        raise ProtocolError(f"{name} was {value!r:.40}: send a list of 1 to {MAX_POINTS} different points")
    return [_point_id(name, v) for v in value]


def _list(name, value, least: int, most: int) -> list:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ProtocolError(f"{name} was {value!r:.40}: send a list of {least} to {most}")
    return value


def _box(name, value) -> tuple[float, ...]:
    """Two corners in any order -> left, top, right, bottom."""
    x0, y0, x1, y1 = (_share(name, v) for v in _list(name, value, 4, 4))
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _nodes(name, value) -> list[tuple[float, float, float]]:
    """Nodes in the order of time, which begins at 0."""
    nodes = []
    for node in _list(name, value, 2, MAX_NODES):
        t, x, y = _list(name, node, 3, 3)
        nodes.append((_number("seconds", t, nodes[-1][0] if nodes else 0.0, MAX_SECONDS), _reach("x", x), _reach("y", y)))
    return [(t - nodes[0][0], x, y) for t, x, y in nodes]


_KIND = _one_of("live", "pin")
_FIELDS = {
    "open": {"image": lambda n, v: _words(n, v, 64), "prompt": lambda n, v: _words(n, v, MAX_PROMPT),
             "seed": lambda n, v: _whole(n, v, 0, 2 ** 31 - 1)},
    "start": {}, "stop": {}, "pause": {}, "resume": {}, "reset": {}, "undo": {}, "redo": {}, "anchor": {},
    "skip": {},
    "say": {"prompt": lambda n, v: _words(n, v, MAX_PROMPT)},
    "add": {"id": _point_id, "kind": _KIND, "x": _share, "y": _share, "t": _number},
    "grid": {"id": _point_id, "kind": _KIND, "box": _box, "spacing": lambda n, v: _number(n, v, 0.02, 1.0), "t": _number},
    "path": {"id": _point_id, "nodes": _nodes, "loop": _one_of(*LOOPS), "speed": lambda n, v: _number(n, v, 0.1, 10.0),
             "t": _number},
    "grab": {"ids": _ids, "t": _number},
    "release": {"ids": _ids, "t": _number, "keep": _yes_or_no},
    "pin": {"ids": _ids, "on": _yes_or_no},
    "remove": {"ids": _ids},
    "camera": {part: (lambda n, v: _number(n, v, -360, 360)) for part in MOVE},
    "look": {"on": _yes_or_no}, "gaze": {"on": _yes_or_no, "point": lambda n, v: _whole(n, v, -1, 65535)},
    "grip": {"on": _yes_or_no}, "rest": {"on": _yes_or_no},
    "export": {"what": _one_of(*EXPORTS), "mark": _yes_or_no},
    "recall": {"take": lambda n, v: _words(n, v, 64)},
    "load": {"take": lambda n, v: _words(n, v, 64)},
    "model": {"name": lambda n, v: _words(n, v, 1000)},
    "ping": {"t": _number},
}


def read_text(text: str) -> dict:
    """JSON from the page -> a checked message: every field it must have, its number, and no other."""
    if len(text) > MAX_TEXT:
        raise ProtocolError(f"a message of {len(text)} characters came: at most {MAX_TEXT} are read")
    try:
        message = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        raise ProtocolError("a message came that is not JSON: send one JSON object with a \"type\"") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message came that is no JSON object: send one with a \"type\"")
    kind = message.get("type")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ProtocolError(f"a message of type {kind!r:.40} came: the types are {', '.join(_FIELDS)}")
    missing = [name for name in fields if name not in message]
    if missing:
        raise ProtocolError(f"\"{kind}\" came without {', '.join(missing)}: it takes {', '.join(fields)}")
    number = {"n": _whole("n", message["n"], 0, 2 ** 53)} if "n" in message else {}
    return {"type": kind, **number, **{name: check(name, message[name]) for name, check in fields.items()}}


def is_ack(data: str | bytes) -> bool:
    return len(data) == 5 and data[0] == _ACK


def read_binary(data: bytes) -> dict:
    """Bytes from the page -> {"type": "pointer", "samples": [...]} or {"type": "ack", "seq": n}."""
    if len(data) > MAX_BINARY:
        raise ProtocolError(f"a binary message of {len(data)} bytes came: at most {MAX_BINARY} are read")
    if is_ack(data):
        return {"type": "ack", "seq": struct.unpack_from("<I", data, 1)[0]}
    if len(data) < 2 or data[0] != _POINTER:
        raise ProtocolError(f"a binary message of {len(data)} bytes came that is neither pointer samples nor an ack")
    count = data[1]
    if not 1 <= count <= MAX_SAMPLES or len(data) != 2 + count * _SAMPLE.size:
        raise ProtocolError(f"{count} pointer samples in {len(data)} bytes came: send 1 to {MAX_SAMPLES}, "
                            f"{_SAMPLE.size} bytes each after the first two")
    samples = []
    for t, point, x, y in _SAMPLE.iter_unpack(data[2:]):
        samples.append(Sample(_number("t", t), point, _reach("x", x), _reach("y", y)))
    return {"type": "pointer", "samples": samples}


def read(data: str | bytes) -> dict:
    return read_text(data) if isinstance(data, str) else read_binary(bytes(data))


def write_samples(samples: list[Sample]) -> bytes:
    return bytes((_POINTER, len(samples))) + b"".join(_SAMPLE.pack(s.t, s.id, s.x, s.y) for s in samples)


def write_ack(seq: int) -> bytes:
    return struct.pack("<BI", _ACK, seq)


def write_frame(jpeg: bytes, *, quality: int, seq: int, chunk: int, index: int, pts: float, sent: float,
                echo: float | None, marks: list[Mark], still: bool = False) -> bytes:
    head = _HEAD.pack(_FRAME, quality, len(marks), int(still), seq, chunk, index, pts, sent,
                      math.nan if echo is None else echo)
    return head + b"".join(_MARK.pack(m.id, MARKS.index(m.kind), 0, m.x, m.y) for m in marks) + jpeg


def read_frame(data: bytes) -> dict:
    """What the page does with a frame, in Python: for tests, and for clients that are no browser."""
    what, quality, count, flags, seq, chunk, index, pts, sent, echo = _HEAD.unpack_from(data)
    if what != _FRAME:
        raise ProtocolError(f"a binary message of kind {what} came: a frame is of kind {_FRAME}")
    end = _HEAD.size + count * _MARK.size
    marks = [Mark(i, MARKS[kind], x, y) for i, kind, _, x, y in _MARK.iter_unpack(data[_HEAD.size:end])]
    return {"quality": quality, "still": bool(flags & 1), "seq": seq, "chunk": chunk, "index": index, "pts": pts,
            "sent": sent, "echo": None if math.isnan(echo) else echo, "marks": marks, "jpeg": data[end:]}
