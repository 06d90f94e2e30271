"""Weights as files: written whole or not at all, read with one sentence on what is wrong, fetched once from the hub."""
from __future__ import annotations

import os
import shutil
import sys
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
    """Files of a hub repository, downloaded once; a download that was cut off goes on where it was.

    revision: a commit, branch or tag. Without one a repository stays at the commit that came first, so that what ran
    yesterday runs today; "main" asks for the newest. What is to come and the room for it are said before it starts.
    Raises OSError where it does not fit on the disk, ConnectionError where it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    revision, offline = revision or first_commit(repo), constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE forbids to fetch it: unset that"
    if not offline:
        try:
            coming = to_come(repo, revision, patterns)
        except Exception as error:                                                  # no network, no such name: is it here?
            offline, why = True, f"could not be fetched from the hub ({first_line(error)}): check the network and the name"
        else:
            make_sure_of_room(repo, coming)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:
        at = f" at {revision}" if revision else ""
        why = f"is not in {constants.HF_HUB_CACHE}, and {why}" if offline else f"could not be fetched ({first_line(error)})"
        raise ConnectionError(f"{repo}{at} {why}, or give the path of a folder that holds it") from error


def _kept(repo: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def first_commit(repo: str) -> str | None:
    """The commit of a repository that the hub's cache holds as its main branch, if it holds one."""
    main = _kept(repo) / "refs" / "main"
    return main.read_text().strip() or None if main.is_file() else None


def cached(repo: str) -> Path | None:
    """The folder of a repository that was fetched before (the latest, if several commits were), or None."""
    folders = [folder for folder in (_kept(repo) / "snapshots").glob("*") if any(folder.iterdir())] if repo else []
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def to_come(repo: str, revision: str | None, patterns: list[str]) -> int:
    """Bytes that `fetch` would still have to download."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects
    about = HfApi().model_info(repo, revision=revision, files_metadata=True)
    wanted = filter_repo_objects(about.siblings or [], allow_patterns=patterns, key=lambda file: file.rfilename)
    missing = [file.size or 0 for file in wanted
               if not isinstance(try_to_load_from_cache(repo, file.rfilename, revision=about.sha), str)]
    begun = _kept(repo).glob("blobs/*.incomplete")
    return max(sum(missing) - sum(part.stat().st_size for part in begun), 1) if missing else 0


def make_sure_of_room(repo: str, size: int) -> None:
    """Say what will be downloaded, and refuse what would leave less than a gigabyte on the disk."""
    from huggingface_hub import constants
    if not size:
        return
    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free
    if free < size + 1e9:
        raise OSError(f"{repo} asks for {size / 1e9:.1f} GB more, but {place} has {free / 1e9:.1f} GB free: make room "
                      "there, or set HF_HOME to a folder on another disk")
    print(f"fetching {size / 1e9:.1f} GB of {repo} into {place} ({free / 1e9:.0f} GB free)", file=sys.stderr)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
