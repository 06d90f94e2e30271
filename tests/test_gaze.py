"""Where a model looks while it streams: the same as a plain softmax over the same keys says, and looking changes nothing."""
import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msk import Kit, Stream, dit
from msk.config import PRESETS
from msk.live.gaze import MOST_LAYERS, Gaze
from msk.live.mirror import Mirror
from msk.live.session import Session
from msk.live.widget import knowing
from msk.tracks import Tracks
from tests.test_live import until

GREY = Image.new("RGB", (64, 64), (90, 120, 150))


def toy(**stream) -> Kit:
    preset = PRESETS["toy"]
    return Kit.random(replace(preset, stream=replace(preset.stream, **stream)))


def plain(q, k, sink):
    """Shares of all queries of one call: (sink, window, now)."""
    look = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    own = k.shape[1] - q.shape[1]
    return [look[..., a:b].sum(-1).mean().item() for a, b in ((0, sink), (sink, own), (own, None))]


@pytest.mark.parametrize("stream, sinks", [
    (dict(sink=1, window=1), [0, 1, 1, 1]), (dict(sink=2, window=1), [0, 1, 2, 2]), (dict(sink=0, window=2), [0] * 4),
    (dict(sink=1, window=1, budget=7), [0, 1 / 3, 1 / 3, 1 / 3])])
def test_the_shares_are_those_of_the_sink_the_window_and_the_chunk(stream, sinks, monkeypatch):
    kit, called, attend = toy(**stream), [], dit.attend
    monkeypatch.setattr("msk.attention.shares.__defaults__", (None, 0, 10 ** 6))                # all queries
    one, other, gaze = Stream(kit, "a fish", GREY, seed=1), Stream(kit, "a fish", GREY, seed=1), Gaze(kit)
    for sink in sinks:
        monkeypatch.setattr(dit, "attend", attend)
        unseen = other.step()
        monkeypatch.setattr(dit, "attend", lambda q, k, v, mask=None, kind="self": (
            called.append((q, k)) if kind == "self" else None, attend(q, k, v, mask, kind))[1])
        one.settle()
        called.clear()
        with gaze(one, None, (0.6, 0.3)) as seen:
            made = one.step()
        assert torch.equal(made, unseen)
        blocks, tokens = len(kit.dit.blocks), round(sink * called[0][0].shape[1])
        last = called[-blocks:]                                                                 # the last denoising step
        assert len(called) == one.steps * blocks and [row[0] for row in seen["layers"]] == list(range(blocks))
        for (_, *row), (q, k) in zip(seen["layers"], last):
            assert row == pytest.approx(plain(q, k, tokens), abs=1e-4) and sum(row) == pytest.approx(1, abs=3e-4)
        if not tokens:
            assert "cells" not in seen
            continue
        rows, columns = gaze.rows, gaze.columns
        place = -rows * columns + int(0.3 * rows) * columns + int(0.6 * columns)                # in the last latent frame
        look = torch.stack([(torch.einsum("hd,khd->hk", q[0, place], k[0]) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
                            for q, k in last]).mean(0)[:tokens].reshape(-1, rows, columns).sum(0)
        cells = np.asarray(Image.open(io.BytesIO(base64.b64decode(seen["cells"]))))
        np.testing.assert_allclose(cells[..., 3], 255 * look / look.max(), atol=0.51)


@pytest.mark.parametrize("drawn, passes", [(True, 3), (False, 2)])
def test_under_guidance_it_is_the_last_pass_with_text_and_tracks_that_is_looked_at(drawn, passes, monkeypatch):
    kit, called, attend = toy(), [], dit.attend
    monkeypatch.setattr("msk.attention.shares.__defaults__", (None, 0, 10 ** 6))                # all queries
    monkeypatch.setattr(dit, "attend", lambda q, k, v, mask=None, kind="self": (
        called.append((q, k)) if kind == "self" else None, attend(q, k, v, mask, kind))[1])
    stream, gaze, blocks = Stream(kit, "a fish", GREY, seed=1), Gaze(kit), len(kit.dit.blocks)
    stream.tune(text_scale=3., motion_scale=2.)
    for _ in range(2):
        stream.settle()
        called.clear()
        told = Tracks.drag([[4, 4], [20, 20]], stream.frames_wanted) if drawn else None
        with gaze(stream) as seen:
            stream.step(told)
    assert len(called) == stream.steps * passes * blocks and not kit.dit._forward_pre_hooks
    sink = called[0][0].shape[1]
    for (_, *row), (q, k) in zip(seen["layers"], called[-passes * blocks:][:blocks], strict=True):
        assert row == pytest.approx(plain(q, k, sink), abs=1e-4)


def test_of_many_layers_some_are_looked_at_first_and_last_among_them():
    preset = PRESETS["toy"]
    kit = Kit.random(replace(preset, dit=replace(preset.dit, layers=30)))
    with Gaze(kit)(stream := Stream(kit, "", GREY), 1) as seen:
        stream.step(steps=1)
    assert [row[0] for row in seen["layers"]] == [0, 4, 8, 12, 17, 21, 25, 29] and MOST_LAYERS == 8


def test_a_session_tells_it_chunk_by_chunk_and_only_while_it_is_asked_for():
    kit, told = toy(), []
    with Session(lambda prompt, image, seed: Stream(kit, prompt, image, seed=seed), kit.geometry, **knowing(kit)) as session:
        session.on_event = lambda event: told.append(event) if event["type"] in ("gaze", "chunk") else None
        session.open(GREY)
        session.start()
        until(lambda: len(told) > 3)
        assert {event["type"] for event in told} == {"chunk"}
        session.hear({"type": "gaze", "on": True, "point": -1})
        until(lambda: "gaze" in [event["type"] for event in told])
        at = [event["type"] for event in told].index("gaze")
        assert told[at]["chunk"] == told[at - 1]["chunk"] and len(told[at]["layers"]) == len(kit.dit.blocks)
        session.hear({"type": "gaze", "on": False, "point": -1})
        began = len(told)
        until(lambda: [event["type"] for event in told[began:]][-2:] == ["chunk", "chunk"])


def test_a_mirror_looks_nowhere():
    kit = toy()
    with Gaze(kit)(mirror := Mirror(kit, GREY)) as seen:
        mirror.step()
    assert seen == {}
