"""The doctor says what is true, and what to do about what is missing."""
import json

import torch

import msk
from msk.doctor import EXTRAS, _extra


def test_the_report_reads_and_is_json():
    report = msk.doctor()
    facts = json.loads(json.dumps(report.to_dict()))
    for name in ("device", "dtype", "attention", "threads", "memory_gib", "extras", "models", "missing"):
        assert name in facts
    for word in ("device", "dtype", "attention", "threads", "memory", "extras", "models"):
        assert word in str(report)


def test_the_short_form_is_four_lines_and_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(EXTRAS, "demo", (("surely_not_a_module",), "the live canvas"))
    report = msk.doctor(short=True)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["msk", "device", "threads", "missing"]
    assert report.facts["dtype"] in lines[1] and 'pip install "msk[demo]"' in lines[3]
    report.missing.clear()
    assert str(report).endswith("nothing")
    assert report.to_dict().keys() == msk.doctor().to_dict().keys()


def test_it_says_what_the_machine_really_computes_with():
    facts = msk.doctor().facts
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["memory_gib"] >= facts["memory_free_gib"] > 0 and facts["disk_free_gib"] > 0


def test_a_missing_extra_names_what_is_missing_and_what_to_do(monkeypatch):
    monkeypatch.setitem(EXTRAS, "demo", (("json", "surely_not_a_module"), "the live canvas"))
    found = _extra("demo")
    assert not found["here"] and found["missing"] == ["surely_not_a_module"]
    assert 'pip install "msk[demo]"   # the live canvas' in msk.doctor().missing


def test_models_say_what_they_would_need():
    models = msk.doctor().facts["models"]
    assert abs(models["wan2.1-1.3b"]["parameters"] / 1.42e9 - 1) < 0.01
    assert abs(models["wan2.2-5b"]["weights_gib"] - 9.3) < 0.1
    assert "umT5" in models["wan2.2-5b"]["about"]


def test_a_model_that_is_not_here_is_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MSK_ASSETS", str(tmp_path))
    report = msk.doctor()
    assert not report.facts["models"]["tiny"]["here"]
    for short in (False, True):
        assert any(line.startswith("msk train all") for line in msk.doctor(short).missing)
    msk.Kit.random("toy").save(tmp_path / "tiny")
    assert msk.doctor().facts["models"]["tiny"]["here"]
