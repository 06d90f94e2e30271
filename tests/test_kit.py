import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from msk import dit, weights
from msk import kit as kits
from msk.config import PRESETS
from msk.kit import Kit, load
from msk.models import toy
from msk.stream import Stream
from msk.tracks import Tracks


def pair(folder):
    """A kit folder with both roles."""
    Kit.random("toy", seed=1, role="teacher").save(folder)
    student = Kit.random("toy", seed=1)
    student.dit.head.head.weight.add_(0.1)
    student.save(folder)
    return folder


def test_what_is_saved_is_what_is_loaded(tmp_path):
    pair(tmp_path)
    student, teacher = load(tmp_path, dtype=torch.float32), load(tmp_path, "teacher", dtype=torch.float32)
    assert student.preset == PRESETS["toy"] and student.name == "toy" and teacher.role == "teacher"
    want = Kit.random("toy", seed=1)
    for name, x in want.vae.state_dict().items():
        assert torch.equal(x, student.vae.state_dict()[name])
    assert not torch.equal(student.dit.head.head.weight, teacher.dit.head.head.weight)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["config.json", "cutter.safetensors", "finish.safetensors", "plate.safetensors", "student.safetensors",
                     "teacher.safetensors", "text.safetensors", "track_head.safetensors", "vae.safetensors"]


def test_a_loaded_kit_plays(tmp_path):
    kit = load(pair(tmp_path))
    assert kit.dtype == kits.best_dtype(kit.device) and not any(p.requires_grad for p in kit.dit.parameters())
    frames = Stream(kit, "a red fish", np.zeros((50, 60, 3), np.uint8)).step(Tracks.grid(kit.geometry, 8, 9))
    assert frames.shape == (1, 9, 3, 32, 32) and frames.isfinite().all()


def test_a_name_finds_what_travels_with_the_package(tmp_path, monkeypatch):
    pair(tmp_path / "toy-kit")
    monkeypatch.setenv("MSK_ASSETS", str(tmp_path))
    assert load("toy-kit").name == "toy" and "toy-kit" in kits.names()


def test_the_seed_decides_random_weights_and_leaves_the_rest_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a, b, c = Kit.random("toy", 0), Kit.random("toy", 0), Kit.random("toy", 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.dit.blocks[0].ffn[0].weight, b.dit.blocks[0].ffn[0].weight)
    assert not torch.equal(a.dit.blocks[0].ffn[0].weight, c.dit.blocks[0].ffn[0].weight)


def test_half_precision_keeps_time_and_normalisation_exact():
    kit, exact = Kit.random("toy").to(dtype=torch.bfloat16), Kit.random("toy")
    assert kit.dtype == torch.bfloat16 and kit.dit.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    wide = ("time_embedding.0.weight", "time_projection.1.weight", "blocks.0.modulation", "blocks.1.norm3.weight",
            "head.modulation", "head.head.weight")
    for name in wide:                                                               # not rounded on the way either
        assert torch.equal(kit.dit.get_parameter(name), exact.dit.get_parameter(name))
    narrow = {name for name, p in kit.dit.named_parameters() if p.dtype == torch.bfloat16}
    assert len(narrow) > 40 and not any(part in name for name in narrow for part in dit.WIDE)
    assert kit.vae.mean.dtype == torch.float32 and kit.text.word.weight.dtype == torch.float32


def test_each_device_gets_what_it_multiplies_fastest_with(monkeypatch):
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert kits.best_dtype("cuda") == dtype
    assert kits.best_dtype("mps") == torch.float32


@pytest.mark.parametrize("name", ["toy", "wan2.1-1.3b", "wantrack-1.3b"])
def test_float16_loses_little_however_large_the_numbers_inside(name):
    """As on a T4: what is summed over many numbers is summed in float32, so that nothing overflows on the way."""
    preset = PRESETS[name] if name == "toy" else toy(PRESETS[name])
    kit = Kit.random(preset)
    g = torch.Generator().manual_seed(0)
    for p in kit.dit.parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.1)
    for p in kit.dit.patch_embedding.parameters():
        p.mul_(300)                                                                 # squares are no half numbers any more
    c, (h, w) = preset.dit, preset.geometry.latent_size
    x, t = torch.randn(1, 2, c.latent_channels, h, w, generator=g), torch.full((1, 2), 0.7)
    text = torch.randn(1, preset.text.length, c.text_dim, generator=g)
    want = kit.dit(x, t, text)
    made = kit.to(dtype=torch.float16).dit(x, t, text)
    assert made.dtype == torch.float32 and ((made - want).norm() / want.norm()) < 0.02


def test_what_passes_by_the_blocks_may_be_larger_than_any_half_number():
    """Gates open wide: what the blocks add up to, and its squares, are beyond 65,504, which ends float16's numbers."""
    kit = Kit.random("toy")
    g = torch.Generator().manual_seed(0)
    for p in kit.dit.parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    for block in kit.dit.blocks:
        block.modulation[:, 2::3] *= 1e6
    c, (h, w) = kit.dit.config, kit.geometry.latent_size
    x, t = torch.randn(1, 2, c.latent_channels, h, w, generator=g), torch.full((1, 2), 0.7)
    text = torch.randn(1, 16, c.text_dim, generator=g)
    largest = []
    kit.dit.blocks[-1].register_forward_hook(lambda block, given, out: largest.append(out[0].abs().max().item()))
    want = kit.dit(x, t, text)
    for dtype, off in ((torch.float16, 0.005), (torch.bfloat16, 0.03)):
        made = Kit.to(copy.deepcopy(kit), dtype=dtype).dit(x, t, text)
        assert ((made - want).norm() / want.norm()) < off and min(largest) > 65504


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_said(tmp_path):
    with pytest.raises(ValueError, match="cuda was asked for, but torch .* sees no GPU here: use cpu"):
        load(pair(tmp_path), device="cuda")


def test_a_condition_covers_the_clip(kit):
    cond = kit.condition(["a red fish", ""], Tracks.grid(kit.geometry, 8, 9, batch=2), torch.rand(2, 3, 32, 32))
    assert cond.motion.shape == (2, 3, kit.preset.dit.motion_channels, 4, 4) and cond.image.shape == (2, 1, 4, 4, 4)
    assert torch.equal(cond.text[1], cond.null_text[0]) and not torch.equal(cond.text[0], cond.null_text[0])
    nothing = kit.condition([""])
    assert nothing.motion is None and nothing.image is None


def test_nothing_drawn_is_the_null_condition(kit, close):
    """No track drawn = zero motion map = null condition, all the way to the velocity."""
    drawn = kit.condition(["snow"], Tracks.grid(kit.geometry, 8, 9).hide(slice(None)))
    x, t = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    assert torch.equal(kit.dit(x, t, drawn.text, drawn.motion), kit.dit(x, t, drawn.text, drawn.without_motion().motion))


def test_the_pictures_latents_are_its_first_frame(kit, close):
    image = torch.rand(3, 32, 32)
    close(kit.encode_image(image), kit.vae.encode(image[None, None]))


# what can go wrong with files

def test_a_truncated_file_says_so(tmp_path):
    pair(tmp_path)
    file = tmp_path / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="student.safetensors .* is no whole safetensors file .* fetch it again"):
        load(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load(tmp_path)


def test_weights_of_another_size_are_named(tmp_path):
    pair(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dit"]["layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit this model: \d+ missing \(blocks.2"):
        load(tmp_path)
    config["dit"].update(layers=2, ffn_dim=32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of another shape"):
        load(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    Kit.random("toy").save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no teacher, only a student"):
        load(tmp_path, "teacher")
    (tmp_path / "vae.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights at .*vae.safetensors"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no kit called 'nobody'.*wan2.1-1.3b"):
        load("nobody")
    with pytest.raises(ValueError, match="role 'critic'"):
        load(tmp_path, "critic")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a kit"):
        load(tmp_path)


# the hub

def test_a_repository_is_fetched_and_opened(tmp_path, monkeypatch):
    import huggingface_hub
    pair(tmp_path)
    asked = {}

    def snapshot(repo, *, revision, allow_patterns, local_files_only):
        asked.update(repo=repo, revision=revision)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(weights, "missing", lambda *_: ("abc", []))
    for name, revision in (("someone/moves", "v2"), ("someone/moves@v2", None)):
        assert load(name, revision=revision).name == "toy"
        assert asked == {"repo": "someone/moves", "revision": "v2"}


def test_no_network_is_one_sentence(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match=r"someone/moves .*could not be fetched from the hub \(no route to host\)"):
        load("someone/moves")


def test_a_push_uploads_the_whole_folder(monkeypatch):
    import huggingface_hub
    seen = {}

    class Api:
        def create_repo(self, repo, private, exist_ok):
            seen["repo"] = repo, private, exist_ok

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            seen["files"] = sorted(os.listdir(folder_path))
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert Kit.random("toy").push_to_hub("someone/moves", private=True).endswith("someone/moves/commit/1")
    assert seen["repo"] == ("someone/moves", True, True)
    assert {"config.json", "student.safetensors", "vae.safetensors"} <= set(seen["files"])


def test_a_size_of_no_whole_tokens_is_told_before_anything_is_built():
    """Whole latent cells it has, but a token is two of them wide."""
    narrow = replace(PRESETS["toy"], geometry=replace(PRESETS["toy"].geometry, width=56))
    with pytest.raises(ValueError, match="toy at 32 x 56 pixels has 4 x 7 latent cells.*use multiples of 16 and 16 pixels"):
        Kit.random(narrow)
