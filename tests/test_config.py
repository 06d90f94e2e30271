import json
from dataclasses import replace

import pytest

from msk.config import PRESETS, DiTConfig, Geometry, Preset

G = Geometry(96, 96)


def test_the_first_latent_frame_is_one_pixel_frame_and_each_later_one_four():
    assert [G.pixel_frames(f) for f in (1, 2, 3, 21)] == [1, 5, 9, 81]
    assert all(G.latent_frames(G.pixel_frames(f)) == f for f in range(1, 40))


def test_chunks_tile_the_video_without_gap_or_overlap():
    spans = [G.span(3 * i, 3) for i in range(5)]
    assert spans[0] == (0, 9)
    assert all(stop - start == 12 for start, stop in spans[1:])
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))


def test_frames_that_fill_no_latent_frame_say_what_would():
    with pytest.raises(ValueError, match="12 frames.*use 9 or 13"):
        G.latent_frames(12)


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="height 100 .* multiple of 8"):
        Geometry(100, 96)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_agree_with_themselves(name):
    preset = PRESETS[name]
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    assert preset.vae.stride == preset.geometry.stride and preset.vae.time_stride == preset.geometry.time_stride
    assert preset.vae.latent_channels == preset.dit.latent_channels
    assert preset.tracks.width(preset.geometry.time_stride) == preset.dit.motion_channels
    assert preset.tracks.carry in (0, preset.vae.latent_channels)
    assert preset.dit.dim % preset.dit.heads == 0 and (preset.dit.dim // preset.dit.heads) % 2 == 0
    assert preset.text is None or preset.text.dim == preset.dit.text_dim
    assert ("image" in preset.dit.inputs) == bool(preset.dit.image_channels)


def test_an_unknown_word_in_a_config_is_named():
    data = PRESETS["toy"].to_dict()
    data["dit"]["widht"] = 3
    with pytest.raises(ValueError, match="DiTConfig does not know widht"):
        Preset.from_dict(data)


def test_sizes_are_values():
    assert replace(PRESETS["toy"].dit) == PRESETS["toy"].dit and hash(PRESETS["toy"])
    assert isinstance(PRESETS["toy"].dit, DiTConfig)
