"""Sizes. Every number about a model stands here, in frozen dataclasses; what follows from others is computed."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from math import prod


@dataclass(frozen=True)
class Geometry:
    """Pixels, latents and tokens, and the rule of time: the first latent frame is one pixel frame, each later one four."""
    height: int                 # pixels
    width: int                  # pixels
    stride: int = 8             # pixels per latent cell, both ways
    time_stride: int = 4        # pixel frames per latent frame, after the first
    fps: int = 24               # pixel frames per second of playback

    def __post_init__(self):
        for name, size in (("height", self.height), ("width", self.width)):
            if size <= 0 or size % self.stride:
                raise ValueError(f"{name} {size} is not a whole number of {self.stride}-pixel cells: "
                                 f"use a multiple of {self.stride}")

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w): latent rows and columns."""
        return self.height // self.stride, self.width // self.stride

    def latent_frames(self, frames: int) -> int:
        """T pixel frames -> F latent frames; T must be 1 + time_stride * (F - 1)."""
        rest = (frames - 1) % self.time_stride
        if frames < 1 or rest:
            raise ValueError(f"{frames} frames do not fill whole latent frames (one, then {self.time_stride} each): "
                             f"use {max(1, frames - rest)} or {frames - rest + self.time_stride}")
        return 1 + (frames - 1) // self.time_stride

    def pixel_frames(self, latent_frames: int) -> int:
        """F latent frames from the start of a video -> T pixel frames."""
        return 1 + self.time_stride * (latent_frames - 1)

    def span(self, start: int, count: int) -> tuple[int, int]:
        """Pixel frames [from, to) that latent frames [start, start + count) stand for."""
        first = 0 if start == 0 else self.pixel_frames(start)
        return first, self.pixel_frames(start + count)


IMAGE_FRAMES = {
    "first": "in latent frame 0, zeros after",
    "every": "beside every latent frame",
    "grey": "in latent frame 0, then grey frames as the autoencoder sees them after it (Wan's image-to-video, WanTrack)",
    "clean": "it is latent frame 0, at noise level 0 (Wan 2.2 TI2V)",
}


@dataclass(frozen=True)
class DiTConfig:
    latent_channels: int
    motion_channels: int                                     # 0: the model takes no tracks
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    text_dim: int
    image_channels: int = 0                                  # 0: the model takes no first frame
    image_frames: str = "first"                              # where the given picture stands, see IMAGE_FRAMES
    mask_channels: int = 0                                   # Wan's I2V mask: 1 where the frame is given
    inputs: tuple[str, ...] = ("noise", "motion", "image")   # order at the patch embedding: noise, mask, image, motion
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)                  # latent frames, rows, columns
    eps: float = 1e-6
    gelu: str = "tanh"                                       # "tanh" is Wan's; "none" (erf) is six times cheaper on CPU
    clip_dim: int = 0                                        # width of CLIP features (1280); 0: no image cross-attention
    text_split: bool = False                                 # WanTrack's early teachers: the first 257 words go to the image
                                                             # cross-attention, and CLIP features nowhere
    pull: int = -1                                           # first motion channel of what the tracks carry, towards which
                                                             # the answer is pulled (see DiT.pulled); -1: it is not
    base_channels: int = 0                                   # inputs that a base model came with; new ones are summed apart,
                                                             # so that while they are zeros not a bit differs; 0: all

    @property
    def channels(self) -> dict[str, int]:
        """Of each possible input at the patch embedding."""
        return {"noise": self.latent_channels, "mask": self.mask_channels, "image": self.image_channels,
                "motion": self.motion_channels}

    @property
    def patch_volume(self) -> int:
        """Latent cells in a token."""
        return prod(self.patch)

    def token_grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Latent rows and columns -> those of tokens."""
        (h, w), (_, ph, pw) = latent_size, self.patch
        return h // ph, w // pw

    def __post_init__(self):
        if self.image_frames not in IMAGE_FRAMES:
            raise ValueError(f"image_frames {self.image_frames!r} is not known: use {', '.join(IMAGE_FRAMES)}")


@dataclass(frozen=True)
class TrackConfig:
    id_dim: int = 64
    max_id: int = 16384         # ids are drawn without replacement from [0, max_id)
    hidden: int = 64            # width between the two 1x1x1 convolutions; 0: one convolution
    channels: int = 16
    splat: str = "floor"        # "floor" (the paper), "round" (WanTrack), "bilinear" (sub-cell positions)
    bias: bool = False          # WanTrack's head has biases,
    linear: bool = False        # no activation between its convolutions,
    alone: bool = False         # and leaves the first three of frame 0's four places empty, where we repeat it
    carry: int = 0              # latent channels of the given picture as the tracks move it; 0: ids alone

    def width(self, time_stride: int) -> int:
        """Channels of the whole map: what the convolutions make of the ids, then what is carried (see carry.carry)."""
        return self.channels + (self.carry + time_stride if self.carry else 0)


@dataclass(frozen=True)
class VAEConfig:
    latent_channels: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    blocks: int | tuple[int, ...] = 3           # memory blocks in each decoder stage, or stage by stage
    encoder_blocks: int | tuple[int, ...] = -1  # the same for the encoder's; -1: as many as the decoder has
    times: tuple[int, ...] = (1, 2, 2)          # growth in time per decoder stage
    spaces: tuple[int, ...] = (2, 2, 2)         # growth in rows and columns per decoder stage
    fill_end: bool = False                      # TAEHV fills the last group of four pixel frames, we the first
    pixel_shuffle: int = 1                      # rows and columns folded into channels at the pixels' end

    @property
    def stages(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Memory blocks of each stage as data passes it: the encoder's, the decoder's."""
        def each(blocks, of):
            return (blocks,) * len(of) if isinstance(blocks, int) else tuple(blocks)
        decoder = each(self.blocks, self.times)
        return decoder[::-1] if self.encoder_blocks == -1 else each(self.encoder_blocks, self.times), decoder

    @property
    def stride(self) -> int:
        """Pixels per latent cell, both ways."""
        return prod(self.spaces) * self.pixel_shuffle

    @property
    def time_stride(self) -> int:
        """Pixel frames per latent frame, after the first."""
        return prod(self.times)


@dataclass(frozen=True)
class TextConfig:
    dim: int = 64
    length: int = 32            # tokens a prompt is cut or padded to
    layers: int = 1
    heads: int = 4


@dataclass(frozen=True)
class StreamConfig:
    chunk: int = 3              # latent frames made at once
    sink: int = 1               # chunks remembered for good; with a budget: latent frames
    window: int = 1             # latest chunks remembered; with a budget: what it leaves
    steps: int = 3              # noise levels visited in each chunk
    time_shift: float = 6.0     # see flow.shift
    first: int = 0              # latent frames in the first chunk; 0: as in every other
    budget: int = 0             # latent frames attended to at once, sinks and the chunk itself included; 0: count chunks
    places: str = "held"        # frames stand where they are "held" (sink, window, now), or in the video ("absolute")
    levels: tuple[float, ...] = ()      # the noise levels themselves, in place of steps and time_shift
    clean: bool = True          # a chunk is remembered as a pass at t = 0 sees it; else as its last denoising pass did
    whole_t: bool = False       # the transformer is told t in whole thousandths, as WanTrack's was
    silence: str = "zero"       # no tracks: a "zero" map, or that of "hidden" ones (heads with biases tell them apart)

    def __post_init__(self):
        for name, least in (("chunk", 1), ("sink", 0), ("window", 0), ("steps", 1), ("first", 0), ("budget", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} {value!r} came: use a whole number, {least} or more")
        if self.budget and self.budget < max(self.sink + self.chunk, self.first):
            raise ValueError(f"a budget of {self.budget} latent frames does not hold {self.sink} sinks and a chunk of "
                             f"{self.chunk}, or a first chunk of {self.first}: "
                             f"use {max(self.sink + self.chunk, self.first)} or more")
        if self.places not in ("held", "absolute") or (self.places == "absolute" and not self.budget):
            raise ValueError(f"places {self.places!r} with a budget of {self.budget}: use \"held\", or \"absolute\" with "
                             "a budget in latent frames")

    def span(self, index: int) -> tuple[int, int]:
        """Latent frames [from, to) of chunk `index`."""
        first = self.first or self.chunk
        return (first + (index - 1) * self.chunk, first + index * self.chunk) if index else (0, first)


@dataclass(frozen=True)
class Preset:
    """All sizes of one model, and where its weights come from."""
    name: str
    geometry: Geometry
    dit: DiTConfig
    tracks: TrackConfig
    vae: VAEConfig
    text: TextConfig | None = None              # None: umT5 features from outside
    stream: StreamConfig = field(default_factory=StreamConfig)
    text_scale: float = 3.0                     # w_t
    motion_scale: float = 1.5                   # w_m
    sample_steps: int = 50                      # the teacher's
    shifted_twice: bool = False                 # at diffusers' FlowMatchEuler's noise levels, see flow.twice_shifted
    solver: str = "euler"                       # the teacher's, see sample.SOLVERS
    null_prompt: str | None = ""                # what stands for no prompt; None: features of zeros
    finish: int = 0                             # channels of what gives decoded frames the picture's pixels back; 0: nothing
    cutter: int = 0                             # channels (eights) of what finds what a hand takes hold of; 0: colours do
    plate: int = 0                              # and of what knows what is beneath what moves; 0: an even patch
    licence: str = "Apache-2.0"
    repo: str = ""                              # on the hub; empty: weights travel with the package

    def to_dict(self) -> dict:
        return asdict(self)

    def sampled(self, steps: int | None = None, solver: str | None = None) -> Preset:
        """The same, its teacher in so many steps and by that solver, where they are given."""
        return replace(self, sample_steps=steps or self.sample_steps, solver=solver or self.solver)

    @staticmethod
    def from_dict(data: dict) -> Preset:
        return _build(Preset, data)


_NESTED = {"geometry": Geometry, "dit": DiTConfig, "tracks": TrackConfig, "vae": VAEConfig, "text": TextConfig,
           "stream": StreamConfig}


def _build(cls, data: dict):
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}: it takes {', '.join(sorted(known))}")
    values = {}
    for name, value in data.items():
        if cls is Preset and name in _NESTED and isinstance(value, dict):
            value = _build(_NESTED[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


_TAEHV = VAEConfig(fill_end=True)
_WAN_1_3B = dict(latent_channels=16, dim=1536, ffn_dim=8960, heads=12, layers=30, text_dim=4096)
_WAN_14B = dict(latent_channels=16, dim=5120, ffn_dim=13824, heads=40, layers=40, text_dim=4096)
_I2V = dict(image_channels=16, mask_channels=4, motion_channels=16, inputs=("noise", "mask", "image", "motion"),
            image_frames="grey", clip_dim=1280)
# What Wan puts in place of an empty prompt; guided models and their students were made with it.
_WAN_NULL = ("色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
             "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，"
             "畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走")
_WANTRACK = TrackConfig(max_id=100_000, hidden=16, splat="round", bias=True, linear=True, alone=True)
# Self Forcing glued WanTrack's odd frame to the first chunk; its app makes it alone (first=1).
_WANTRACK_STREAM = StreamConfig(first=4, sink=1, budget=6, steps=4, whole_t=True, silence="hidden")
_SELF_FORCING = StreamConfig(sink=0, budget=21, steps=4, time_shift=5.0)
_T2V = DiTConfig(motion_channels=16, image_channels=16, **_WAN_1_3B)      # with columns for tracks and a picture

PRESETS: dict[str, Preset] = {p.name: p for p in (
    Preset(
        "tiny", Geometry(128, 128, fps=24),
        DiTConfig(latent_channels=12, motion_channels=48, image_channels=12, mask_channels=1, image_frames="every",
                  inputs=("noise", "motion", "image", "mask"), dim=256, ffn_dim=1024, heads=4, layers=6, text_dim=64,
                  gelu="none", pull=32),
        TrackConfig(channels=32, hidden=64, splat="bilinear", carry=12),
        VAEConfig(latent_channels=12, encoder_width=32, decoder_widths=(96, 64, 32, 32), blocks=(0, 0, 2),
                  encoder_blocks=0, spaces=(2, 2, 1), pixel_shuffle=2),
        TextConfig(length=24), StreamConfig(time_shift=3.0, clean=False),
        text_scale=3., motion_scale=.5, sample_steps=12, finish=32, cutter=24, plate=24),
    Preset(
        "toy", Geometry(32, 32, fps=24),       # seconds to train, for tests and for "by hand" cells
        DiTConfig(latent_channels=4, motion_channels=16, image_channels=4, dim=48, ffn_dim=96, heads=2, layers=2,
                  text_dim=16, freq_dim=32, gelu="none"),
        TrackConfig(channels=8, hidden=16, splat="bilinear", carry=4),
        VAEConfig(latent_channels=4, encoder_width=8, decoder_widths=(16, 16, 8, 8), blocks=1, spaces=(2, 2, 1),
                  pixel_shuffle=2),
        TextConfig(dim=16, length=16, heads=2), sample_steps=6, finish=8, cutter=8, plate=8),
    Preset(
        "wan2.1-1.3b", Geometry(480, 832, fps=16),
        _T2V, TrackConfig(), _TAEHV, null_prompt=_WAN_NULL, repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    Preset(
        "wan2.1-i2v-14b", Geometry(480, 832, fps=16), DiTConfig(**_I2V, **_WAN_14B), TrackConfig(), _TAEHV,
        null_prompt=_WAN_NULL, repo="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    Preset(
        "fun-control-1.3b", Geometry(480, 832, fps=16),         # its control columns are the motion columns
        DiTConfig(motion_channels=16, image_channels=16, clip_dim=1280, **_WAN_1_3B), TrackConfig(), _TAEHV,
        null_prompt=_WAN_NULL, repo="alibaba-pai/Wan2.1-Fun-1.3B-Control"),
    Preset(
        "fun-inp-1.3b", Geometry(480, 832, fps=16), DiTConfig(**_I2V, **_WAN_1_3B), TrackConfig(), _TAEHV,
        null_prompt=_WAN_NULL, repo="alibaba-pai/Wan2.1-Fun-1.3B-InP"),
    Preset(
        "self-forcing-1.3b", Geometry(480, 832, fps=16), _T2V, TrackConfig(), _TAEHV, stream=_SELF_FORCING,
        null_prompt=_WAN_NULL, repo="gdhe17/Self-Forcing"),
    Preset(
        "causal-forcing-1.3b", Geometry(480, 832, fps=16), _T2V, TrackConfig(), _TAEHV, stream=_SELF_FORCING,
        null_prompt=_WAN_NULL, repo="zhuhz22/Causal-Forcing"),
    Preset(
        "longlive-1.3b", Geometry(480, 832, fps=16), _T2V, TrackConfig(), _TAEHV,
        stream=StreamConfig(sink=3, budget=12, steps=4, time_shift=5.0, places="absolute"), null_prompt=_WAN_NULL,
        repo="Efficient-Large-Model/LongLive-1.3B"),
    Preset(
        "wantrack-1.3b", Geometry(480, 832, fps=24), DiTConfig(**_I2V, **_WAN_1_3B), _WANTRACK, _TAEHV,
        stream=_WANTRACK_STREAM, sample_steps=30, shifted_twice=True, null_prompt=None, licence="unstated",
        repo="H1yori233/Track-v0"),
    Preset(
        "wantrack-1.3b-early", Geometry(480, 832, fps=24), DiTConfig(**_I2V, **_WAN_1_3B, text_split=True), _WANTRACK,
        _TAEHV, stream=_WANTRACK_STREAM, sample_steps=30, shifted_twice=True, null_prompt=None, licence="unstated",
        repo="noctuashap/TrackWan-1.3B-I2V-synth-stage2"),
    Preset(
        "wantrack-14b", Geometry(720, 1280, fps=24), DiTConfig(**_I2V, **_WAN_14B), _WANTRACK, _TAEHV,
        stream=_WANTRACK_STREAM, sample_steps=30, shifted_twice=True, null_prompt=None, licence="unstated"),
    Preset(
        "wan2.2-5b", Geometry(704, 1280, stride=16, fps=24),
        DiTConfig(latent_channels=48, motion_channels=48, dim=3072, ffn_dim=14336, heads=24, layers=30, text_dim=4096,
                  inputs=("noise", "motion"), image_frames="clean"), TrackConfig(channels=48),
        VAEConfig(latent_channels=48, fill_end=True, pixel_shuffle=2), null_prompt=_WAN_NULL,
        repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
)}
