"""The table of rows: one that fails is alone, and what is there stays."""
import json
import subprocess
from types import SimpleNamespace

import pytest

from msk import rows

FIGURES = {"fps": 60.0, "latency_ms": {"median": 150.0}, "chunk_ms": 200.0, "chunk_ms_p95": 210.0, "tflops": 480.0,
           "fps_without_clean_pass": 80.0, "relative_error": 0.004, "peak_memory_mb": 8000.0, "dtype": "bfloat16",
           "attention": "cuDNN"}


def test_a_row_that_fails_is_made_again_and_the_others_are_not(tmp_path, monkeypatch, capsys):
    asked, file = [], tmp_path / "deep" / "rows.json"

    def one(words, seconds):
        asked.append(words)
        return {"error": "CUDA out of memory"} if "wan2.2-5b" in words and len(asked) < 3 else dict(FIGURES)

    monkeypatch.setattr(rows, "one", one)
    some = {name: rows.ROWS[name] for name in ("1.3B compiled", "5B compiled", "1.3B plain")}
    made = rows.run(file, 60, "cuda", rows=some)
    assert [name for name, r in made.items() if "error" in r] == ["5B compiled"] and json.loads(file.read_text()) == made
    said = capsys.readouterr().out
    assert "60.00 frames a second, predicted 65 on an H200, latency 150 ms" in said
    assert "0.40 % off" in said and "CUDA out of memory" in said
    assert "error" not in rows.run(file, 60, "cuda", rows=some, quiet=True)["5B compiled"]
    assert [words[1] for words in asked] == ["wan2.1-1.3b", "wan2.2-5b", "wan2.1-1.3b", "wan2.2-5b"]
    rows.run(file, 60, "cpu", rows={"1.3B compiled": some["1.3B compiled"]}, quiet=True)        # elsewhere it is another row
    assert asked[-1] == ["--model", "wan2.1-1.3b", "--random-weights", "--device", "cpu", "--chunks", "60"]


def test_a_row_that_fails_again_and_again_keeps_none_from_its_turn(tmp_path, monkeypatch):
    """Time for two rows a call; the first two always fail. With them first, the others would never come."""
    clock, asked = [0.], []

    def one(words, seconds):
        clock[0] += 240
        asked.append(words[1])
        return {"error": "out of time"} if words[1] in "ab" else dict(FIGURES)

    monkeypatch.setattr(rows, "one", one)
    monkeypatch.setattr(rows, "monotonic", lambda: clock[0])
    some = {name: (["--model", name], 0) for name in "abcde"}
    for _ in range(4):
        made = rows.run(tmp_path / "rows.json", 500, "cuda", rows=some, quiet=True)
    assert asked == [*"ab", *"cd", *"ea", *"ba"] and list(made) == [*"abcde"]
    assert [made[name].get("failed") for name in "abc"] == [3, 2, None]


def test_on_a_cpu_nothing_waits_and_all_other_words_stay(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "one", lambda words, seconds: asked.append(words) or dict(FIGURES))
    some = {"a": (["--model", "wan2.2-5b", "--offload", "4", "--fast", "--no-clean"], 0)}
    rows.run(tmp_path / "rows.json", 60, "cpu", rows=some, quiet=True)
    assert asked == [["--model", "wan2.2-5b", "--no-clean", "--random-weights", "--device", "cpu", "--chunks", "60"]]


def test_two_thousand_chunks_have_a_call_to_themselves(tmp_path, monkeypatch, capsys):
    """On a CPU at toy size, where nothing is compiled and nothing waits."""
    asked = []
    monkeypatch.setattr(rows, "one", lambda words, seconds: asked.append((words, seconds)) or dict(FIGURES))
    some = {name: rows.ROWS[name] for name in ("1.3B compiled, 2,000 chunks", "5B plain, as a card of 16 GB holds it")}
    made = rows.run(tmp_path / "rows.json", 530, "cpu", rows=some)
    assert list(made) == ["5B plain, as a card of 16 GB holds it"]
    assert "1.3B compiled, 2,000 chunks            no time left" in capsys.readouterr().err
    rows.run(tmp_path / "rows.json", 600, "cpu", rows=some, quiet=True)
    for (words, seconds), (model, chunks, least) in zip(asked, (("wan2.2-5b", "60", 200), ("wan2.1-1.3b", "2000", 590))):
        assert words[:2] == ["--model", model] and words[words.index("--chunks") + 1] == chunks and seconds > least
        assert words.count("--chunks") == 1 and not {"--fast", "--offload", "4"} & set(words)


def test_without_time_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "one", lambda *_: pytest.fail("begun"))
    assert rows.run(tmp_path / "rows.json", 1, "cpu") == {} and "ask again to go on" in capsys.readouterr().err


def test_each_row_is_a_process_of_its_own(monkeypatch):
    ran = []

    def done(command, timeout, **_):
        ran.append((command, timeout))
        if "5b" in command[5]:
            raise subprocess.TimeoutExpired(command, timeout)
        if "track" in command[5]:
            return SimpleNamespace(returncode=2, stderr="a bar\nmsk bench: no kernel\n")
        with open(command[-1], "w") as file:
            json.dump(FIGURES, file)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", done)
    assert rows.one(["--model", "wan2.1-1.3b"], 100) == FIGURES
    assert ran[0][0][1:6] == ["-m", "msk", "bench", "--model", "wan2.1-1.3b"] and ran[0][1] == 100
    assert rows.one(["--model", "wan2.2-5b"], 100) == {"error": "not done after 100 s"}
    assert rows.one(["--model", "wantrack-1.3b"], 100) == {"error": "msk bench: no kernel"}


def test_every_row_is_a_command_that_is_understood():
    from msk.cli import build_parser
    for words, _ in rows.ROWS.values():
        assert build_parser().parse_args(["bench", *words, "--random-weights"]).model in ("wan2.1-1.3b", "wan2.2-5b",
                                                                                         "wantrack-1.3b")


def test_each_row_says_itself_how_many_blocks_wait(monkeypatch):
    seen = []
    monkeypatch.setenv("MSK_OFFLOAD", "12")
    monkeypatch.setattr(rows.subprocess, "run", lambda *words, env, **more: seen.append(env) or SimpleNamespace(
        returncode=1, stderr="as it should"))
    assert rows.one(["--model", "tiny"], 1) == {"error": "as it should"}
    assert "MSK_OFFLOAD" not in seen[0] and seen[0]["PATH"]
