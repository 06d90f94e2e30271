"""A kit: everything one model needs to turn tracks into video, and the one door to it, `load`."""
from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .carry import encoded, inpaint, moved
from .config import PRESETS, Geometry, Preset
from .cutter import Cutter, cut
from .dit import WIDE, DiT
from .finish import Finish, relit, sparing
from .grip import whole
from .guidance import Condition
from .host import Memo
from .motion import TrackHead
from .picture import picture
from .plate import Plate
from .text import TextEncoder, lights, stirs, unknown_words
from .tinyvae import TinyVAE
from .tracks import Tracks
from .weights import fetch, fill, first_line, read_weights, save_weights, write_whole

ROLES = ("student", "teacher")
PARTS = ("track_head", "vae", "text", "clip", "finish", "cutter", "plate")      # beside the transformer; text and on: if any
LATE = ("finish", "cutter", "plate")                 # their stages come last: a folder may hold none yet


@dataclass
class Kit:
    dit: DiT
    track_head: nn.Module
    vae: nn.Module
    text: nn.Module | None
    preset: Preset
    role: str = "student"
    clip: nn.Module | None = None               # pictures [B, 3, H, W] -> CLIP features, for models that look at them
    finish: Finish | None = None                # decoded frames, what tracks carry -> frames as they are shown
    cutter: Cutter | None = None                # a picture and a place -> what is there
    plate: Plate | None = None                  # a picture and what moves in it -> what is beneath, and how much is hidden

    @property
    def name(self) -> str:
        return self.preset.name

    @property
    def geometry(self) -> Geometry:
        return self.preset.geometry

    @property
    def device(self) -> torch.device:
        return self.dit.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.patch_embedding.weight.dtype

    @staticmethod
    def random(preset: str | Preset, seed: int = 0, role: str = "student") -> Kit:
        """Untrained weights at any size; the seed decides them."""
        preset = preset if isinstance(preset, Preset) else known(preset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Kit(*_modules(preset), preset, role, **late(preset)).eval()

    def modules(self) -> dict[str, nn.Module]:
        """By file name; the transformer under its role."""
        return {self.role: self.dit, **{part: getattr(self, part) for part in PARTS if getattr(self, part) is not None}}

    def eval(self) -> Kit:
        for module in self.modules().values():
            module.eval().requires_grad_(False)
        return self

    def to(self, device=None, dtype: torch.dtype | None = None) -> Kit:
        """Move in place. What is wide (`dit.WIDE`), track head, text, cutter and plate stay in float32; other convolutions
        become channels-last.

        The transformer changes its type part by part on the way, so that the device never holds it in float32.
        """
        for name, p in self.dit.named_parameters():
            p.data = p.data.to(device, torch.float32 if dtype is not None and any(w in name for w in WIDE) else dtype)
        for module in self.modules().values():
            module.to(device)
        if dtype is not None:
            for vae in (module for module in self.vae.modules() if isinstance(module, TinyVAE)):
                vae.encoder.to(dtype=dtype, memory_format=torch.channels_last)
                vae.decoder.to(dtype=dtype, memory_format=torch.channels_last)
            if self.finish is not None:
                self.finish.to(dtype=dtype, memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, L, text_dim]."""
        if self.text is None:
            raise ValueError(f"{self.name} has no text encoder of its own: give it umT5 features, or set kit.text to "
                             "something that maps a list of prompts to [B, L, text_dim]")
        return self.text(prompts)

    def texts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts, and as many times what stands for none (`Preset.null_prompt`), [B, L, text_dim] each."""
        nothing = self.preset.null_prompt
        if nothing is None:
            text = self.encode_text(prompts)
            return text, torch.zeros_like(text)
        return self.encode_text([*prompts, *[nothing] * len(prompts)]).chunk(2)     # a large encoder is opened once

    def pixels(self, image) -> Tensor:
        """A picture (see `picture`) at this kit's size, [B, 3, H, W] in [0, 1]."""
        return picture(image, self.geometry).to(self.device)

    @torch.no_grad()
    def encode_image(self, image) -> Tensor:
        """A picture (see `picture`) or [B, 3, H, W] -> [B, f, mask + image channels, h, w], the first frames of `image`.

        f is 1, but for image_frames="grey": there the latents of grey frames follow, until the picture is forgotten.
        """
        c = self.dit.config
        if not c.image_channels and c.image_frames != "clean":
            raise ValueError(f"{self.name} has no channels for a first frame: leave the image out")
        pixels = self.pixels(image)[:, None]
        if c.image_frames == "grey":
            grey = pixels.new_full((1, 1, 1, 1, 1), 0.5)
            after = self.geometry.pixel_frames(self.vae.forgets) - 1
            pixels = torch.cat([pixels, grey.expand(len(pixels), after, *pixels.shape[2:])], dim=1)
        latents = self.vae.encode(pixels)
        mask = latents.new_zeros(*latents.shape[:2], c.mask_channels, *latents.shape[3:])
        mask[:, 0] = 1
        return torch.cat([mask, latents], dim=2)

    @torch.no_grad()
    def decode(self, latents: Tensor, at_once: int = 3, moved: Tensor | None = None, prompts: list[str] | None = None
               ) -> Iterator[Tensor]:
        """Yield the frames [B, T, 3, H, W] of a clip, a few latent frames at a time: what it takes does not grow with it.

        moved: what tracks carry all along (`Kit.moved`), for models whose frames are finished; prompts: see `finished`.
        """
        past, made = None, 0
        for part in latents.split(at_once, dim=1):
            frames, past = self.vae.decode(part, past)
            here = slice(made, made + frames.shape[1])
            yield self.finished(frames, moved[:, here] if moved is not None else None, prompts)
            made = here.stop

    @torch.no_grad()
    def finished(self, frames: Tensor, moved: Tensor | None, prompts: list[str] | None = None) -> Tensor:
        """Decoded frames [B, T, 3, H, W] as they are shown: pulled to what tracks carry, where the kit has learned to.

        prompts: of the B clips; weather that they ask for is spared (`finish.sparing`), and what is carried is shown in the
        light that they ask for (`finish.relit`).
        """
        if self.finish is None or moved is None:
            return frames
        prompts = prompts or [""] * len(frames)
        each = lambda does, new, old: [a if does(prompt) else b for prompt, a, b in zip(prompts, new, old, strict=True)]
        if any(map(lights, prompts)):
            moved = torch.stack(each(lights, relit(frames, moved), moved))
        made = self.finish(frames, moved)
        if any(map(stirs, prompts)):
            made = torch.stack(each(stirs, sparing(made, frames, moved), made))
        return made

    @torch.no_grad()
    def encode_clip(self, image) -> Tensor | None:
        """A picture -> CLIP features [B, 257, clip_dim]; None without a picture, or where the transformer asks for none."""
        c = self.dit.config
        if image is None or not c.clip_dim or c.text_split:
            return None
        if self.clip is None:
            raise ValueError(f"{self.name} looks at pictures through CLIP, and none is here: put image_encoder/ beside its "
                             f"transformer, or set kit.clip to something that maps [B, 3, H, W] to [B, 257, {c.clip_dim}]")
        return self.clip(self.pixels(image))

    @torch.no_grad()
    def condition(self, prompts: list[str], tracks: Tracks | None = None, image=None, moved: Tensor | None = None
                  ) -> Condition:
        """What a whole clip is asked to follow. tracks over T = 1 + 4 (F - 1) pixel frames, in this kit's pixels; moved:
        `Kit.moved` of these, if it is known already."""
        text, null = self.texts(prompts)
        given = self.encode_image(image).expand(len(prompts), -1, -1, -1, -1) if image is not None else None
        motion = None
        if tracks is not None:
            tracks.check(batch=len(prompts))
            motion = self.motion(tracks, self.moved(tracks, image) if moved is None else moved)
        clip = self.encode_clip(image)
        return Condition(text, motion, given, null, clip.expand(len(prompts), -1, -1) if clip is not None else None)

    @torch.no_grad()
    def moved(self, tracks: Tracks | None, image, shown: bool | None = None, memo: Memo | None = None) -> Tensor | None:
        """The given picture as the tracks move it, [B, T, 4, H, W] (`carry.moved`); None: nothing is carried.

        shown: can any track be seen? By default it is asked, which waits for the device that the tracks are on. memo: of a
        stream.
        """
        if image is None or not self.preset.tracks.carry or tracks is None:
            return None
        if not (bool(tracks.visible.any()) if shown is None else shown):
            return None
        return moved(tracks.to(self.device), self.pixels(image).expand(len(tracks.xy), -1, -1, -1), self.geometry,
                     self.plate or inpaint, memo)

    @torch.no_grad()
    def motion(self, tracks: Tracks, moved: Tensor | None = None, start: bool = True) -> Tensor:
        """Tracks as the transformer reads them; moved: what they carry (`Kit.moved`). start: see `TrackHead`."""
        carried = encoded(moved, self.vae.encode_alone, self.geometry, start) if moved is not None else None
        return self.track_head(tracks.to(self.device), start, carried)

    def cut(self, picture: np.ndarray, place: complex) -> np.ndarray | None:
        """The thing at a place of a picture (`cutter.cut`), by what this kit has learned of things, if it has."""
        return cut(picture, place, self.cutter)

    def whole(self, tracks: Tracks, image, seed: int = 0) -> Tracks:
        """A hand's few tracks, and with them the things they take hold of in this picture, and the rest (`grip.whole`)."""
        return whole(tracks, self.pixels(image)[0].cpu(), self.geometry.stride, self.preset.tracks.max_id, seed=seed,
                     cut=self.cut)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that say nothing to this kit: a small one speaks its drawn world's, umT5 all."""
        return unknown_words(prompt) if isinstance(self.text, TextEncoder) else []

    def save(self, folder) -> Path:
        """config.json and one safetensors file per part, each written whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in self.modules().items():
            if isinstance(module, (DiT, TrackHead, TinyVAE, TextEncoder, Finish, Cutter, Plate)):  # others came from outside
                save_weights(module.state_dict(), folder / f"{name}.safetensors")
        preset = replace(self.preset, **{part: 0 for part in LATE if getattr(self, part) is None})  # one may lie there
        write_whole(folder / "config.json", json.dumps(preset.to_dict(), indent=2).encode() + b"\n")
        return folder

    @staticmethod
    def from_pretrained(repo: str, role: str = "student", *, revision: str | None = None, device=None,
                        dtype: torch.dtype | None = None) -> Kit:
        """A kit folder from the hub."""
        if not is_kit(fetch(repo, revision, ["config.json"])):                  # before gigabytes of something else come
            raise ValueError(f"{repo} holds no kit: give the path of its downloaded folder, or one of {', '.join(names())}")
        return _open(fetch(repo, revision, ["config.json", "*.safetensors", "README.md"]), role, device, dtype)

    def push_to_hub(self, repo: str, *, private: bool = False, message: str = "Upload kit") -> str:
        """Save, and upload the folder to a model repository (created if need be); needs `hf auth login`."""
        from huggingface_hub import HfApi
        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            try:
                api.create_repo(repo, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))
            except Exception as error:
                raise ConnectionError(f"{repo} could not be written on the hub ({first_line(error)}): check the network, "
                                      "the name (owner/name) and `hf auth login`") from error


def load(name: str | os.PathLike, role: str = "student", device=None, dtype: torch.dtype | None = None,
         revision: str | None = None, like: str | None = None, which: str | None = None) -> Kit:
    """The one door: a name ("tiny"), a kit folder, a hub repository ("owner/name"), a big preset, or a file or folder of
    Wan's family (see `wan.open_path`, also for `like` and `which`), as a `Kit`.

    role "student" or "teacher"; device: CUDA where there is one; dtype: what that device computes fastest; revision: a
    commit, branch or tag of what comes from the hub, also as "name@revision" (see `weights.fetch`).
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r} is not known: use {' or '.join(ROLES)}")
    name = os.fspath(name)
    if "@" in name and not Path(name).exists():
        name, revision = name.rsplit("@", 1)
    for folder in (Path(name), assets() / name):
        if is_kit(folder):
            return _open(folder, role, device, dtype)
    if holds_weights(Path(name)):
        from . import wan
        return wan.open_path(name, role, device=device, dtype=dtype, like=like, which=which)
    if name in PRESETS and PRESETS[name].text is None:
        from . import wan
        return wan.load(name, role, device=device, dtype=dtype, revision=revision)
    if name.count("/") == 1 and not Path(name).exists():
        from . import wan
        for (preset, its_role), (repo, _) in wan.SOURCES.items():
            if (repo, its_role) == (name, role):
                return wan.load(preset, role, device=device, dtype=dtype, revision=revision)
        return Kit.from_pretrained(name, role, revision=revision, device=device, dtype=dtype)
    raise FileNotFoundError(f"no kit called {name!r}: looked for a config.json in {Path(name)} and in {assets() / name}; "
                            f"give a kit folder, owner/name on the hub, or one of {', '.join(names())}")


def holds_weights(path: Path) -> bool:
    """A weights file, or a folder with some where Wan's family keeps them."""
    inside = (p for where in ("", "transformer", "models", "checkpoints", "dcp") for p in (path / where).glob("*"))
    return path.is_file() or any(p.suffix in (".safetensors", ".bin", ".pt", ".distcp") for p in inside)


def is_kit(folder: Path) -> bool:
    """Is there a config.json, and not that of a Wan transformer alone?"""
    config = folder / "config.json"
    return config.is_file() and not any(key in config.read_text() for key in ('"_class_name"', '"num_heads"', '"in_dim"'))


def names() -> list[str]:
    """Kits that `load` finds by name."""
    here = assets()
    own = sorted(p.parent.name for p in here.glob("*/config.json")) if here.is_dir() else []
    return [*own, *(name for name, preset in PRESETS.items() if preset.text is None)]


def known(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"no preset called {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def assets() -> Path:
    """Where the weights that travel with the package lie: $MSK_ASSETS, beside the package, or inside it."""
    if os.environ.get("MSK_ASSETS"):
        return Path(os.environ["MSK_ASSETS"])
    here = Path(__file__).resolve().parent
    return here / "assets" if (here / "assets").is_dir() else here.parent / "assets"


def device_of(asked=None) -> torch.device:
    """The device that is asked for, by default the best there is."""
    device = torch.device(asked) if asked is not None else best_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{device} was asked for, but torch {torch.__version__} sees no GPU here: use cpu, or see what "
                         "`msk doctor` says")
    return device


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device) -> torch.dtype:
    """What a device multiplies fastest with: bfloat16 on CUDA, and on a CPU that knows it; else float32, eight times faster
    there. CUDA before Ampere (T4, V100) takes float16: statistics, softmax, time and the path stay in float32 anyway."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def memory_gib() -> tuple[float, float]:
    """Of this machine: (free, total); 0 where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            rows = {row.split(":")[0]: int(row.split()[1]) / 2**20 for row in file}
        return rows["MemAvailable"], rows["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    if sys.platform != "win32" and "SC_PHYS_PAGES" in os.sysconf_names:
        return 0.0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return 0.0, 0.0


def cpu_has_bf16() -> bool:
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if all(asked):
        return any(ask() for ask in asked)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _modules(preset: Preset) -> tuple[DiT, nn.Module, nn.Module, nn.Module | None]:
    if (preset.vae.stride, preset.vae.time_stride) != (preset.geometry.stride, preset.geometry.time_stride):
        raise ValueError(f"the autoencoder of {preset.name} has strides {preset.vae.stride}, {preset.vae.time_stride}, but "
                         f"its geometry {preset.geometry.stride}, {preset.geometry.time_stride}: change one of them")
    g, (h, w), (_, ph, pw) = preset.geometry, preset.geometry.latent_size, preset.dit.patch
    if h % ph or w % pw:
        raise ValueError(f"{preset.name} at {g.height} x {g.width} pixels has {h} x {w} latent cells, which are no whole "
                         f"tokens of {ph} x {pw}: use multiples of {ph * g.stride} and {pw * g.stride} pixels")
    drawn = preset.tracks.width(preset.geometry.time_stride)
    if preset.dit.motion_channels not in (0, drawn):
        raise ValueError(f"the transformer of {preset.name} reads {preset.dit.motion_channels} channels of motion, but its "
                         f"track head makes {drawn}: change one of them")
    pull, carried = preset.dit.pull, preset.tracks
    if pull >= 0 and (pull, preset.dit.latent_channels) != (carried.channels, carried.carry):
        raise ValueError(f"the transformer of {preset.name} is pulled towards {preset.dit.latent_channels} motion channels "
                         f"from {pull} on, but its tracks carry {carried.carry} from {carried.channels} on: change one")
    return (DiT(preset.dit), TrackHead(preset.tracks, preset.geometry), TinyVAE(preset.vae),
            TextEncoder(preset.text) if preset.text else None)


def late(preset: Preset) -> dict[str, nn.Module]:
    """What a preset has of the parts that come LATE, untrained."""
    made = {"finish": Finish, "cutter": Cutter, "plate": Plate}
    return {part: made[part](getattr(preset, part)) for part in LATE if getattr(preset, part)}


def _open(folder: Path, role: str, device, dtype: torch.dtype | None) -> Kit:
    """A kit folder as a kit."""
    try:
        preset = Preset.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a kit ({first_line(error)})") from error
    if not (folder / f"{role}.safetensors").is_file():
        held = [r for r in ROLES if (folder / f"{r}.safetensors").is_file()]
        raise FileNotFoundError(f"{folder} holds no {role}" + (f", only a {' and a '.join(held)}: ask for that"
                                                               if held else " and no other transformer: train one"))
    with torch.random.fork_rng(devices=[]):
        here = {part: module for part, module in late(preset).items() if (folder / f"{part}.safetensors").is_file()}
        kit = Kit(*_modules(preset), preset, role, **here).eval()
    for name, module in kit.modules().items():
        fill(module, read_weights(folder / f"{name}.safetensors"), str(folder / f"{name}.safetensors"))
    device = device_of(device)
    return kit.to(device, dtype or best_dtype(device))
