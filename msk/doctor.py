"""What is here and what is missing: machine, precision, attention, threads, memory, extras, models, browser."""
from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from .attention import backend
from .config import PRESETS, DiTConfig, Preset
from .kit import assets, best_device, best_dtype, memory_gib
from .weights import cached

EXTRAS = {          # extra -> what must be importable for it, and what it is for
    "demo": (("gradio", "websockets", "av", "cv2"), "the live canvas, mp4 files"),
    "notebook": (("anywidget", "ipywidgets", "jupyterlab", "matplotlib"), "the notebooks"),
    "wan": (("diffusers", "transformers", "accelerate"), "Wan-size models"),
    "metrics": (("torchmetrics", "cv2", "scipy"), "evaluation, the flow tracker"),
    "flash": (("flash_attn",), "FlashAttention on a GPU"),
    "dev": (("pytest", "xdist", "ruff", "playwright", "jupytext", "nbmake"), "the tests"),
}
UMT5_GIB = 10.6     # umT5-XXL in bf16, which Wan-size models read their prompts with
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Report:
    """Facts as a dict, and as lines to read; `missing` lists what one would have to do. short: four lines of them."""
    facts: dict
    missing: list[str] = field(default_factory=list)
    short: bool = False

    def to_dict(self) -> dict:
        return {**self.facts, "missing": self.missing}

    def __str__(self) -> str:
        lines = self._few() if self.short else self._all()
        return "\n".join(f"{name:<10} {text}" for name, text in lines)

    __repr__ = __str__

    def _few(self) -> list[tuple[str, str]]:
        f = self.facts
        todo = "; ".join(line.split("   #")[0] for line in self.missing)
        return [("msk", f"{f['msk']} on Python {f['python']}, torch {f['torch']}"),
                ("device", f"{f['device']} ({f['device_name']}), {f['dtype']}"),
                ("threads", f"{f['threads']} of {f['cores']} cores"),
                ("missing", f"{todo}   (more: msk.doctor())" if todo else "nothing")]

    def _all(self) -> list[tuple[str, str]]:
        f = self.facts
        lines = [("msk", f"{f['msk']} on Python {f['python']}, torch {f['torch']}, {f['platform']}"),
                 ("device", f"{f['device']} ({f['device_name']})"),
                 ("dtype", f"{f['dtype']}: {f['dtype_reason']}"),
                 ("attention", f["attention"]),
                 ("threads", f"{f['threads']} of {f['cores']} cores, waiting {f['wait_policy']}"),
                 ("memory", _of(f["memory_free_gib"], f["memory_gib"]) +
                  (f", GPU {_of(f['gpu_free_gib'], f['gpu_gib'])}" if "gpu_gib" in f else "")),
                 ("disk", f"{f['disk_free_gib']:.0f} GiB free"),
                 ("browser", f["browser"] or "none found")]
        for group in ("extras", "models"):
            lines += [(group if k == 0 else "", f"{'+' if about['here'] else '-'} {name:<14} {about['about']}")
                      for k, (name, about) in enumerate(f[group].items())]
        return lines + [("to do" if k == 0 else "", line) for k, line in enumerate(self.missing)]


def doctor(short: bool = False) -> Report:
    """Examine this machine; nothing is downloaded, started or changed. short: what a notebook needs to say of it, without
    what the models would need, whose counting takes seconds."""
    device = best_device()
    dtype = best_dtype(device)
    memory_free, memory = memory_gib()
    facts = dict(
        msk=_version("msk"), python=platform.python_version(), torch=torch.__version__,
        platform=f"{platform.system()} {platform.machine()}", device=str(device), device_name=_device_name(device),
        dtype=str(dtype).removeprefix("torch."), dtype_reason=_dtype_reason(device, dtype), attention=backend(device, dtype),
        threads=torch.get_num_threads(), cores=cores(), wait_policy=os.environ.get("OMP_WAIT_POLICY", "unset").lower(),
        memory_gib=memory, memory_free_gib=memory_free, disk_free_gib=shutil.disk_usage(Path.cwd()).free / 2**30,
        browser=next((found for name in BROWSERS if (found := shutil.which(name))), ""))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts |= dict(gpu_gib=total / 2**30, gpu_free_gib=free / 2**30)
    facts["extras"] = {name: _extra(name) for name in EXTRAS}
    facts["models"] = {} if short else {name: _model(name) for name in PRESETS if name != "toy"}

    missing = [f"{about['install']}   # {EXTRAS[name][1]}" for name, about in facts["extras"].items()
               if not about["here"] and (name != "flash" or device.type == "cuda")]
    if not _kept("tiny")[1]:
        missing.append("msk train all --preset tiny   # the tiny model's weights are not here")
    if facts["wait_policy"] != "passive" and device.type == "cpu":
        say = "set" if sys.platform == "win32" else "export"
        missing.append(f"{say} OMP_WAIT_POLICY=PASSIVE   # spinning threads stall as soon as a browser runs beside them")
    if not facts["browser"] and not short:
        how = "apt-get install chromium" if sys.platform == "linux" else "install Chrome or Chromium"
        missing.append(f"{how}   # the browser test of the canvas")
    return Report(facts, missing, short)


def _extra(name: str) -> dict:
    absent = [module for module in EXTRAS[name][0] if find_spec(module) is None]
    install = "pip install flash-attn --no-build-isolation" if name == "flash" else f'pip install "msk[{name}]"'
    about = EXTRAS[name][1] + (f" (missing: {', '.join(absent)})" if absent else "")
    return dict(here=not absent, missing=absent, install=install, about=about)


def _kept(name: str) -> tuple[Preset, Path | None]:
    """The preset, as its weights have it where they are here, and their folder."""
    preset, folder = PRESETS[name], assets() / name
    if (folder / "config.json").is_file():
        return Preset.from_dict(json.loads((folder / "config.json").read_text())), folder
    return preset, cached(preset.repo)


def _model(name: str) -> dict:
    preset, folder = _kept(name)
    parameters = count(preset.dit)
    size = 2 * parameters / 2**30
    g = preset.geometry
    about = f"{g.height}x{g.width}, {parameters / 1e6:,.1f}M parameters"
    if preset.text is None:
        about += f", wants {size:.1f} GiB for the transformer in bf16 and {UMT5_GIB} GiB for umT5"
        if not folder:
            about += f"; download {preset.repo}" if preset.repo else "; give the path of its weights to msk.load"
    elif not folder:
        about += "; no weights here"
    return dict(here=bool(folder), folder=str(folder or ""), parameters=parameters, weights_gib=size, repo=preset.repo,
                licence=preset.licence, about=about)


@cache
def count(config: DiTConfig) -> int:
    """Parameters of a transformer, seen on one block without memory: they are all alike."""
    from .dit import DiT
    with torch.device("meta"):
        dit = DiT(replace(config, layers=1))
    block = sum(p.numel() for p in dit.blocks.parameters())
    return sum(p.numel() for p in dit.parameters()) + (config.layers - 1) * block


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _dtype_reason(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return "this CPU multiplies bf16 natively" if dtype is torch.bfloat16 else "this CPU has no native bf16"
    return "native on this GPU" if dtype is torch.bfloat16 else f"what {device.type} does well"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of(free: float, total: float) -> str:
    return f"{free:.1f} of {total:.1f} GiB free" if free else f"{total:.1f} GiB" if total else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed (run from its folder)"
