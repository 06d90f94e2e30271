"""Weights as files: written whole or not at all, read with one sentence on what is wrong, fetched once from the hub."""
from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
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
    at, why = f"{repo} at {revision}" if revision else repo, "HF_HUB_OFFLINE forbids to fetch it: unset that"
    if not offline:
        try:
            commit, files = missing(repo, revision, patterns)
        except Exception as error:                                                  # no network, no such name: is it here?
            offline, why = True, f"could not be fetched from the hub ({first_line(error)}): check the network and the name"
        else:
            make_sure_of_room(repo, sum(file.size or 0 for file in files) - sum(begun(repo, file) for file in files))
    try:
        with _announced(repo, [] if offline else files):
            if not offline:
                for file in files:
                    if getattr(file, "lfs", None):
                        go_on(repo, commit, file)
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:
        why = f"is not in {constants.HF_HUB_CACHE}, and {why}" if offline else (
            f"could not be fetched ({first_line(error)}): ask again to go on where it stopped")
        raise ConnectionError(f"{at} {why}, or give the path of a folder that holds it") from error


_coming: list[tuple[str, list]] = []            # repositories that are being fetched, and what they lacked


@contextmanager
def _announced(repo: str, files: list):
    _coming.append(entry := (repo, files))
    try:
        yield
    finally:
        _coming.remove(entry)


def coming() -> tuple[str, int, int] | None:
    """Of what is being fetched now, by any thread: repository, bytes that are here, bytes in all. None: nothing is."""
    def here(repo: str, file) -> int:
        large = getattr(file, "lfs", None)
        return file.size if large and _part(repo, file).with_suffix("").exists() else begun(repo, file)
    for repo, files in [entry for entry in _coming if entry[1]]:
        return repo, sum(here(repo, file) for file in files), sum(file.size or 0 for file in files)
    return None


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


def missing(repo: str, revision: str | None, patterns: list[str]) -> tuple[str, list]:
    """The commit that is meant, and the files of it that the cache lacks, as the hub describes them."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects
    about = HfApi().model_info(repo, revision=revision, files_metadata=True)
    wanted = filter_repo_objects(about.siblings or [], allow_patterns=patterns, key=lambda file: file.rfilename)
    return about.sha, [file for file in wanted
                       if not isinstance(try_to_load_from_cache(repo, file.rfilename, revision=about.sha), str)]


def _part(repo: str, file) -> Path:
    return _kept(repo) / "blobs" / f"{file.lfs.sha256}.part"


def begun(repo: str, file) -> int:
    """Bytes of a large file that are here already."""
    return _part(repo, file).stat().st_size if getattr(file, "lfs", None) and _part(repo, file).is_file() else 0


def go_on(repo: str, commit: str, file) -> None:
    """Bring a large file to its place in the hub's cache, from where it was cut off.

    The hub's own client keeps whole files only: of one that broke off after five gigabytes, all five would come again.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers
    part = _part(repo, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(part.with_suffix(".lock")):
        here = begun(repo, file)
        if here < file.size:
            with open(part, "ab") as into:
                http_get(hf_hub_url(repo, file.rfilename, revision=commit), into, resume_size=here, expected_size=file.size,
                         headers=build_hf_headers(), displayed_filename=file.rfilename)
        if here:                                                                # in pieces: are they of one file?
            with open(part, "rb") as whole:
                digest = hashlib.file_digest(whole, "sha256").hexdigest()
            if digest != file.lfs.sha256:
                part.unlink()
                raise OSError(f"{file.rfilename} did not come whole")
        os.replace(part, part.with_suffix(""))


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


def first_line(error: BaseException, most: int = 160) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
