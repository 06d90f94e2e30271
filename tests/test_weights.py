import os

import pytest
import torch

from msk.weights import fill, read_weights, save_weights


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
