"""Weights as files: written whole or not at all, read with one sentence on what is wrong, fetched once from the hub."""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import Tensor, nn


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then swap in: a reader never sees half a file, an interrupt leaves the old one."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def save_weights(state: dict[str, Tensor], path) -> None:
    """A state dict as one safetensors file."""
    from safetensors.torch import save
    write_whole(Path(path), save({name: x.detach().cpu().contiguous() for name, x in state.items()}))


def read_weights(path) -> dict[str, Tensor]:
    """A safetensors file as a state dict, or one sentence on what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: the kit is not complete, fetch or train it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) is no whole safetensors file ({first_line(error)}): "
                         "it was cut off or is something else, fetch it again") from error


def fill(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load every weight of `module` from `state`: nothing missing, nothing left over, no shape bent."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    bent = [f"{k} {list(state[k].shape)} for {list(own[k].shape)}" for k in own.keys() & state.keys()
            if state[k].shape != own[k].shape]
    if missing or unexpected or bent:
        said = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
                         for what, keys in (("missing", missing), ("unknown", unexpected),
                                            ("of another shape", sorted(bent))) if keys)
        error = ValueError(f"{source} does not fit this model: {said}. Use the config.json that came with the weights")
        for what, keys in (("missing", missing), ("unknown", unexpected), ("of another shape", sorted(bent))):
            error.add_note(f"{what}: {', '.join(keys) or 'none'}")              # all of them, below the traceback
        raise error
    module.load_state_dict(state, assign=any(x.is_meta for x in own.values()))


def fetch(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Files of a hub repository, downloaded once."""
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        at = f" at {revision}" if revision else ""
        raise ConnectionError(f"{repo}{at} could not be fetched from the hub ({first_line(error)}): check the network and "
                              "the name, or give the path of a folder that holds it") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
