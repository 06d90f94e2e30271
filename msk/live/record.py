"""A take on disk: every frame that was shown, every deed and every path that was asked, written as it goes.

While it runs there are `NAME.part.N.mp4` (fragmented: each half second stands by itself, so a killed process leaves a file
that plays) and `NAME.jsonl` (a line for the start, one per chunk and per deed). `close` makes `NAME.mp4` and `NAME.json` of
them, each put in place in one step; `recover` does so for takes whose process has died. The json is the session: with
it the same frames can be made again (replay.py).
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..video import GENERATED
from ..weights import write_whole
from .protocol import MARKS

log = logging.getLogger("msk.live")
FORMAT = "msk session 1"
MAX_SESSION = 256 * 1024 ** 2               # bytes of a session file
MAX_FRAMES = 24 * 3600 * 6                  # of one take: six hours
MAX_EVENTS = 100_000
MAX_GROUPS, MAX_TRACKS = 64, 8192           # that one chunk may hold
MOST_HELD, MOST_SCALE = 64, 20              # of what a stream may be tuned to
FAR = 1e5                                   # pixels: no place is so far
AGAIN = "again"
LATELY = 60                                 # seconds
_written_here: set[Path] = set()            # takes that this process has begun
_NAME = re.compile(r"take-\d{8}-\d{6}-[0-9a-f]{16}")


def _av():
    try:
        import av
    except ImportError:
        raise ImportError('recording needs PyAV: pip install "msk[demo]"') from None
    return av


class Take:
    """One recording. `about` is kept as JSON: model, prompt, seed, picture. Nothing is on disk until there is something.

    write(picture [H, W, 3] uint8) per frame shown; note(...) per chunk and deed; join(path) at any time; close() at the end.
    """

    def __init__(self, folder: str | Path, fps: float, about: dict):
        self._av = _av()
        self.folder = Path(folder)
        self.name = time.strftime("take-%Y%m%d-%H%M%S-") + secrets.token_hex(8)
        self.fps = Fraction(fps).limit_denominator(1000)
        self.about = {"format": FORMAT, "process": os.getpid(), "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                      "frames_per_second": float(self.fps), **about}
        self.frames = self.events = 0
        self.last = None                            # the last frame shown
        self.path: Path | None = None               # NAME.mp4, once closed
        self.closed = False
        self._parts: list[Path] = []
        self._part = self._stream = self._lines = None
        self._in_part = 0
        self._held: dict = {}                       # the last chunk
        self._lock, self._film = threading.RLock(), threading.RLock()       # of the lines, and of the frames: to join all
                                                                            # frames takes long, and no chunk waits for it

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def begun(self) -> bool:
        return self._lines is not None or self.closed and self.file().exists()

    def file(self) -> Path:
        """Where the session stands."""
        return self.lines.with_suffix(".json") if self.closed else self.lines

    def _line(self, record: dict) -> None:
        if self._lines is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lines = open(self.lines, "w", encoding="utf-8")
            _written_here.add(self.lines.resolve())
            self._line(self.about)
        self._lines.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._lines.flush()

    def note(self, record: dict) -> None:
        with self._lock:
            if not self.closed and ("event" not in record or self.events < MAX_EVENTS):
                self.events += "event" in record
                if "chunk" in record:
                    record, self._held = lean([self._held, record])[1], record
                self._line(record)

    def metadata(self) -> dict:
        """What every file that is made of this take says about itself."""
        kept = {k: v for k, v in self.about.items() if k not in ("picture", "process")}
        kept["session"] = self.digest()
        return kept

    def digest(self) -> str:
        """A short name for all that was asked; '' before anything was."""
        if not self.begun:
            return ""
        session = self.session()
        asked = {k: session.get(k) for k in ("model", "revision", "prompt", "seed", "picture", "chunks")}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, picture) -> None:
        with self._film:
            if self.closed:
                return
            if self.frames >= MAX_FRAMES:
                raise ValueError(f"a take holds {MAX_FRAMES} frames, and they are full: begin another")
            if self._part is None:
                self._begin_part(picture.shape[1], picture.shape[0])
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = self._in_part, 1 / self.fps
            self._part.mux(self._stream.encode(frame))
            self._in_part += 1
            self.frames += 1
            self.last = picture

    def _begin_part(self, width: int, height: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.part.{len(self._parts) + 1}.mp4"
        self._part = self._av.open(str(path), "w", format="mp4", options={
            "movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags", "flush_packets": "1"})
        self._part.metadata.update(comment=GENERATED, title=self.name)
        half_second = max(1, round(self.fps / 2))
        stream = self._part.add_stream("libx264", rate=self.fps)
        stream.width, stream.height, stream.pix_fmt = width - width % 2, height - height % 2, "yuv420p"
        stream.options = {"crf": "14", "preset": "veryfast", "tune": "zerolatency", "g": str(half_second),
                          "x264-params": f"keyint={half_second}:min-keyint={half_second}:scenecut=0"}
        stream.thread_count = 1
        self._stream, self._in_part = stream, 0
        self._parts.append(path)

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.mux(self._stream.encode(None))
            self._part.close()
            self._part = self._stream = None

    def join(self, path: str | Path) -> Path:
        """All frames so far as one plain mp4 at `path`; a take that runs goes on."""
        with self._film:
            if self.path is not None:
                Path(path).write_bytes(self.path.read_bytes())
                return Path(path)
            self._end_part()
            if not self.frames:
                raise ValueError("nothing has been made yet: start the stream, then export")
            return join(self._parts, Path(path), self.fps, {"comment": GENERATED, "title": self.name,
                                                            "msk": json.dumps(self.metadata())})

    def session(self) -> dict:
        """The take as one value: what it was made of, every deed and every chunk's paths."""
        if not self.begun:
            return {**self.about, "chunks": [], "events": []}
        try:
            session = read_session(self.file())         # its last line may be half written, which is left out
        except FileNotFoundError:                       # it was closed meanwhile, and has another name
            session = read_session(self.file())
        return {**session, "shown": self.frames}

    def close(self) -> Path | None:
        """NAME.json, and NAME.mp4 if a frame was shown; nothing if nothing was done. A second call does nothing."""
        with self._film, self._lock:
            if self.closed:
                return self.path
            self._end_part()
            if self._lines is not None:
                self._line({"shown": self.frames})
                self._lines.close()
                self.path = finish(self.lines, self._parts)
            self.closed, self._lines = True, None
            _written_here.discard(self.lines.resolve())
            return self.path


def join(parts: list[Path], path: Path, fps: Fraction, metadata: dict) -> Path:
    """The parts of one take, one after the other, without coding them again."""
    av = _av()
    unfinished = path.with_name(f"{path.stem}.part.0.mp4")
    with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart+use_metadata_tags"}) as out:
        out.metadata.update(metadata)
        stream, base = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                    stream.time_base = video.time_base
                tick = int(1 / (fps * video.time_base))
                end = base
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts += base
                    packet.dts += base
                    packet.stream = stream
                    end = max(end, packet.pts + tick)
                    out.mux(packet)
                base = end
    os.replace(unfinished, path)
    return path


def finish(lines: Path, parts: list[Path]) -> Path | None:
    """NAME.jsonl and its parts -> NAME.json and, if there are frames, NAME.mp4, whose path comes back.

    Lines that cannot be read as a session stay as they are, and the frames are joined all the same.
    """
    path = None
    try:
        session = read_session(lines)
    except ValueError as error:
        log.warning("%s stays as it is: %s", lines, error)
        with open(lines, encoding="utf-8") as text:
            session = {**json.loads(text.readline()), "lines": lines.name}
    else:
        write_whole(lines.with_suffix(".json"), packed_session(session))
    if parts:
        about = {k: v for k, v in session.items() if isinstance(v, (str, int, float)) and k not in ("picture", "process")}
        path = join(parts, lines.with_suffix(".mp4"), Fraction(session["frames_per_second"]).limit_denominator(1000),
                    {"comment": GENERATED, "title": lines.stem, "msk": json.dumps(about)})
    if "lines" not in session:
        lines.unlink()
    for part in parts:
        part.unlink()
    return path


def recover(folder: str | Path) -> list[Path]:
    """Finish the takes in a folder that a process left when it died; the session files that came of it."""
    found = []
    for lines in sorted(Path(folder).glob("take-*.jsonl")):
        try:
            session = read_session(lines)
            if lines.resolve() in _written_here or _alive(session.get("process"), lines):
                continue
            parts = sorted(lines.parent.glob(f"{lines.stem}.part.[1-9]*.mp4"), key=lambda p: int(p.suffixes[-2][1:]))
            finish(lines, [p for p in parts if _plays(p)])
            for rest in lines.parent.glob(f"{lines.stem}.part.*.mp4"):
                rest.unlink()
            found.append(lines.with_suffix(".json"))
        except (ValueError, OSError):               # torn beyond reading, or in use elsewhere: it stays as it is
            continue
    return found


def _plays(part: Path) -> bool:
    av = _av()
    try:
        with av.open(str(part)) as video:
            return next(video.decode(video=0), None) is not None
    except (av.error.FFmpegError, IndexError):
        return False


def _alive(process, lines: Path) -> bool:
    """Whether a process of this number runs, where one may ask.

    This one's own number, in a take that it did not begin, is that of one before it: in a container all have the same. Or of
    one in another container, which then has just written.
    """
    if os.name != "posix" or not isinstance(process, int) or process == os.getpid():
        return process == os.getpid() and time.time() - lines.stat().st_mtime < LATELY
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def find(folder: str | Path | None, name: str) -> Path | None:
    """The session file of a take in a folder, by the take's name."""
    if folder is None or not _NAME.fullmatch(name):
        return None
    return next((path for path in (Path(folder) / f"{name}.json", Path(folder) / f"{name}.jsonl") if path.exists()), None)


def read_session(path: str | Path) -> dict:
    """A take's .json, or the .jsonl of one that was cut off, whose last line may be torn."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no session at {path}")
    if path.stat().st_size > MAX_SESSION:
        raise ValueError(f"{path.name} has {path.stat().st_size >> 20} MiB: a session has at most {MAX_SESSION >> 20}")
    return parse_session(path.read_bytes(), path.name)


def parse_session(data: bytes, name: str = "the file") -> dict:
    """The bytes of a session file -> the session, checked as far as others lean on it."""
    try:
        text = data.decode("utf-8")
        records = [json.loads(text)]
    except ValueError:
        records = []
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    except RecursionError:
        records = []
    if not records or not all(isinstance(r, dict) for r in records) or records[0].get("format") != FORMAT:
        raise ValueError(f"{name} holds no session, or its first line is torn: wanted a .json that msk has saved")
    session = {"chunks": [], "events": [], **records[0]}
    for record in records[1:]:
        if "chunk" in record:
            session["chunks"].append(record)
        elif "event" in record:
            session["events"].append(record)
        else:
            session.update(record)
    if isinstance(session["chunks"], list) and all(isinstance(chunk, dict) for chunk in session["chunks"]):
        full(session["chunks"])
    return check_session(session, name)


def packed_session(session: dict) -> bytes:
    """A session as its file holds it."""
    return json.dumps({**session, "chunks": lean(session["chunks"])}).encode()


def check_session(session: dict, name: str = "the file") -> dict:
    """Itself, if every part that is played or drawn again has the right kind. Raises ValueError with what is wrong."""
    from numbers import Real
    kinds = {"model": str, "prompt": str, "picture": str, "seed": int, "chunks": list, "events": list, "width": int,
             "height": int, "frames_per_second": Real}
    for key, kind in kinds.items():
        if not isinstance(session.get(key), kind) or isinstance(session.get(key), bool):
            raise ValueError(f"{name}: {key} is {session.get(key)!r:.40}, wanted {kind.__name__}: it is damaged")
    if not isinstance(session.get("points", []), list):
        raise ValueError(f"{name}: points is {session['points']!r:.40}, wanted list: it is damaged")
    for k, chunk in enumerate(session["chunks"]):
        try:
            fine = _holds(chunk)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError):
            fine = False
        if not fine:
            raise ValueError(f"{name}: chunk {k} does not hold together: it is damaged")
    return session


def _holds(chunk: dict) -> bool:
    """Is every part of a chunk there, of the right size, and bounded?"""
    count, ids, held, hold = int(chunk["frames"]), chunk["ids"], chunk.get("held", []), chunk.get("hold", [True, True])
    if not (0 < count <= 1000 and len(ids) <= 255 and len(held) <= MAX_GROUPS):
        return False
    xy, seen = np.array(chunk["xy"], float), np.array(chunk.get("seen", [[1] * len(ids)] * count), float)
    return (_names(ids) and len(ids) + sum(len(group["ids"]) for group in held) <= MAX_TRACKS
            and (xy.shape == (count, len(ids), 2) if ids else xy.size == 0) and bool((np.abs(xy) < FAR).all())
            and (seen.shape == (count, len(ids)) or not ids)
            and len(chunk["origin"]) == len(ids) and _places(chunk["origin"])
            and len(chunk["who"]) == len(ids) and all(kind in MARKS and _names([id]) for id, kind in chunk["who"])
            and all(_fits(group, count, held) for group in held)
            and _names([steps := chunk.get("steps", 1)]) and 0 < steps <= 1000
            and [type(v) for v in hold] == [bool, bool]
            and all(tunable(*one) and one[0] != "steps" for one in chunk.get("tune", {}).items())
            and all(type(on) is bool for on in anchors(chunk))
            and isinstance(chunk.get("say", ""), str) and isinstance(chunk.get("points", []), list))


def tunable(name: str, value) -> bool:
    """May a session be tuned to this? See Stream.tune; `steps` are the session's, and each chunk's own in its file."""
    if name in ("sink", "window", "steps"):
        return type(value) is int and (name == "steps") <= value <= MOST_HELD
    return name in ("text_scale", "motion_scale") and type(value) in (int, float) and 0 <= value <= MOST_SCALE


def anchors(chunk: dict) -> list[bool]:
    """Fresh anchors before a chunk, in their order: True, or False where the last one was taken back."""
    told = chunk.get("anchor", False)
    return told if isinstance(told, list) else [True] * bool(told)          # once there was one at most


def _fits(group: dict, frames: int, groups: list[dict]) -> bool:
    """Does a group of points (hold.py) hold together?"""
    ids, at, seed = group["ids"], group.get("at"), "seed" in group
    way = np.array(group.get("way") or [[1, 0, 0, 0]] * frames, float)
    return (len(ids) > 0 and _names(ids) and len(group["origin"]) == len(ids) and _places(group["origin"])
            and (at is None or len(at) == len(ids) and None not in at and _places(at))
            and way.shape == (frames, 4) and bool((np.abs(way) < FAR).all())
            and bool((np.hypot(way[:, 0], way[:, 1]) > 1e-3).all())
            and (not seed or group.get("way") and group["seed"] is not None and _places([group["seed"]]))
            and _names(group.get("points", []))
            and ("beside" not in group or not seed and group.get("way") and type(group["beside"]) is int
                 and 0 <= group["beside"] < len(groups) and "seed" in groups[group["beside"]])
            and all(0 <= int(n) < len(ids) and all(0 <= i < frames for i in when) and _names(when)
                    for n, when in group.get("unseen", {}).items()))


def _names(numbers: list) -> bool:
    return isinstance(numbers, list) and all(type(i) is int and 0 <= i < 2 ** 31 for i in numbers)


def _places(places: list) -> bool:
    """Are these pairs of numbers, or None where nothing is known?"""
    known = [place for place in places if place is not None]
    pairs = np.array(known or [(0, 0)], float)
    return pairs.shape == (len(pairs), 2) and bool((np.abs(pairs) < FAR).all())


def lean(chunks: list[dict]) -> list[dict]:
    """What is held as in the chunk before is written as AGAIN: most of the time nothing moves."""
    return [{**now, "held": AGAIN} if "held" in now and now["held"] == before.get("held") else now
            for before, now in zip([{}, *chunks], chunks)]


def full(chunks: list[dict]) -> list[dict]:
    """`lean` undone."""
    for before, now in zip([{}, *chunks], chunks):
        if now.get("held") == AGAIN:
            now["held"] = before.get("held", [])
    return chunks
