import hashlib
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from msk import weights
from msk.weights import cached, coming, fetch, fill, first_commit, missing, read_weights, save_weights


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(3)}, path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights({"a": torch.zeros(3)}, path)
    assert torch.equal(read_weights(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_file_brings_back_every_bit(tmp_path):
    state = {"half": torch.randn(4).bfloat16(), "strided": torch.randn(3, 5).t(), "whole": torch.arange(3)}
    save_weights(state, tmp_path / "w.safetensors")
    again = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(again[name], x) and again[name].dtype == x.dtype for name, x in state.items())


def test_half_a_model_is_never_loaded():
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=r"that file does not fit this model: 1 missing \(bias\)"):
        fill(model, {"weight": torch.zeros(2, 2)}, "that file")
    assert torch.equal(model.weight, before)


def test_a_model_without_memory_takes_the_files_tensors():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    fill(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, "that file")
    assert model(torch.ones(1, 2)).tolist() == [[2, 2]]


# the hub

@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository of three files, and what is asked of it."""
    import huggingface_hub
    from huggingface_hub import constants
    files = {"transformer/a.safetensors": 3e9, "transformer/b.safetensors": 2e9, "vae/c.safetensors": 9e9}
    asked, cache = [], tmp_path / "hub"

    def about(self, repo, *, revision, files_metadata):
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=n, size=int(s)) for n, s in files.items()])

    def snapshot(repo, *, revision, allow_patterns, local_files_only):
        asked.append((repo, revision, allow_patterns, local_files_only))
        return str(cache)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, *, revision:
                        str(cache / name) if (cache / name).is_file() else None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=20e9))
    return SimpleNamespace(asked=asked, cache=cache, blobs=cache / "models--someone--moves" / "blobs")


def test_what_is_to_come_is_said_before_it_comes(hub, capsys):
    fetch("someone/moves", None, ["transformer/*"])
    assert hub.asked == [("someone/moves", None, ["transformer/*"], False)]
    assert "fetching 5.0 GB of someone/moves into" in capsys.readouterr().err
    (hub.cache / "transformer").mkdir(parents=True)
    (hub.cache / "transformer/a.safetensors").touch()
    commit, files = missing("someone/moves", None, ["transformer/*"])               # what is here does not come again
    assert commit == "abc" and [file.rfilename for file in files] == ["transformer/b.safetensors"]
    (hub.cache / "transformer/b.safetensors").touch()
    fetch("someone/moves", None, ["transformer/*"])
    assert capsys.readouterr().err == ""


class Ranges(BaseHTTPRequestHandler):
    """Serves `data` from the byte that is asked for on."""
    data, asked = b"", []

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.asked.append(start)
        body = self.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Ranges.asked = []
    yield f"http://127.0.0.1:{server.server_port}/file"
    server.shutdown()


def test_a_large_file_goes_on_where_it_was_cut_off(hub, served, monkeypatch, capsys):
    import huggingface_hub
    data = os.urandom(300_000)
    file = SimpleNamespace(rfilename="transformer/a.safetensors", size=len(data),
                           lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="abc", siblings=[file]))
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: served)
    blob = hub.blobs / file.lfs.sha256
    hub.blobs.mkdir(parents=True)
    blob.with_suffix(".part").write_bytes(data[:200_000])                           # from a process that is no more
    Ranges.data = data
    fetch("someone/moves", None, ["transformer/*"])
    assert Ranges.asked == [200_000] and blob.read_bytes() == data and not blob.with_suffix(".part").exists()
    assert "fetching 0.0 GB" in capsys.readouterr().err

    blob.unlink()
    blob.with_suffix(".part").write_bytes(b"0" * 200_000)                           # of another file
    with pytest.raises(ConnectionError, match="a.safetensors did not come whole.*ask again to go on"):
        fetch("someone/moves", None, ["transformer/*"])
    fetch("someone/moves", None, ["transformer/*"])
    assert blob.read_bytes() == data


def test_how_much_of_a_download_has_come_is_known_meanwhile(hub, monkeypatch):
    import huggingface_hub
    files = [SimpleNamespace(rfilename=f"transformer/{k}", size=1000, lfs=SimpleNamespace(sha256=f"sha{k}")) for k in "ab"]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="abc", siblings=files))
    hub.blobs.mkdir(parents=True)
    seen = []

    def half(repo, commit, file):
        (hub.blobs / f"{file.lfs.sha256}.part").write_bytes(b"0" * 500)
        seen.append(coming())
        (hub.blobs / f"{file.lfs.sha256}.part").rename(hub.blobs / file.lfs.sha256)
        if file is files[1]:
            seen.append(coming())
    monkeypatch.setattr(weights, "go_on", half)
    assert coming() is None
    fetch("someone/moves", None, ["transformer/*"])
    assert seen == [("someone/moves", here, 2000) for here in (500, 1500, 2000)] and coming() is None


def test_what_does_not_fit_on_the_disk_is_not_begun(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5.5e9))
    with pytest.raises(OSError, match=r"someone/moves asks for 5.0 GB more, but .* has 5.5 GB free: make room.*HF_HOME"):
        fetch("someone/moves", None, ["transformer/*"])
    assert not hub.asked


def test_a_repository_stays_at_the_commit_that_came_first(hub):
    assert first_commit("someone/moves") is None
    assert cached("someone/moves") is None and cached("") is None
    refs = hub.cache / "models--someone--moves" / "refs"
    refs.mkdir(parents=True)
    (refs.parent / "snapshots/0123abc/vae").mkdir(parents=True)
    assert cached("someone/moves") == refs.parent / "snapshots/0123abc"
    (refs / "main").write_text("0123abc")
    fetch("someone/moves", None, ["vae/*"])
    fetch("someone/moves", "main", ["vae/*"])
    assert [revision for _, revision, *_ in hub.asked] == ["0123abc", "main"]


def test_offline_the_cache_is_all_there_is(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    fetch("someone/moves", None, ["vae/*"])
    assert hub.asked[-1][-1]

    def absent(*_, **__):
        raise FileNotFoundError("no snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ConnectionError, match="someone/moves is not in .*hub, and HF_HUB_OFFLINE forbids to fetch it"):
        fetch("someone/moves", None, ["vae/*"])


def test_without_network_the_cache_is_asked_at_once_and_else_the_reason_is_said(hub, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("name or service not known\nand a long story")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert fetch("someone/moves", None, ["vae/*"]) == hub.cache and hub.asked[-1][-1]

    def absent(*_, **__):
        raise FileNotFoundError("no snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ConnectionError, match=r"someone/moves at v2 is not in .*hub, and could not be fetched from the hub "
                                              r"\(name or service not known\): check the network and the name, or give"):
        fetch("someone/moves", "v2", ["vae/*"])
