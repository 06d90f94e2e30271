"""Comparing: errors drawn on what was made, and a blind vote that keeps every key and says how sure its result is."""
import json
import socket

import pytest
import torch
from PIL import Image

import msk
from demos import compare, vote
from msk import video
from tests.pages.browser import open_browser

COLOURS = {"ours": (0.1, 0.7, 0.1), "theirs": (0.8, 0.1, 0.1)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for role in ("student", "teacher"):
        msk.Kit.random("toy", seed=1, role=role).save(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """A study of four pairs: ours are green, theirs are red."""
    for side, colour in COLOURS.items():
        for name in "abcd":
            film = torch.tensor(colour).view(1, 3, 1, 1).expand(3, 3, 16, 16)
            video.write(tmp_path / "study" / side / f"{name}.webp", film, 12)
    return tmp_path / "study"


def test_teacher_student_and_truth_stand_side_by_side_with_their_errors(toy, tmp_path, capsys):
    out = compare.compare(toy, clips=1, out=tmp_path / "x.webp", frames=9, grid=4, zoom=2)
    frames, fps = video.read(out)
    assert frames.shape == (9, 3, 64, 3 * 64 + 4) and round(fps) == 24
    assert Image.open(tmp_path / "x.png").height > 3 * 64
    said = capsys.readouterr().out
    assert "teacher, " in said and "student, " in said and " px" in said


def test_what_stands_on_the_left_is_chance_but_the_same_again(folder):
    orders = {}
    for seed in range(20):
        study = vote.Study(folder, seed)
        orders[seed] = [(clip, study.left_right(clip)) for clip in study.clips]
        assert orders[seed] == [(clip, study.left_right(clip)) for clip in vote.Study(folder, seed).clips]
    assert len({tuple(order) for order in orders.values()}) > 15
    lefts = [sides[0] for order in orders.values() for _, sides in order]
    assert 24 < lefts.count("ours") < 56


def test_a_vote_is_on_disk_at_once_counts_once_and_is_taken_up_again(folder):
    study = vote.Study(folder, seed=1)
    first = study.next
    study.vote(first, "1")
    kept = json.loads((folder / "tally.json").read_text())
    assert kept["votes"] == [{"clip": first, "left": study.left_right(first)[0], "choice": study.left_right(first)[0]}]
    study.vote(first, "2")                                      # the same key twice, or a second page
    again = vote.Study(folder, seed=1)
    assert again.votes == study.votes and again.next == study.next != first
    again.vote(again.next, "0")
    assert again.votes[-1]["choice"] == "same"
    assert sorted(p.name for p in folder.iterdir()) == ["ours", "tally.json", "theirs"]
    with pytest.raises(ValueError, match="seed 1, and this is ours and theirs with seed 2"):
        vote.Study(folder, seed=2)
    assert vote.Study(folder, seed=2, voter="anna").votes == []


def test_the_interval_is_wilson_s():
    for wins, of, low, high in ((0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (50, 100, 0.4038, 0.5962)):
        assert vote.wilson(wins, of) == pytest.approx((low, high), abs=2e-4)
    votes = [{"choice": "ours"}] * 18 + [{"choice": "theirs"}] * 2 + [{"choice": "same"}] * 4
    said = vote.result(["ours", "theirs"], votes)
    assert "ours 18, theirs 2, no difference 4" in said
    assert "90% preferred ours (95 % interval 70% to 97%), more than" in said
    assert "chance may give" in vote.result(["ours", "theirs"], votes[16:20])
    assert "Nothing is decided" in vote.result(["ours", "theirs"], votes[20:])


@pytest.mark.parametrize("break_it, said", [
    (lambda f: (f / "third").mkdir(), "holds 3 folders"), (lambda f: (f / "ours").rename(f / ".hidden"), "holds 1 folders"),
    (lambda f: [p.rename(p.with_name("x" + p.name)) for p in (f / "ours").iterdir()], "no clip of the same name"),
    (lambda f: (f / "tally.json").write_text("{"), "is no tally"),
    (lambda f: (f / "tally.json").write_text('{"sides": ["a", "b"], "seed": 0, "votes": []}'), "is of a and b")])
def test_what_is_no_study_is_refused_in_one_sentence(folder, capsys, break_it, said):
    break_it(folder)
    with pytest.raises(SystemExit) as stop:
        vote.main([str(folder)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and "Traceback" not in error


def test_pairs_are_made_once_and_counted(toy, tmp_path, capsys):
    folder = tmp_path / "votes"
    vote.make(folder, toy, 2, frames=9, grid=4)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.webp")}
    assert len(times) == 6 and vote.pairs_of(folder)[0] == ["student", "teacher"]
    vote.make(folder, toy, 2, frames=9, grid=4)
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*.webp")}
    for voter in ("anna", "ben"):
        study = vote.Study(folder, voter=voter)
        study.vote(study.next, "0")
    vote.main([str(folder), "--count"])
    assert "2 votes: student 0, teacher 0, no difference 2" in capsys.readouterr().out


def test_keys_and_clicks_in_a_browser_become_the_tally(folder):
    """Whoever votes for the green one each time says in the end that it is ours; until then nobody has told the names."""
    pytest.importorskip("gradio")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    study = vote.Study(folder, seed=4)
    server, url = vote.serve(study, port=port, block=False)
    try:
        with open_browser() as browser:
            page, complaints = browser.new_page(viewport={"width": 900, "height": 700}), []
            page.on("pageerror", lambda e: complaints.append(str(e)))
            page.goto(url)

            def green():
                """1 or 2: where the pair on the screen is green."""
                return page.evaluate("""async () => {
                    const img = document.querySelector("#msk-film img"), c = new OffscreenCanvas(34, 16).getContext("2d");
                    await img.decode();
                    c.drawImage(img, 0, 0);
                    return c.getImageData(8, 8, 1, 1).data[1] > c.getImageData(8, 8, 1, 1).data[0] ? "1" : "2"; }""")

            for number in range(1, 5):
                page.locator(f"#msk-film img[alt='pair {number}']").wait_for(timeout=60_000)
                assert "ours" not in page.content() and "theirs" not in page.content()
                if number == 3:                                 # what is on disk is where a new page begins
                    page.reload()
                    page.locator("#msk-film img[alt='pair 3']").wait_for(timeout=60_000)
                key = "0" if number == 2 else green()
                if number % 2:
                    page.keyboard.press(key)
                else:
                    page.get_by_role("button", name=f"{key}: ").click()
            page.get_by_text("100% preferred ours").wait_for(timeout=60_000)
            assert not page.locator("#msk-vote-1").is_visible() and complaints == []
            page.close()
    finally:
        server.close(verbose=False)
    kept = json.loads((folder / "tally.json").read_text())
    assert [v["choice"] for v in kept["votes"]] == ["ours", "same", "ours", "ours"]
    assert [v["clip"] for v in kept["votes"]] == study.clips
