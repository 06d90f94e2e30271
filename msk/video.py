"""Videos and pictures in and out: mp4 (PyAV), webp, gif and png folders (Pillow). What is written says it was generated."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .picture import read_picture

GENERATED = "AI-generated video, made with msk"
MAX_PIXELS = 64_000_000             # of one frame; beyond it a file is more likely a mistake or an attack
MAX_BYTES = 4 << 30                 # of one clip read whole, as float32
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
PICTURES = (".webp", ".gif")
_EXIF_DESCRIPTION = 0x010E


def write(path, frames: Tensor, fps: float, metadata: dict | None = None) -> Path:
    """Write frames [T, 3, H, W] (float [0, 1] or uint8) as .mp4, .webp, .gif or, without a suffix, a folder of png."""
    with Writer(path, fps, metadata) as writer:
        writer.add(frames)
    return writer.path


class Writer:
    """A video that grows while it is made; the file appears under its own name when it is whole.

    Until then it lies beside it as `name.part.suffix`. webp and gif are kept in memory until `close`.
    """

    def __init__(self, path, fps: float, metadata: dict | None = None, *, crf: int = 18, threads: int = 1):
        self.path = Path(path)
        self.fps = float(fps)
        self.frames = 0
        self.metadata = dict(metadata or {})
        if not 0 < self.fps <= 240:
            raise ValueError(f"{fps} frames per second: wanted a rate between 0 and 240")
        kind = self.path.suffix.lower()
        if kind not in (".mp4", "", *PICTURES):
            raise ValueError(f"cannot write {kind} videos: use .mp4, .webp, .gif, or a folder name for png pictures")
        if kind == ".mp4":
            _av()
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "clip.json").exists():
            raise ValueError(f"{self.path} is a folder with other things in it: name a new one, or an .mp4 file")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self._sink = {".mp4": _Mp4, "": _Folder}.get(kind, _Animation)(self._part, self.fps, crf, threads)
        self._closed = False

    def add(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W], or one [3, H, W]; float [0, 1] or uint8, the same size every time."""
        if self._closed:
            raise ValueError(f"{self.path} is closed: open a new Writer")
        for picture in to_bytes(frames):
            if not self.frames:
                self.size = picture.shape[1], picture.shape[0]
                self._sink.open(self.size, {**self.metadata, "fps": self.fps, "size": self.size})
            elif self.size != (picture.shape[1], picture.shape[0]):
                raise ValueError(f"a frame of {picture.shape[1]}x{picture.shape[0]} came after frames of "
                                 f"{self.size[0]}x{self.size[1]}: all frames of a video have one size")
            self._sink.add(picture)
            self.frames += 1

    def close(self) -> Path:
        """Finish the file and put it in its place; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            if not self.frames:
                self._part.unlink(missing_ok=True)
                raise ValueError(f"no frames came for {self.path}: nothing was written")
            self._sink.close()
            if self.path.is_dir() and self._part.is_dir():
                shutil.rmtree(self.path)
            os.replace(self._part, self.path)
        return self.path

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None or self.frames:         # what was made before an error is kept
            self.close()
        else:
            self._part.unlink(missing_ok=True)


def read(path, frames: int | None = None) -> tuple[Tensor, float]:
    """A video or animation, or a folder of pictures -> (frames [T, 3, H, W] float [0, 1], frames per second).

    frames: read at most so many. Raises ValueError for a file that is no video, or one too long to hold whole.
    """
    pictures, fps = [], 24.0
    for seconds, picture, fps in pictures_of(path):     # noqa: B007
        pictures.append(picture)
        if len(pictures) * picture.size * 4 > MAX_BYTES:
            raise ValueError(f"{path} is more than {MAX_BYTES >> 30} GiB when whole: read fewer frames "
                             f"(it takes {len(pictures) - 1} of this size)")
        if frames and len(pictures) == frames:
            break
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, fps


def pictures_of(path) -> Iterator[tuple[float, np.ndarray, float]]:
    """The frames of a video one by one, as (seconds, [H, W, 3] uint8, frames per second), without holding the rest."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix.lower() in PICTURES:
        yield from _read_animation(path)
    else:
        yield from _read_av(path)


def read_metadata(path) -> dict:
    """What `write` put beside the pixels: the run's metadata, fps, size; {} where the file says nothing."""
    path = Path(path)
    text = ""
    if path.is_dir():
        text = (path / "clip.json").read_text() if (path / "clip.json").exists() else ""
    elif path.suffix.lower() == ".webp":
        with Image.open(path) as picture:
            text = picture.getexif().get(_EXIF_DESCRIPTION, "")
    elif path.suffix.lower() == ".gif":
        with Image.open(path) as picture:
            text = picture.info.get("comment", b"").decode("utf8", "replace")
    else:
        with _opened(path) as container:
            text = container.metadata.get("msk", "")
    try:
        found = json.loads(text[text.index("{"):])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def to_bytes(frames: Tensor) -> np.ndarray:
    """Frames [T, 3, H, W] or [3, H, W], float [0, 1] or uint8 -> [T, H, W, 3] uint8, rounded to the nearest."""
    frames = torch.as_tensor(frames)
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames came as {list(frames.shape)}: wanted [T, 3, H, W]")
    if frames.dtype != torch.uint8:
        frames = (frames.detach().float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())


# ---- the four kinds of file -------------------------------------------------------------------------------------------

class _Mp4:
    def __init__(self, path, fps, crf, threads):
        self.container = _av().open(str(path), "w", format="mp4", options={"movflags": "faststart+use_metadata_tags"})
        self.rate, self.crf, self.threads = Fraction(fps).limit_denominator(1001), crf, threads

    def open(self, size, metadata):
        self.container.metadata.update(comment=GENERATED, msk=json.dumps(metadata))
        codec = next((name for name in ("libx264", "libopenh264", "mpeg4") if name in _av().codec.codecs_available), None)
        self.stream = self.container.add_stream(codec, rate=self.rate)
        self.stream.width, self.stream.height = (side + side % 2 for side in size)      # yuv420p wants even sides
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.thread_count = self.threads
        if codec == "libx264":
            self.stream.options = {"crf": str(self.crf), "preset": "veryfast"}
            self.stream.codec_context.gop_size = max(1, round(float(self.rate)))

    def add(self, picture):
        picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(_av().VideoFrame.from_ndarray(picture, format="rgb24")))

    def close(self):
        self.container.mux(self.stream.encode())
        self.container.close()


class _Animation:
    def __init__(self, path, fps, *_):
        self.path, self.fps, self.pictures = path, fps, []

    def open(self, size, metadata):
        self.metadata = metadata

    def add(self, picture):
        self.pictures.append(Image.fromarray(picture))

    def close(self):
        about = f"{GENERATED} {json.dumps({**self.metadata, 'frames': len(self.pictures)})}"
        unit = 10 if self.path.suffix.lower() == ".gif" else 1          # ms: what the format can count in
        ends = [round(1000 * k / self.fps / unit) * unit for k in range(len(self.pictures) + 1)]
        options = dict(save_all=True, append_images=self.pictures[1:], loop=0,
                       duration=[max(unit, b - a) for a, b in zip(ends, ends[1:])])
        if unit == 10:
            self.pictures[0].save(self.path, comment=about.encode(), **options)
        else:
            exif = Image.Exif()
            exif[_EXIF_DESCRIPTION] = about
            self.pictures[0].save(self.path, quality=85, method=2, exif=exif, **options)


class _Folder:
    def __init__(self, path, *_):
        self.path, self.count = path, 0

    def open(self, size, metadata):
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        (self.path / "clip.json").write_text(json.dumps({"comment": GENERATED, **metadata}))

    def add(self, picture):
        Image.fromarray(picture).save(self.path / f"{self.count:05d}.png")
        self.count += 1

    def close(self):
        pass


def _read_av(path):
    size = read_metadata(path).get("size")
    with _opened(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no pictures (audio only?): use a video file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.codec_context is None:
            raise ValueError(f"{path} cannot be decoded (its kind of video is not known here): is it whole?")
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"{path} is {stream.width}x{stream.height}: wanted at most {MAX_PIXELS // 10**6} megapixels")
        fps, count = float(stream.average_rate or stream.guessed_rate or 24), 0
        try:
            for frame in container.decode(stream):
                picture = frame.to_ndarray(format="rgb24")
                if size and (frame.width - size[0], frame.height - size[1]) in ((0, 1), (1, 0), (1, 1)):
                    picture = picture[:size[1], :size[0]]
                yield (frame.time if frame.time is not None else count / fps), picture, fps
                count += 1
        except _av().error.FFmpegError as error:
            if not count:
                raise ValueError(f"{path} cannot be decoded ({error}): is it whole?") from error
        if not count:
            raise ValueError(f"{path} holds no frames: is it whole?")


def _read_animation(path):
    try:
        about = read_metadata(path)
        with Image.open(path) as animation:
            if animation.width * animation.height > MAX_PIXELS:
                raise ValueError(f"{path} is {animation.width}x{animation.height}: wanted at most "
                                 f"{MAX_PIXELS // 10**6} megapixels")
            shown = []
            for k in range(getattr(animation, "n_frames", 1)):
                animation.seek(k)
                picture = np.array(animation.convert("RGB"))
                if (k + 1) * picture.nbytes > MAX_BYTES:
                    raise ValueError(f"{path} is more than {MAX_BYTES >> 30} GiB of pictures: use a shorter one, or an mp4")
                shown.append((picture, max(10, animation.info.get("duration", 42))))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an animation that can be read ({error}): use a webp or gif file") from error
    fps = about.get("fps") or 1000 / min(duration for _, duration in shown)
    now, count = 0.0, 0
    for k, (picture, duration) in enumerate(shown):     # equal neighbours are stored once and shown longer: unfold them
        now += duration
        until = about["frames"] if "frames" in about and k == len(shown) - 1 else round(now * fps / 1000)
        for _ in range(max(1, until - count)):
            yield count / fps, picture, fps
            count += 1


def _read_folder(path):
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise ValueError(f"{path} holds no pictures: wanted png or jpeg files, in the order of their names")
    fps = float(read_metadata(path).get("fps", 24))
    for k, file in enumerate(files):
        yield k / fps, np.array(read_picture(file)), fps


def _opened(path):
    try:
        return _av().open(str(path), "r", metadata_errors="replace")
    except _av().error.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read ({error}): use an mp4, webm, webp or gif file") from error


def _av():
    try:
        import av
    except ImportError as error:
        raise ImportError('mp4 files need PyAV: pip install "msk[demo]" (webp and gif work without it)') from error
    return av
