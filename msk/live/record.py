"""A take on disk: every frame that was shown and every path that was asked, written as it goes.

While it runs there are `NAME.part.N.mp4` (fragmented: each half second stands by itself, so a killed process leaves a file
that plays) and `NAME.jsonl` (one line for the start, one per chunk). `close` makes `NAME.mp4` and `NAME.json` of them, each
put in place in one step.
"""
from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from fractions import Fraction
from pathlib import Path

NOTICE = "AI-generated video (msk)"


def _av():
    try:
        import av
    except ImportError:
        raise ImportError('recording needs PyAV: pip install "msk[demo]"') from None
    return av


class Take:
    """One recording. `about` is kept as JSON: model, prompt, seed, picture.

    write(picture [H, W, 3] uint8) per frame shown; note(...) per chunk; export(path) at any time; close() at the end.
    """

    def __init__(self, folder: str | Path, fps: float, about: dict):
        self._av = _av()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = time.strftime("take-%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        self.fps, self.about = Fraction(fps).limit_denominator(1000), about
        self.frames = 0
        self.path: Path | None = None               # NAME.mp4, once closed
        self._parts: list[Path] = []
        self._part = self._stream = None
        self._in_part = 0
        self._lock = threading.RLock()
        self._lines = open(self.folder / f"{self.name}.jsonl", "w", encoding="utf-8")
        self._line({"frames_per_second": float(self.fps), **about})

    def _line(self, record: dict) -> None:
        self._lines.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._lines.flush()

    def note(self, record: dict) -> None:
        with self._lock:
            if not self._lines.closed:
                self._line(record)

    def _metadata(self) -> dict:
        kept = {k: v for k, v in self.about.items() if k != "picture"}
        return {"comment": NOTICE, "title": self.name, "msk": json.dumps(kept)}

    def write(self, picture) -> None:
        with self._lock:
            if self._lines.closed:
                return
            if self._part is None:
                self._begin_part(picture.shape[1], picture.shape[0])
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = self._in_part, 1 / self.fps
            self._part.mux(self._stream.encode(frame))
            self._in_part += 1
            self.frames += 1

    def _begin_part(self, width: int, height: int) -> None:
        path = self.folder / f"{self.name}.part.{len(self._parts) + 1}.mp4"
        self._part = self._av.open(str(path), "w", format="mp4", options={
            "movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags", "flush_packets": "1"})
        self._part.metadata.update(self._metadata())
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

    def export(self, path: str | Path) -> Path:
        """All frames so far as one plain mp4 at `path`; a take that runs goes on."""
        with self._lock:
            if self.path is not None:
                return Path(shutil.copyfile(self.path, path))
            self._end_part()
            if not self.frames:
                raise ValueError("nothing has been made yet: start the stream, then export")
            return self._join(Path(path))

    def _join(self, path: Path) -> Path:
        unfinished = path.with_name(f"{path.stem}.part.0.mp4")
        with self._av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart+use_metadata_tags"}) as out:
            out.metadata.update(self._metadata())
            stream, base = None, 0
            for part in self._parts:
                with self._av.open(str(part)) as source:
                    video = source.streams.video[0]
                    if stream is None:
                        stream = out.add_stream_from_template(video)
                        stream.time_base = video.time_base
                    tick = int(1 / (self.fps * video.time_base))
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

    def session(self) -> dict:
        """The take as one value: what it was made of, and every chunk's paths."""
        with self._lock:
            return read_session(self.folder / (f"{self.name}.json" if self.path else f"{self.name}.jsonl"))

    def close(self) -> Path | None:
        """NAME.mp4 and NAME.json, or nothing if no frame was shown. A second call does nothing."""
        with self._lock:
            if self._lines.closed:
                return self.path
            self._end_part()
            self._line({"shown": self.frames})
            self._lines.close()
            lines = self.folder / f"{self.name}.jsonl"
            if self.frames:
                whole = lines.with_suffix(".part.json")
                whole.write_text(json.dumps(read_session(lines)), encoding="utf-8")
                self.path = self._join(self.folder / f"{self.name}.mp4")
                os.replace(whole, self.folder / f"{self.name}.json")
            lines.unlink()
            for part in self._parts:
                part.unlink()
            return self.path


def read_session(path: str | Path) -> dict:
    """A take's .json, or the .jsonl of one that was cut off, whose last line may be torn."""
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix == ".json":
        return json.loads(text)
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    if not records:
        raise ValueError(f"{path} holds no session: its first line is missing or torn")
    session = {**records[0], "chunks": []}
    for record in records[1:]:
        if "chunk" in record:
            session["chunks"].append(record)
        else:
            session.update(record)
    return session
