"""One plays, eight wait: each is told its place, and the player's video goes on."""
import pytest

from tests.pages.load import play
from tests.pages.serve import free_port


def test_eight_wait_in_line_while_one_plays(tmp_path):
    pytest.importorskip("gradio")
    report = play("exact", 24, 3, tmp_path / "load.json", watchers=8, port=free_port())
    assert report["places"] == list(range(1, 9)) and report["watchers_lost"] == [] and report["complaints"] == []
    assert report["drawn_fps"] > 0 and report["latency_ms"] > 0 and report["seconds"] >= 3
    before, after = report["memory_mb"]
    assert before is None or after < before + 100
    assert (tmp_path / "load.json").stat().st_size > 100
