"""The command line: every command does its work, and every mistake is one clear sentence and exit code 2."""
import argparse
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import msk
from msk import cli, generate, video


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with an untrained kit, a picture and a track file in the picture's pixels."""
    folder = tmp_path_factory.mktemp("toy")
    for role in ("student", "teacher"):
        msk.Kit.random("toy", seed=1, role=role).save(folder / "kit")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    msk.Tracks.drag([[20, 20], [70, 40]], 12).save(folder / "tracks.npz")
    return SimpleNamespace(folder=folder, kit=str(folder / "kit"), picture=str(folder / "picture.png"),
                           tracks=str(folder / "tracks.npz"))


def run(*words) -> int:
    return cli.main([str(word) for word in words])


def refused(capsys, *words) -> str:
    """The sentence on stderr of a command that must not work."""
    try:
        code = run(*words)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    return said


@pytest.mark.parametrize("teacher, sampler", [
    ([], {"steps": 3}), (["--teacher"], {"steps": 6, "solver": "euler"}),
    (["--teacher", "--steps", 2, "--solver", "unipc"], {"steps": 2, "solver": "unipc"})])
def test_generate_makes_a_clip_and_says_how(toy, tmp_path, teacher, sampler):
    out = tmp_path / "clip.webp"
    assert run("generate", "--model", toy.kit, "--image", toy.picture, "--prompt", "a fish", "--tracks", toy.tracks,
               "--frames", 14, "--seed", 3, "--out", out, *teacher) == 0
    frames, fps = video.read(out)
    assert frames.shape == (14, 3, 32, 32) and round(fps) == 24
    about = video.read_metadata(out)
    assert (about["prompt"], about["seed"], about["role"]) == ("a fish", 3, "teacher" if teacher else "student")
    assert {name: about[name] for name in ("steps", "solver") if name in about} == sampler


def test_the_same_seed_gives_the_same_clip_and_another_one_another(toy, tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("generate", "--model", toy.kit, "--image", toy.picture, "--frames", 9, "--seed", seed, "--out", tmp_path / name)
        made.append(video.read(tmp_path / name)[0])
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_zoom_makes_every_pixel_a_square(toy, tmp_path):
    for zoom in (1, 3):
        run("generate", "--model", toy.kit, "--image", toy.picture, "--frames", 5, "--zoom", zoom,
            "--out", tmp_path / str(zoom))
    small, large = (video.read(tmp_path / name)[0] for name in "13")
    assert torch.equal(small.repeat_interleave(3, -1).repeat_interleave(3, -2), large)


def test_tracks_go_through_the_same_crop_as_their_picture():
    kit = SimpleNamespace(geometry=msk.Geometry(32, 32), preset=SimpleNamespace(tracks=SimpleNamespace(max_id=100)))
    tracks = generate.onto_model(msk.Tracks.of([[[50.0, 30.0], [20.0, 0.0], [80.0, 60.0]]]), (100, 60), kit)
    torch.testing.assert_close(tracks.xy[0, 0], torch.tensor([[16.0, 16.0], [0.0, 0.0], [32.0, 32.0]]))
    assert len(tracks.ids.unique()) == 3


def test_a_track_file_may_say_the_size_it_was_made_on(tmp_path):
    xy = np.ones((3, 1, 2))
    np.savez(tmp_path / "a.npz", tracks=xy, width=832, height=480)
    np.savez(tmp_path / "b.npz", tracks=xy)
    (tmp_path / "c.json").write_text(json.dumps(dict(tracks=xy.tolist(), width=64, height=32)))
    assert [generate.said_size(tmp_path / name) for name in ("a.npz", "b.npz", "c.json")] == [(832, 480), None, (64, 32)]


def test_tracks_that_end_say_nothing_afterwards():
    tracks = msk.Tracks.drag([[1, 1], [9, 9]], 4)
    shown = generate.covering(tracks, 2, 8)
    assert shown.visible[0, :, 0].tolist() == [True, True, False, False, False, False]
    assert torch.equal(shown.xy[0, :2], tracks.xy[0, 2:])
    assert not generate.covering(tracks, 8, 12).visible.any()


def test_tracks_are_described_drawn_and_converted(toy, tmp_path, capsys):
    assert run("tracks", toy.tracks, "--out", tmp_path / "t.json", "--draw", tmp_path / "t.png", "--image", toy.picture) == 0
    assert "1 tracks over 12 frames, visible 100%" in capsys.readouterr().out
    assert torch.allclose(msk.Tracks.load(tmp_path / "t.json").xy, msk.Tracks.load(toy.tracks).xy, atol=1e-3)
    before, after = np.asarray(Image.open(toy.picture)), np.asarray(Image.open(tmp_path / "t.png"))
    assert (before != after).any() and before.shape == after.shape


@pytest.fixture
def played(kit, tmp_path):
    """A session that was played with a saved kit, as the canvas keeps it: (its file, the kit's folder, the frames shown)."""
    from msk.live.session import Session
    from msk.live.widget import knowing
    folder = kit.save(tmp_path / "kit")
    model, shown = msk.load(folder), []
    session = Session(lambda prompt, image, seed: msk.Stream(model, prompt, image, seed=seed), model.geometry,
                      name=model.name, folder=tmp_path / "takes", **knowing(model))
    session.on_frame = lambda frame: frame.still or shown.append(frame.picture)
    try:
        session.open(Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)), "snow", 4)
        session.add(1, 0.3, 0.5)
        session.start()
        end = time.monotonic() + 60
        while len(shown) < 30:
            assert time.monotonic() < end, "the session does not play"
            time.sleep(0.01)
        session.stop()
    finally:
        session.close()
    return session.take.file(), folder, shown


def test_replay_makes_a_kept_session_again_frame_for_frame(played, tmp_path, capsys):
    file, kit, shown = played
    assert run("replay", file, "--model", kit, "--out", tmp_path / "again") == 0
    said = capsys.readouterr()
    again, fps = video.read(tmp_path / "again")                 # png: nothing is lost
    assert f"{len(shown)} frames" in said.out and "seed 4" in said.out and not said.err and fps == 24
    assert np.array_equal(video.to_bytes(again), np.stack(shown))
    assert video.read_metadata(tmp_path / "again")["prompt"] == "snow"


def test_replay_says_when_the_weights_are_others_or_do_not_fit(played, tmp_path, capsys):
    file, _, shown = played
    other = msk.Kit.random("toy", seed=9).save(tmp_path / "other")
    assert run("replay", file, "--model", other, "--out", tmp_path / "again.webp") == 0
    said = capsys.readouterr()
    assert "its video will differ" in said.err and len(video.read(tmp_path / "again.webp")[0]) == len(shown)
    assert "no kit called 'toy'" in refused(capsys, "replay", file, "--out", tmp_path / "x.webp")       # it names its own
    assert "use the model it names, toy" in refused(capsys, "replay", file, "--model", "tiny", "--out", tmp_path / "x.webp")
    (tmp_path / "half.json").write_text(file.read_text()[:200])
    assert "half.json" in refused(capsys, "replay", tmp_path / "half.json")
    assert "nowhere.json" in refused(capsys, "replay", "nowhere.json") and not list(tmp_path.glob("x*"))


def test_the_doctor_writes_json(tmp_path, capsys):
    assert run("doctor", "--json", tmp_path / "d" / "facts.json") == 0
    assert json.loads((tmp_path / "d" / "facts.json").read_text())["device"]
    assert "attention" in capsys.readouterr().out


def test_help_shows_the_floor_plan_and_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"msk {name}" in said for name in ("demo", "generate", "tracks", "doctor", "bench", "eval", "train"))


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "msk", "tracks", "nowhere.npz"], capture_output=True, text=True,
                          cwd=Path(cli.__file__).parents[1])
    assert done.returncode == 2 and done.stderr.startswith("msk tracks: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("text, wanted", [("90s", 90), ("60m", 3600), ("1h30m", 5400), ("0.5h", 1800), ("45", 45)])
def test_a_budget_is_read_as_people_write_it(text, wanted):
    assert cli.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "0m", "-5m", "5x"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="60m"):
        cli.seconds(text)


def test_every_key_that_does_not_fit_is_printed(tmp_path, capsys):
    """The sentence names three of a kind; the lines below it name all."""
    from msk.weights import save_weights
    state = {"patch_embedding.weight": torch.zeros(128, 16, 1, 2, 2), "head.head.weight": torch.zeros(64, 128),
             "text_embedding.0.weight": torch.zeros(128, 8), "time_embedding.0.weight": torch.zeros(128, 8),
             "blocks.0.ffn.0.weight": torch.zeros(16, 128), **{f"stray.{i}": torch.zeros(1) for i in range(5)}}
    save_weights(state, tmp_path / "few.safetensors")
    assert cli.main(["widen", str(tmp_path / "few.safetensors"), "--out", str(tmp_path / "wide")]) == 2
    said = capsys.readouterr().err
    assert "5 unknown (stray.0, stray.1, stray.2, ...)" in said
    assert "unknown: stray.0, stray.1, stray.2, stray.3, stray.4" in said and "blocks.0.self_attn.norm_k.weight" in said


def test_each_mistake_is_one_sentence(toy, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    given = ["generate", "--model", toy.kit, "--out", tmp_path / "o.webp", "--frames", 5]
    assert "no picture" in refused(capsys, *given, "--image", "nowhere.png")
    assert "bad.png could not be read as a picture (of no known kind)" in refused(capsys, *given, "--image", bad)
    assert "no kit called 'nothing'" in refused(capsys, *given, "--image", toy.picture, "--model", "nothing")
    assert "no track file" in refused(capsys, *given, "--image", toy.picture, "--tracks", "nowhere.npz")
    assert "cannot write .txt" in refused(capsys, *given, "--image", toy.picture, "--out", "o.txt")
    assert "whole number" in refused(capsys, *given, "--image", toy.picture, "--frames", "0")
    assert "port" in refused(capsys, "demo", "--port", "99999999")
    assert "invalid choice" in refused(capsys, "train", "everything")


@pytest.mark.parametrize("xy, words", [
    (np.full((5, 2, 2), np.nan), "not a number"), (np.zeros((5, 2, 3)), "[5, 2, 3]"),
    (np.zeros((0, 2, 2)), "2 tracks over 0 frames"),
    (np.zeros((5, 0, 2)), "0 tracks over 5 frames")])
def test_tracks_that_make_no_sense_are_refused(toy, tmp_path, capsys, xy, words):
    np.savez(tmp_path / "t.npz", tracks=xy, visibility=np.ones(xy.shape[:2], bool))
    assert words in refused(capsys, "generate", "--model", toy.kit, "--image", toy.picture, "--tracks", tmp_path / "t.npz",
                            "--out", tmp_path / "o.webp")


def test_a_truncated_checkpoint_is_one_sentence_and_leaves_no_file(toy, tmp_path, capsys):
    kit = msk.Kit.random("toy").save(tmp_path / "kit")
    whole = (kit / "student.safetensors").read_bytes()
    (kit / "student.safetensors").write_bytes(whole[:len(whole) // 2])
    said = refused(capsys, "generate", "--model", kit, "--image", toy.picture, "--out", tmp_path / "o.webp", "--frames", 5)
    assert "student.safetensors" in said and not list(tmp_path.glob("o*"))


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, "demo", "--model", "nothing", "--port", taken.getsockname()[1])
    assert "cannot be had" in said and "--port" in said


def test_the_canvas_is_found_and_handed_what_was_asked(monkeypatch):
    asked = {}
    monkeypatch.setattr(cli, "demo", lambda name: SimpleNamespace(main=lambda argv, **how: asked.update(how, argv=argv)))
    assert run("demo", "--port", 8517, "--no-browser", "--threads", 1, "--auth", "me:secret", "--choose", "tiny") == 0
    assert asked["port"] == 8517 and asked["open_browser"] is False and asked["auth"] == ("me", "secret")
    assert asked["argv"] == ["--threads", "1"] and asked["model"] == "tiny" and asked["choose"] == ["tiny"]


@pytest.mark.parametrize("order, offers", [([], True), (["--share"], False), (["--host", "0.0.0.0"], False),
                                           (["--share", "--choose"], True),
                                           (["--share", "--choose", "mine"], ["tiny", "mine"])])
def test_models_are_offered_where_they_spend_nobody_elses_disk(monkeypatch, order, offers):
    canvas, asked = cli.demo("canvas"), {}
    monkeypatch.setattr(canvas, "launch", lambda *_, **how: asked.update(how))
    monkeypatch.setattr(canvas, "warm_up", lambda kit: None)
    monkeypatch.setattr(canvas.msk, "load", lambda name, device: SimpleNamespace(name=name))
    monkeypatch.setattr(canvas.torch, "set_num_threads", lambda count: None)
    canvas.main(["--no-browser", *order])
    models = asked["models"]
    assert models == offers if isinstance(offers, list) else bool(models) is offers
    assert not models or models[0] == "tiny"                                # the one that plays


def test_training_is_handed_what_was_asked(monkeypatch, capsys):
    from msk import train
    asked = []
    monkeypatch.setattr(train, "main", lambda *order, **how: asked.append((order, how)) or "runs/toy")
    assert run("train", "vae", "--preset", "toy", "--budget", "1h30m", "--resume") == 0
    (order, how), = asked
    assert order == ("vae", "toy", 5400, "runs/toy") and how["resume"] and how["level"] == "calm"
    assert run("train", "all", "--out", "elsewhere") == 0 and asked[1][0] == ("all", "tiny", 3600, "elsewhere")


def test_each_suite_of_eval_is_handed_what_was_asked(monkeypatch, capsys):
    from msk import ablations, evaluate, hands, real, words
    asked = []
    for room in (ablations, evaluate, hands, real, words):
        monkeypatch.setattr(room, "run", lambda *order, _room=room, **how: asked.append((_room, order, how)))
    assert run("eval") == run("eval", "--suite", "hands", "--frames", 1440, "--strips", "out") == 0
    assert run("eval", "--suite", "text", "--clips", 3, "--json", "t.json") == 0
    assert run("eval", "--suite", "ablations", "--cases", "chunk", "drift", "--frames", 300, "--charts", "out") == 0
    assert [(room, order) for room, order, _ in asked] == [
        (evaluate, ("world", "tiny", 64)), (hands, ("tiny", 8)), (words, ("tiny", 3)), (ablations, ("tiny", 4))]
    assert asked[1][2]["long"] == 1440 and asked[1][2]["strips"] == "out" and asked[2][2]["json_path"] == "t.json"
    assert asked[3][2]["cases"] == ("chunk", "drift") and asked[3][2]["long"] == 300 and asked[3][2]["charts"] == "out"
    assert "--frames is for --suite hands and ablations" in refused(capsys, "eval", "--suite", "text", "--frames", 99)
    assert "world has none" in refused(capsys, "eval", "--strips", "out")
    assert "--charts is for --suite ablations" in refused(capsys, "eval", "--suite", "hands", "--charts", "out")
    assert run("eval", "--cases", "teacher", "vae") == 0 and asked[-1][2]["roles"] == ("teacher", "vae")
    assert run("eval", "--suite", "real", "--material", "mine", "--clips", 2, "--frames", 21) == 0
    assert asked[-1][:2] == (real, ("mine", "tiny", 2, None)) and asked[-1][2]["frames"] == 21
    assert run("eval", "--suite", "hands", "--seed", 1_001_000) == 0 and asked[-1][2]["seed"] == 1_001_000
    assert "real has none" in refused(capsys, "eval", "--suite", "real", "--material", "mine", "--level", "full")
    assert "go together" in refused(capsys, "eval", "--suite", "real")
    assert "go together" in refused(capsys, "eval", "--material", "mine")


def test_options_that_would_do_nothing_are_refused(capsys):
    assert "--teacher takes no --fp8" in refused(capsys, "bench", "--teacher", "--fp8")
    assert "--rows takes no --teacher and no --json" in refused(capsys, "bench", "--rows", "r", "--teacher", "--json", "f")
    assert "--together and --steps is for --teacher" in refused(capsys, "bench", "--together", "--steps", 25)
    assert "--offload takes no --fp8" in refused(capsys, "bench", "--offload", 6, "--fp8")
    assert "--solver is for --suite world, and hands" in refused(capsys, "eval", "--suite", "hands", "--solver", "unipc")
    for option, value in (("--text-scale", 2), ("--steps", 25), ("--solver", "unipc")):
        assert "are for --teacher" in refused(capsys, "generate", "--image", "a.png", option, value)
    assert "add --tracks" in refused(capsys, "generate", "--image", "a.png", "--whole")


def test_a_teacher_takes_other_steps_and_another_solver(toy, tmp_path, monkeypatch):
    from msk import evaluate
    seen, plain = [], generate.sample

    def noted(*given, **how):
        seen.append((len(how["levels"]), how["solver"]))
        yield from plain(*given, **how)

    monkeypatch.setattr(generate, "sample", noted)
    monkeypatch.setattr(evaluate, "sample", noted)
    words = "generate", "--model", toy.kit, "--image", toy.picture, "--frames", 5, "--teacher", "--out", tmp_path / "a.gif"
    assert run(*words, "--steps", 3, "--solver", "unipc") == 0
    assert run(*words) == 0
    assert run("eval", "--model", toy.kit, "--clips", 1, "--cases", "teacher", "--steps", 2, "--solver", "unipc") == 0
    assert seen == [(3, "unipc"), (6, "euler"), (2, "unipc")]
    with pytest.raises(ValueError, match="the teacher's, and it is not measured"):
        evaluate.run("world", toy.kit, 1, roles=("student",), steps=3)


def test_blocks_that_wait_are_asked_for(monkeypatch, capsys, toy):
    monkeypatch.setenv("MSK_OFFLOAD", "")
    words = "bench", "--model", "wan2.2-5b", "--random-weights", "--device", "cpu", "--offload"
    assert "MSK_OFFLOAD=31: use 0: there are 2 blocks" in refused(capsys, *words, 31)           # of the toy's two
    assert "leave out --offload" in refused(capsys, "bench", "--model", toy.kit, "--device", "cpu", "--offload", 3)


def test_debug_shows_where(monkeypatch):
    monkeypatch.setenv("MSK_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("tracks", "nowhere.npz")
