"""The one rollout: the demo plays it, Self Forcing trains through it."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from time import perf_counter

import torch
from torch import Tensor

from .cache import ChunkCache, FrameCache
from .config import StreamConfig
from .flow import add_noise, fewer, schedule, to_x0
from .guidance import Guided
from .host import Memo, send
from .tracks import Tracks


def draw(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gaussian noise like x, drawn on the generator's own device, so that a seed means the same everywhere."""
    device = generator.device if generator is not None else x.device
    return send(torch.randn(x.shape, generator=generator, device=device), x.device).to(x.dtype)


def denoise(dit, noise: Tensor, text, motion: Tensor | None, image: Tensor | None, past, sigmas: list[float],
            grad_at: int | None = None, generator: torch.Generator | None = None, whole_t: bool = False,
            keys: list | None = None, **where) -> Tensor:
    """Few-step sampling of one chunk [B, chunk, C, h, w], with fresh noise between steps.

    With `grad_at`, stop at that step and keep only its graph; without, no graph at all. keys: a list that takes the keys and
    values of the last step. where: `places`, if absolute.
    """
    x = noise
    for i, sigma in enumerate(sigmas):
        t = x.new_full(x.shape[:2], sigma)
        told = t if not whole_t else torch.full_like(t, int(1000 * sigma + 1e-6) / 1000, dtype=torch.float64)
        with torch.set_grad_enabled(i == grad_at):
            if keys is not None and i + 1 == len(sigmas):
                where = where | {"keys": keys}
            x0 = to_x0(x, dit(x, told, text, motion, image, past=past, **where), t)
        if i == grad_at or i + 1 == len(sigmas):
            return x0
        x = add_noise(x0, draw(x0, generator), t.new_full(t.shape, sigmas[i + 1]))


class Roll:
    """Chunk after chunk: denoise, hand out, and only then (`settle`) remember the clean chunk for the ones to come."""

    def __init__(self, dit, text, config: StreamConfig):
        self.dit, self.text, self.config = dit, text, config
        self.guided = dit                       # what denoises: the same, or `Guided`
        self.cache = FrameCache(config.sink, config.budget) if config.budget else ChunkCache(config.sink, config.window)
        self.sigmas = list(config.levels) or schedule(config.steps, config.time_shift)
        self._fresh = None                      # the latest chunk, handed out but not yet remembered
        self._clean: list[tuple] = []           # what the cache was made from: (piece, x0, motion, image) of each chunk
        self._weighed: deque[list[tuple]] = deque(maxlen=16)        # what sinks were made from, before each anchor

    def next(self, noise: Tensor, motion: Tensor | None, image: Tensor | None, grad_at: int | None = None,
             generator: torch.Generator | None = None, steps: int | None = None) -> Tensor:
        """steps: of the noise levels, if not all (`flow.fewer`)."""
        self.settle()
        past, where = self._before(noise)
        keys, sigmas = None if self.config.clean else [], fewer(self.sigmas, len(self.sigmas) if steps is None else steps)
        x0 = denoise(self.guided, noise, self.text, motion, image, past, sigmas, grad_at, generator, self.config.whole_t,
                     keys, **where)
        self._fresh = x0.detach(), motion, image, past, where, keys
        return x0

    def settle(self) -> bool:
        """The clean pass at t = 0, if there is one; False if there is nothing new to remember."""
        if self._fresh is None:
            return False
        self._remember(*self._fresh)
        self._fresh = None
        return True

    def say(self, text) -> None:
        """Go on with another text: what is remembered is read anew with it, chunk after chunk from the clean latents."""
        self.settle()
        self.text, clean, self._clean, made = text, self._clean, [], self.cache.made
        for i, (piece, x0, motion, image) in enumerate(clean):
            if i == 0 or piece != self.cache.made:              # behind a gap nothing but the sinks is seen
                self.cache.forget(piece, sinks=i == 0)
            past, where = self._before(x0)
            self._remember(x0, motion, image, [] if past is None and piece else past, where)
        self.cache.made = made                                  # without a window, more than was read anew

    def anchor(self, on: bool = True) -> None:
        """The latest chunk becomes the sink: what the video looks like now is what it will be held to. on=False takes the
        last anchor back: the sink from before is read anew, and then what is remembered since, as with another text."""
        self.settle()
        if on and self._clean:
            self._weighed.append(self._among(self.cache.held()[0]))
            self.cache.anchor(*self._pieces(self._clean[-1][1]))
            self._clean = self._clean[-1:]
        elif not on and self._weighed:
            old = self._weighed.pop()
            self.cache.loosen()
            self._clean = old + [c for c in self._among(self.cache.held()[1]) if not old or c[0] > old[-1][0]]
            self.say(self.text)

    def resize(self, config: StreamConfig) -> None:
        """From the next chunk on, remember as this config says."""
        self.settle()
        self.config = config
        self.cache.resize(config.sink, config.budget or config.window)
        self._clean = self._among(set().union(*self.cache.held()))

    def _among(self, pieces) -> list[tuple]:
        """The clean chunks that any of these pieces belong to."""
        return [c for c in self._clean if set(pieces) & set(range(c[0], c[0] + sum(self._pieces(c[1]) or [1])))]

    def _pieces(self, x0: Tensor) -> list[int]:
        return [x0.shape[1]] if self.config.budget else []      # the cache counts in frames, or in chunks

    def _before(self, x0: Tensor) -> tuple:
        """What this chunk may see, and where it stands."""
        new = self._pieces(x0)
        where = {"places": self.cache.places(*new)} if self.config.places == "absolute" else {}
        past = self.cache.past(*new)
        return past and self.dit.placed(past, x0.shape[-2:], **where), where

    @torch.no_grad()
    def _remember(self, x0: Tensor, motion, image, past, where: dict, keys: list | None = None) -> None:
        new, piece = self._pieces(x0), self.cache.made
        kvs = keys or self.dit.remember(x0, self.text, motion, image, past=past, **where)
        self.cache.push([tuple(x.detach() for x in pair) for pair in kvs], *new)
        self._clean.append((piece, x0, motion, image))
        self._clean = self._among(set().union(*self.cache.held()))


def given(dit, image: Tensor | None, now: slice) -> Tensor | None:
    """The part of `image` that a chunk is shown: its own frames, or the picture itself where the model always sees it.

    With "grey", the last of the given frames again and again: there the autoencoder has forgotten the picture.
    """
    if image is None or dit.config.image_frames == "every":
        return image
    if dit.config.image_frames == "grey":
        return torch.stack([image[:, min(k, image.shape[1] - 1)] for k in range(now.start, now.stop)], dim=1)
    return image[:, now] if now.start < image.shape[1] else None


def rollout(dit, noise: Tensor, text, motion: Tensor | None, image: Tensor | None, config: StreamConfig,
            grad_at: int | None = None, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield clean chunks [B, chunk, C, h, w], each made from noise and from the chunks before it.

    noise [B, F, C, h, w]; motion [B, F, Cm, h, w]; image [B, f, Ci, h, w], frame 0 the given picture (f <= F).
    """
    roll, index = Roll(dit, text, config), 0
    while (now := slice(*config.span(index))).start < noise.shape[1]:
        index += 1
        now = slice(now.start, min(now.stop, noise.shape[1]))
        drawn = motion[:, now] if motion is not None else None
        yield roll.next(noise[:, now], drawn, given(dit, image, now), grad_at, generator)


class Stream:
    """A video without end, a chunk at a time, steered by tracks.

        stream = Stream(kit, "a red fish in the sea", image)
        frames = stream.step(tracks)                # tracks over the next `stream.frames_wanted` pixel frames
    """

    def __init__(self, kit, prompt: str = "", image=None, *, seed: int = 0, config: StreamConfig | None = None):
        self.kit, self.config = kit, config or kit.preset.stream
        self.prompt, self.image, self.seed = prompt, image, seed
        self._scales = 0.0, 0.0
        self.reset(prompt, image, seed)

    def reset(self, prompt: str | None = None, image=None, seed: int | None = None) -> None:
        """Begin a new video; what is not given stays as it was."""
        if image is not None or not hasattr(self, "_picture"):
            self.image = image
            self._pixels = self.kit.pixels(image) if image is not None else None
            self._picture = self.kit.encode_image(self._pixels) if image is not None else None
            self._clip = self.kit.encode_clip(image)
        self.prompt = self.prompt if prompt is None else prompt
        self.seed = self.seed if seed is None else seed
        self.index, self._took = 0, {}
        self._roll = Roll(self.kit.dit, self._read(self.prompt), self.config)
        self._roll.guided = self._guided(self._scales)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._seen = None                       # the decoder's past
        self._memo = Memo()                     # of where tracks began, which they go on to say
        self._origins: dict[int, Tensor] = {}   # by id: where in the picture each track began

    def say(self, prompt: str) -> None:
        """From the next chunk on, follow another prompt; what is remembered is read anew with it."""
        self._roll.say(self._read(prompt))
        self.prompt = prompt

    def anchor(self, on: bool = True) -> None:
        """Make the latest chunk the sink: from here on the video is held to how it looks now, not to how it began.
        on=False: take the last anchor back (of the latest 16), and hold it to what it was held to before."""
        self._roll.anchor(on)

    def tune(self, sink: int | None = None, window: int | None = None, text_scale: float | None = None,
             motion_scale: float | None = None) -> None:
        """From the next chunk on: what is remembered (with a budget, `window` is the budget), and guidance on top of what
        the student learned. What is not given stays as it is; after a ValueError all does.

        Scales are those of `joint_guidance`: where they sum to 0 or 1 nothing is added, for one pass a step; else there is
        one more for each that is not 0, but none for motion where a chunk has no tracks.
        """
        config, scales = self.tuned(sink, window, text_scale, motion_scale)
        guided = self._guided(scales)                   # reads the null prompt, which may fail
        if config != self.config:
            self._roll.resize(config)
        self.config, self._scales, self._roll.guided = config, scales, guided

    def tuned(self, sink: int | None = None, window: int | None = None, text_scale: float | None = None,
              motion_scale: float | None = None) -> tuple[StreamConfig, tuple[float, float]]:
        """What `tune` would play with; a ValueError where that cannot be. Nothing changes."""
        size = "budget" if self.config.budget else "window"
        asked = {"sink": sink, size: window}
        config = replace(self.config, **{name: value for name, value in asked.items() if value is not None})
        if size == "budget" and not config.budget:
            raise ValueError("a budget of 0 latent frames came, which would hold no chunk: use "
                             f"{max(config.sink + config.chunk, config.first)} or more")
        scales = tuple(old if new is None else new for new, old in zip((text_scale, motion_scale), self._scales))
        if not all(0 <= scale < inf for scale in scales):
            raise ValueError(f"guidance of {scales[0]} for text and {scales[1]} for motion came: use numbers from 0 on")
        return config, scales

    @property
    def tuning(self) -> dict:
        """What `tune` can change, as it is."""
        text_scale, motion_scale = self._scales
        return {"sink": self.config.sink, "window": self.config.budget or self.config.window, "text_scale": text_scale,
                "motion_scale": motion_scale}

    @torch.no_grad()
    def _guided(self, scales: tuple[float, float]):
        """What denoises: the transformer, or it under guidance."""
        if not any(scales):
            return self.kit.dit
        null = self.kit.texts([self.prompt])[1]
        return Guided(self.kit.dit, self.kit.dit.read(null, self._clip), *scales)

    @torch.no_grad()
    def _read(self, prompt: str):
        return self.kit.dit.read(self.kit.encode_text([prompt]), self._clip)

    @property
    def memory(self) -> dict[str, list[int]]:
        """Pieces of the video (chunks; with a budget, latent frames) that the next chunk sees: {"sink", "window"}."""
        return dict(zip(("sink", "window"), self._roll.cache.held()))

    @property
    def steps(self) -> int:
        """Denoising steps of a chunk, unless fewer are asked for."""
        return len(self._roll.sigmas)

    @property
    def frames_wanted(self) -> int:
        """Pixel frames that the next step makes, and that its tracks must cover."""
        start, stop = self.config.span(self.index)
        first, last = self.kit.geometry.span(start, stop - start)
        return last - first

    @torch.no_grad()
    def step(self, tracks: Tracks | None = None, steps: int | None = None) -> Tensor:
        """Make the next chunk: frames [B, T, 3, H, W] float in [0, 1], T = `frames_wanted`.

        tracks: None asks for nothing. steps: denoising steps, where there is no time for all.
        """
        kit, wanted = self.kit, self.frames_wanted
        if tracks is not None:
            tracks.check(frames=wanted, batch=1)
        elif self.config.silence == "hidden":
            tracks = Tracks.empty(1, wanted)
        self._settle()
        began = self._now()
        shown = tracks is not None and bool(tracks.visible.any())       # asked where they come from; then sent, once
        tracks = self._told(tracks).to(kit.device) if tracks is not None else None
        moved = kit.moved(tracks, self._pixels, shown, self._memo)
        motion = kit.motion(tracks, moved, self.index == 0) if tracks is not None else None
        (h, w), channels = kit.geometry.latent_size, kit.dit.config.latent_channels
        start, stop = self.config.span(self.index)
        noise = draw(torch.empty(1, stop - start, channels, h, w, device=kit.device), self._generator)
        image = given(kit.dit, self._picture, slice(start, stop))
        x0 = self._roll.next(noise, motion, image, generator=self._generator, steps=steps)
        made = self._now()
        frames, self._seen = kit.vae.decode(x0, self._seen)
        frames = kit.finished(frames, moved, [self.prompt])
        self._took |= {"denoise": (began, made), "decode": (made, self._now())}
        self.index += 1
        return frames

    def _told(self, tracks: Tracks) -> Tracks:
        """The tracks with their origins: as given, else as the first chunk had them."""
        ids, origin = tracks.ids[0].tolist(), tracks.origins()[0].cpu()
        if self.index == 0:
            self._origins = dict(zip(ids, origin))
        elif tracks.origin is None:
            unknown = origin.new_full((2,), torch.nan)
            origin = torch.stack([self._origins.get(i, unknown) for i in ids]) if ids else origin
        return replace(tracks, origin=origin[None].to(tracks.xy.device))

    @torch.no_grad()
    def settle(self) -> None:
        """Remember the latest chunk now, while nobody waits; else the next step does it first.

        Returns when a GPU has done it, too: who reads the hand only then reads it as late as can be.
        """
        self._settle()
        if self.kit.device.type == "cuda":
            torch.cuda.synchronize(self.kit.device)

    def _settle(self) -> None:
        began = self._now()
        if self._roll.settle():
            self._took["clean"] = began, self._now()

    def _now(self):
        """A moment of the device's own time: on a GPU, when what was asked so far is done. Nobody waits for it here."""
        if self.kit.device.type != "cuda":
            return perf_counter()
        moment = torch.cuda.Event(enable_timing=True)
        moment.record(torch.cuda.current_stream(self.kit.device))
        return moment

    @property
    def stats(self) -> dict[str, float]:
        """What was done last took of the device's time: {"denoise_ms", "decode_ms", "clean_ms"}, those there are; until a
        chunk has settled, the last is of the one before."""
        return {f"{name}_ms": elapsed(*ends) for name, ends in self._took.items()}


def elapsed(began, ended) -> float:
    """Milliseconds between two moments of `Stream._now`; waits for the later one."""
    if isinstance(began, float):
        return 1000 * (ended - began)
    ended.synchronize()
    return began.elapsed_time(ended)
