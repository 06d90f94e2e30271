import pytest
import torch

from msk.config import PRESETS, Geometry, TrackConfig
from msk.motion import TrackHead, draw_ids, embed_ids, splat
from msk.tracks import Tracks

G = Geometry(32, 48)                # 4 x 6 cells
MODES = "floor", "round", "bilinear"


def config(mode="floor", **changes):
    return TrackConfig(id_dim=16, hidden=12, channels=5, splat=mode, **changes)


def at(*points, ids=None, frames=1):
    xy = torch.tensor(points, dtype=torch.float32)
    return Tracks.of(xy.expand(frames, -1, -1).clone(), ids=ids)


def some(frames, count=9, batch=2, seed=0):
    """Points that wander over the edge, some hidden."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(batch, frames, count, 2, generator=g) * torch.tensor([60.0, 44.0]) - 6
    return Tracks(xy, torch.rand(batch, frames, count, generator=g) < 0.7, draw_ids(batch, count, 500, g))


def plain_splat(tracks, mode, dim=16):
    """One point at a time, as the formulas say."""
    b, t, n, _ = tracks.xy.shape
    out = torch.zeros(b, t, dim, 4, 6)
    for i in range(b):
        for f in range(t):
            for j in range(n):
                x, y = tracks.xy[i, f, j].tolist()
                phi = embed_ids(tracks.ids[i, j], dim)
                if not tracks.visible[i, f, j] or (mode != "round" and not (0 <= x < 48 and 0 <= y < 32)):
                    continue
                if mode == "floor":
                    out[i, f, :, int(y // 8), int(x // 8)] += phi
                elif mode == "round":
                    out[i, f, :, round(min(max(y / 32, 0), 1) * 3), round(min(max(x / 48, 0), 1) * 5)] += phi
                else:
                    for row in range(4):
                        for column in range(6):
                            wy, wx = 1 - abs(y / 8 - 0.5 - row), 1 - abs(x / 8 - 0.5 - column)
                            if wy > 0 and wx > 0:
                                out[i, f, :, row, column] += wy * wx * phi
    return out


def test_ids_are_sinusoids_of_fixed_length(close):
    e = embed_ids(torch.tensor([0, 7, 16383]), 64)
    close(e.square().sum(-1), torch.full((3,), 32.0))
    close(e[0], torch.cat([torch.ones(32), torch.zeros(32)]))
    close(e[1, 3], torch.tensor(7 * 10_000 ** (-3 / 32)).cos())
    close(e[1, 35], torch.tensor(7 * 10_000 ** (-3 / 32)).sin())


def test_ids_are_drawn_without_replacement_and_by_seed():
    ids = draw_ids(3, 400, 500, torch.Generator().manual_seed(1))
    assert ids.shape == (3, 400) and ids.min() >= 0 and ids.max() < 500
    assert all(row.unique().numel() == 400 for row in ids) and not torch.equal(ids[0], ids[1])
    assert torch.equal(ids, draw_ids(3, 400, 500, torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match="600 tracks need 600 different ids"):
        draw_ids(1, 600, 500)


@pytest.mark.parametrize("mode", MODES)
def test_splatting_is_what_the_formula_says(mode, close):
    tracks = some(5)
    close(splat(tracks, G, config(mode)), plain_splat(tracks, mode))


def test_a_visible_track_stamps_its_id_in_its_cell_and_a_hidden_one_stamps_nothing(close):
    tracks = at([17.0, 9.0], ids=[[42]])
    grid = splat(tracks, G, config())
    close(grid[0, 0, :, 1, 2], embed_ids(torch.tensor(42), 16))
    grid[0, 0, :, 1, 2] = 0
    assert grid.abs().max() == 0
    for mode in MODES:
        assert splat(tracks.hide(slice(None)), G, config(mode)).abs().max() == 0


@pytest.mark.parametrize("mode", ["floor", "bilinear"])
def test_a_point_out_of_the_frame_leaves_no_mark(mode):
    for point in ([-0.1, 5], [48, 5], [5, -0.1], [5, 32], [1e9, 1e9], [float("inf"), 3]):
        tracks = Tracks(torch.tensor([[[point]]]), torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[1]]))
        assert splat(tracks, G, config(mode)).abs().max() == 0


@pytest.mark.parametrize("mode", MODES)
def test_where_two_tracks_meet_they_add(mode, close):
    a, b = at([20.0, 20.0], ids=[[3]]), at([20.0, 20.0], ids=[[400]])
    close(splat(a.concat(b), G, config(mode)), splat(a, G, config(mode)) + splat(b, G, config(mode)))


def test_bilinear_says_where_in_the_cell_a_point_is(close):
    phi = embed_ids(torch.tensor(0), 16)
    middle, edge = splat(at([20.0, 12.0]), G, config("bilinear")), splat(at([24.0, 12.0]), G, config("bilinear"))
    close(middle[0, 0, :, 1, 2], phi)                   # a cell's centre is all its own
    close(edge[0, 0, :, 1, 2], phi / 2)                 # its border is shared
    close(edge[0, 0, :, 1, 3], phi / 2)


def test_round_goes_to_the_even_cell_at_the_half(close):
    grid = splat(at([48 * 0.5, 0.0]), G, config("round"))      # 0.5 * 5 = 2.5 -> 2
    assert grid[0, 0].abs().sum((0, 1)).nonzero().tolist() == [[2]]


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'nearest' is not known"):
        splat(at([1.0, 1.0]), G, config("nearest"))


# the head

def head(**changes):
    torch.manual_seed(0)
    return TrackHead(config(**changes), G)


@pytest.mark.parametrize("mode", MODES)
def test_the_head_is_pack_then_convolve(mode, close):
    """Dense splat, frame 0 four times, channel-major packing, Conv3d, SiLU, Conv3d: the slow plain way."""
    net, tracks = head(mode=mode), some(9)
    dense = splat(tracks, G, net.config)                                    # [B, 9, D, h, w]
    dense = torch.cat([dense[:, :1].expand(-1, 3, -1, -1, -1), dense], 1)
    packed = dense.unflatten(1, (3, 4)).permute(0, 3, 2, 1, 4, 5).flatten(1, 2)     # [B, D * 4, F, h, w]
    want = net.convs[1](torch.nn.functional.silu(net.convs[0](packed))).transpose(1, 2)
    close(net(tracks), want)


@pytest.mark.parametrize("mode", MODES)
def test_no_track_drawn_is_a_zero_map(mode):
    net = head(mode=mode)
    for nothing in (Tracks.empty(2, 9), some(9).hide(slice(None))):
        out = net(nothing)
        assert out.shape == (2, 3, 5, 4, 6) and out.abs().max() == 0


def test_each_chunk_can_be_read_alone(close):
    net, tracks = head(mode="bilinear"), some(33)
    whole = net(tracks)
    parts = [net(tracks.frames(*G.span(3 * i, 3)), start=i == 0) for i in range(3)]
    close(torch.cat(parts, 1), whole)


def test_tracks_four_frames_later_are_a_map_one_latent_frame_later(close):
    net, tracks = head(), some(17)
    late = Tracks(torch.cat([tracks.xy[:, :1].expand(-1, 4, -1, -1), tracks.xy], 1)[:, :17],
                  torch.cat([tracks.visible[:, :1].expand(-1, 4, -1), tracks.visible], 1)[:, :17], tracks.ids)
    close(net(late)[:, 2:], net(tracks)[:, 1:-1])


def test_the_head_learns_and_ids_do_not():
    net = head(mode="bilinear")
    net(some(9)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert not list(net.buffers())


def test_one_convolution_will_do(close):
    net = TrackHead(TrackConfig(id_dim=16, hidden=0, channels=5), G)
    assert len(net.convs) == 1 and net(some(9)).shape == (2, 3, 5, 4, 6)


def test_frames_that_fill_no_latent_frame_are_refused():
    with pytest.raises(ValueError, match="8 pixel frames .* use 1 \\+ 4 n"):
        head()(some(8))
    with pytest.raises(ValueError, match="9 pixel frames .* use 4 n"):
        head()(some(9), start=False)


def test_drawn_tracks_have_a_colour_each_and_hidden_ones_none():
    from msk.motion import drawn
    geometry = PRESETS["toy"].geometry
    tracks = Tracks.of([[[4.0, 4.0], [20.0, 9.0], [50.0, 9.0]]] * 2, ids=[7, 5000, 3]).hide(slice(1, 2))
    frames = drawn(tracks, geometry)
    assert frames.shape == (1, 2, 3, geometry.height, geometry.width) and not frames[0, 1].any()
    lit = frames[0, 0].any(dim=0)
    assert lit.sum() == 18 and lit[3:6, 3:6].all() and lit[8:11, 19:22].all()
    assert (frames[0, 0, :, 4, 4] - frames[0, 0, :, 9, 20]).abs().max() > 0.05
