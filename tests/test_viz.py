"""Pictures show what they say: the right frames, the right places, and nothing where nothing is drawn."""
import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from msk import viz
from msk.attention import chunk_mask
from msk.config import PRESETS
from msk.motion import TrackHead
from msk.tracks import Tracks


def grey(level, t=1, size=16):
    return torch.full((t, 3, size, size), level)


def test_a_strip_shows_the_first_and_the_last_frame():
    frames = torch.cat([grey(0.0), grey(0.3, 7), grey(1.0)])
    made = viz.strip(frames, count=3, zoom=2)
    assert made.size == (3 * 32 + 2 * viz.GAP, 32)
    assert made.getpixel((0, 0)) == (0, 0, 0) and made.getpixel((95, 5)) == (255, 255, 255)
    assert made.getpixel((50, 5)) == (76, 76, 76)


def test_a_label_is_never_cut_off():
    narrow = viz.strip(grey(0.5), count=1)
    page = viz.grid([narrow], ["a label that is longer than its picture is wide"])
    assert page.width > narrow.width and page.crop((narrow.width, 0, page.width - 1, viz.LINE)).getextrema()[0][0] < 128
    assert page.crop((page.width - 1, 0, page.width, page.height)).getextrema()[0][0] > 200


def test_a_moving_clip_plays_wherever_html_is_shown_and_leaves_a_picture_elsewhere():
    clip = torch.rand(7, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    shown = viz.Moving(clip, fps=12, width=96, about='"a" & b')
    packed = re.search(r'src="data:image/webp;base64,([^"]+)"', shown._repr_html_())[1]
    with Image.open(io.BytesIO(base64.b64decode(packed))) as played:
        assert (played.n_frames, played.size, played.info["loop"]) == (7, (24, 16), 0)
    assert 'width="96"' in shown._repr_html_() and "&quot;a&quot; &amp; b" in shown._repr_html_()
    assert Image.open(io.BytesIO(shown._repr_jpeg_())).size == (24, 16)


def test_a_grid_holds_every_strip_under_its_label():
    strips = [viz.strip(grey(level, 4), count=4) for level in (0.2, 0.6)]
    page = viz.grid(strips, labels=["teacher", "student"])
    assert page.width == strips[0].width
    assert page.height == 2 * (strips[0].height + viz.LINE) + viz.GAP
    assert page.getpixel((3, page.height - 3)) == (153, 153, 153)


def test_clips_stand_side_by_side_and_the_shorter_one_waits():
    both = viz.side_by_side(grey(0.1, 2), grey(0.9, 5))
    assert both.shape == (5, 3, 16, 32 + viz.GAP)
    assert both[4, 0, 0, 0].item() == pytest.approx(0.1) and both[4, 0, 0, -1].item() == pytest.approx(0.9)


def test_a_track_is_drawn_where_it_is_and_a_hidden_one_not_at_all():
    frames = grey(0.5, 3, 32)
    xy = torch.tensor([[[8.0, 20.0]], [[12.0, 20.0]], [[16.0, 20.0]]])
    shown = viz.draw_tracks(frames, Tracks.of(xy))
    changed = (shown[2] - frames[2]).abs().sum(0) > 0.1
    rows, columns = changed.nonzero().unbind(1)
    assert changed[20, 16] and 17 <= rows.min() and rows.max() <= 22 and columns.max() <= 18
    assert changed[20, 10]                                                      # the way it came
    hidden = viz.draw_tracks(frames, Tracks.of(xy).hide(slice(None)))
    torch.testing.assert_close(hidden, frames, atol=1 / 255, rtol=0)


def test_the_frames_of_a_strip_are_drawn_alone_as_they_are_among_all():
    frames, tracks = grey(0.5, 9, 32), Tracks.drag([[8, 20], [24, 12]], 9)
    every, few = viz.draw_tracks(frames, tracks), viz.draw_tracks(frames, tracks, count=3)
    assert torch.equal(few, every[[0, 4, 8]])
    assert viz.strip(few).tobytes() == viz.strip(every, 3).tobytes()


def test_an_error_is_a_line_from_where_a_point_should_be_to_where_it_is_found():
    tracks, found = Tracks.of(torch.tensor([[[20., 40.]], [[20., 40.]]])), torch.tensor([[[[20., 40.]], [[50., 40.]]]])
    right, wrong = ((shown - 0.5).abs().sum(0) > 0.1 for shown in viz.draw_errors(grey(0.5, 2, 64), tracks, found))
    assert not right[40, 25:].any() and wrong[40, 20:50].all() and not wrong[40, 55:].any()
    assert wrong[:14].any()                                                     # and how long it is
    hidden = viz.draw_errors(grey(0.5, 2, 64), tracks.hide(slice(None)), found)
    torch.testing.assert_close(hidden, grey(0.5, 2, 64), atol=1 / 255, rtol=0)
    with pytest.raises(ValueError, match="over these frames"):
        viz.draw_errors(grey(0.5, 3, 64), tracks, found)


def test_a_motion_map_is_white_where_nothing_is_drawn():
    preset = PRESETS["toy"]
    tracks = Tracks.of(torch.tensor([[[4.0, 4.0], [28.0, 28.0]]]).expand(5, -1, -1))
    with torch.no_grad():
        motion = TrackHead(preset.tracks, preset.geometry)(tracks)
    colours = viz.motion_colours(motion)
    white = (colours == 1).all(dim=1)
    assert colours.shape == (2, 3, 4, 4)
    assert not white[:, 0, 0].any() and not white[:, 3, 3].any() and white[:, 0, 3].all()
    assert (viz.motion_colours(torch.zeros_like(motion)) == 1).all()


def test_charts_are_pictures():
    pytest.importorskip("matplotlib")
    mask = chunk_mask(frames=6, tokens_per_frame=2, chunk=3, sink=1, window=1)
    weights = torch.rand(24, 24).softmax(-1)
    cells = {(w_t, w_m): viz.image(torch.rand(3, 8, 8)) for w_t in (0.0, 3.0) for w_m in (0.0, 1.5, 3.0)}
    losses = {"teacher": [3.0, 2.0, 1.0], "student": [1.0]}
    for made in (viz.show_mask(mask, chunk=6), viz.attention_map(weights, (3, 4), query=13), viz.guidance_grid(cells),
                 viz.guidance_grid({(3.0, 1.5): cells[3.0, 1.5]}, notes={(3.0, 1.5): "EPE 3"}), viz.loss_curves(losses)):
        assert isinstance(made, Image.Image) and made.getextrema()[0][0] < made.getextrema()[0][1]


def test_a_chart_has_no_empty_rows_above_or_below():
    pytest.importorskip("matplotlib")
    wide = viz.image(torch.rand(3, 8, 80))
    for made in (viz.panels({"a": wide, "b": wide}), viz.plane({"a": [torch.randn(9, 2)]}), viz.bars({"a": 1.0})):
        ink = np.flatnonzero((np.asarray(made) < 255).any(axis=(1, 2)))
        assert ink[0] <= 6 and made.height - 1 - ink[-1] <= 6


def test_what_others_report_has_a_colour_of_its_own():
    pytest.importorskip("matplotlib")
    counted = {c for _, c in viz.bars({"ours": 2.0, "theirs": 3.0}, others=["theirs"]).getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= counted


def test_a_mask_is_dark_where_nobody_may_look():
    pytest.importorskip("matplotlib")
    made = viz.show_mask(torch.tensor([[True, False], [True, True]]))
    light, dark = (253, 231, 55), (0, 34, 77)                                   # the ends of cividis
    counted = {c: n for n, c in made.getcolors(1 << 20)}
    near = lambda end: sum(n for c, n in counted.items() if max(abs(a - b) for a, b in zip(c, end)) < 40)
    assert near(light) / near(dark) == pytest.approx(3, rel=0.1)


def test_bad_clips_are_one_sentence():
    with pytest.raises(ValueError, match="give \\[T, 3, H, W\\]"):
        viz.strip(torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match="resample\\(3\\)"):
        viz.draw_tracks(grey(0.5, 3), Tracks.empty(frames=2))
    with pytest.raises(ValueError, match="at least one"):
        viz.grid([])


def test_zoomed_tracks_lie_where_they_did():
    xy = torch.tensor([[[8.0, 20.0]]])
    shown = viz.draw_tracks(grey(0.5, 1, 32), Tracks.of(xy), zoom=3)
    changed = ((shown[0] - 0.5).abs().sum(0) > 0.1).nonzero().float()
    assert shown.shape == (1, 3, 96, 96) and (changed.mean(0) - torch.tensor([60.0, 24.0])).abs().max() < 1.5


def test_rows_of_different_height_stand_close():
    low, high = viz.strip(grey(0.2, 1, 8)), viz.strip(grey(0.6, 1, 40))
    assert viz.grid([low, high]).height == 8 + 40 + viz.GAP


def test_more_charts_are_pictures():
    pytest.importorskip("matplotlib")
    table, picture = torch.rand(3, 3), viz.image(torch.rand(3, 8, 8))
    dots = torch.randn(20, 2)
    tracks = Tracks.of(torch.rand(6, 4, 2) * 40).hide(range(2, 4))
    for made in (viz.panels({"a": picture, "b": picture}),
                 viz.curves({"a": [1, 2], "b": (table[0], table[1])}, marks={"m": .5}),
                 viz.bars({"a": 1.0, "b": 2.0}), viz.matrices({"a": table, "b": table}, every=2, numbers=".1f"),
                 viz.plane({"a": [dots, torch.randn(3, 20, 2), (dots, dots)]}), viz.score(tracks, (32, 32)),
                 viz.attention_map(torch.rand(12, 36).softmax(-1), (3, 4), query=5, names=["sink", "window", "now"])):
        assert isinstance(made, Image.Image) and made.getextrema()[0][0] < made.getextrema()[0][1]


def test_a_live_picture_is_drawn_again_and_leaves_one_without_a_front_end():
    pytest.importorskip("ipywidgets")
    drawn = []

    def draw(x=2, name="a", scale=1.5):
        drawn.append((x, name))
        return viz.image(torch.full((3, 4, 4), x / 10))

    made = viz.live(draw, x=(0, 9), name=["a", "b"], scale=[0.0, 1.5])
    assert "Slider" in type(made.children[2]).__name__ and made.children[2].value == 1.5
    assert "image/png" in made._repr_mimebundle_()[0]
    made.children[0].value = 5
    made.children[1].value = "b"
    assert drawn == [(2, "a"), (5, "a"), (5, "b")]
