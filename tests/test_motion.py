import pytest
import torch
import torch.nn.functional as F

from msk.config import PRESETS, Geometry, TrackConfig
from msk.motion import TrackHead, carry, draw_ids, embed_ids, fill_in, splat, spread, turned_back, warp
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


# -- what tracks carry of the picture ----------------------------------------------------------------------------------

def noise_picture(batch=1, seed=1):
    return torch.rand(batch, 3, G.height, G.width, generator=torch.Generator().manual_seed(seed))


def plain_warp(tracks, picture, reach):
    """Block by block, and pixel by pixel with whole-pixel motion, as the docstring says; NaN: to be filled from around."""
    b, t, n, _ = tracks.xy.shape
    frames = picture[:, None].repeat(1, t, 1, 1, 1)
    near = torch.zeros(b, t, 8, 12)
    apart = lambda a, z: sum((p - q) ** 2 for p, q in zip(a, z)) ** 0.5
    for i in range(b):
        began = {j: tracks.xy[i, 0, j] for j in range(n) if tracks.visible[i, 0, j]}
        reaches = {j: min([2 * reach, *(max(reach, (a - z).norm().item()) for k, z in began.items() if k != j)])
                   for j, a in began.items()}
        for f in range(t):
            for row in range(8):
                for column in range(12):
                    best, winner = float("inf"), None
                    for j in range(n):
                        if tracks.visible[i, f, j] and tracks.visible[i, 0, j]:
                            x, y = tracks.xy[i, f, j].tolist()
                            distance = ((x - 4 * column - 2) ** 2 + (y - 4 * row - 2) ** 2) ** 0.5
                            if distance < best:
                                best, winner = distance, j
                    carried = winner is not None and best < reaches[winner]
                    way = tracks.xy[i, f, winner] - tracks.xy[i, 0, winner] if carried else torch.zeros(2)
                    dx, dy = way.round().int().tolist()
                    near[i, f, row, column] = 1 - best / reaches[winner] if carried else 0
                    for y in range(4 * row, 4 * row + 4):
                        for x in range(4 * column, 4 * column + 4):
                            frames[i, f, :, y, x] = picture[i, :, min(max(y - dy, 0), 31), min(max(x - dx, 0), 47)]
                    source = [min(max(int((4 * k + 2 - d) // 4), 0), most) * 4 + 2
                              for k, d, most in ((column, dx, 11), (row, dy, 7))]
                    owner = min(began, key=lambda j: apart(began[j].tolist(), source), default=None)
                    if owner is None or apart(began[owner].tolist(), source) >= reaches[owner]:
                        continue
                    left = apart((tracks.xy[i, f, owner] - began[owner]).tolist(), (dx, dy))
                    were = apart(began[owner].tolist(), began[winner].tolist() if carried else source)
                    if left > max(4, were):
                        near[i, f, row, column] /= 4
                        frames[i, f, :, 4 * row:4 * row + 4, 4 * column:4 * column + 4] = float("nan")
    return frames, near


def test_a_block_of_pixels_goes_with_the_track_nearest_to_its_centre(close):
    tracks, picture = some(frames=3, count=12), noise_picture(2)
    start = tracks.xy[:, :1]
    way = 2 * ((tracks.xy - start) / 2).round() + 1                 # odd, so that no block comes from between two others
    way[:, 0] = 0
    tracks = Tracks(start + way, tracks.visible, tracks.ids)
    (got, near), (plain, plainly_near) = warp(tracks, picture, 12.), plain_warp(tracks, picture, 12.)
    close(near, plainly_near, atol=1e-4)
    gone = plain.isnan()
    close(torch.where(gone, 0., got), torch.where(gone, 0., plain), atol=1e-4)
    assert 0.02 < gone.float().mean() < 0.5


def test_where_a_thing_was_there_is_ground_once_it_has_left(close):
    """A bright square on a ground that darkens to the right; its points leave, those about it stay."""
    ground = (torch.arange(48) / 96).expand(1, 3, 32, 48)
    picture = ground.clone()
    picture[..., 12:20, 4:12] = 1
    thing = torch.tensor([[6., 14.], [10., 14.], [6., 18.], [10., 18.]])
    rest = torch.tensor([[8., 4.], [8., 28.], [20., 16.]])
    tracks = Tracks.of(torch.cat([thing, rest]).expand(3, -1, -1).clone())
    tracks.xy[0, 1:, :4, 0] += torch.tensor([[2.], [28.]])
    frames, near = warp(tracks, picture, 12.)
    assert frames[0, 1, :, 13:19, 8:12].min() > .95, "a nudge uncovers nothing"
    assert (frames[0, 2, :, 12:20, 4:12] - ground[0, :, 12:20, 4:12]).abs().max() < .1
    assert 0 < near[0, 2, 3, 1] < near[0, 0, 3, 1] / 2
    close(frames[0, 2, :, 12:20, 32:40], picture[0, :, 12:20, 4:12])
    left = tracks.hide(slice(2, 3))
    left.visible[0, :, 4:] = True
    assert (warp(left, picture, 12.)[0][0, 2, :, 12:20, 4:12] - ground[0, :, 12:20, 4:12]).abs().max() < .1, "seen or not"


def test_a_picture_that_went_away_as_a_whole_is_not_black():
    tracks = at([16.0, 16.0], frames=2)
    tracks.xy[:, 1] += 200
    white = torch.ones(1, 3, G.height, G.width)
    frames, near = warp(tracks, white, 48.)
    assert (frames == 1).all() and not near[:, 1].any()


def test_a_hole_is_filled_from_its_rim_and_what_is_known_stays(close):
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    known = torch.ones(2, 1, 9, 14, dtype=torch.bool)
    close(fill_in(x, known), x)
    known[0, :, 2:8, 3:9] = False
    filled = fill_in(x, known)
    assert torch.equal(filled.where(known, x), x) and torch.equal(filled[1], x[1])
    assert filled.min() >= x.min() and filled.max() <= x.max()
    even = torch.full_like(x, .3).where(known, torch.tensor(9.))
    close(fill_in(even, known), torch.full_like(x, .3))


def test_a_picture_whose_points_all_move_alike_moves_with_them(close):
    picture, tracks = noise_picture(), Tracks.grid(G, 8, frames=2)
    tracks.xy[:, 1] += torch.tensor([16.0, -8.0])
    frames, near = warp(tracks, picture, 12.)
    close(frames[:, 0], picture)
    close(frames[:, 1, :, :24, 16:], picture[..., 8:, :32], atol=1e-4)
    assert (near[:, 0] > 0.7).all() and (near[:, 1, :, :2] == 0).all()         # nobody went to the left edge


def test_a_track_that_is_alone_reaches_twice_as_far_as_one_with_a_neighbour():
    alone, pair = Tracks.of(torch.tensor([[[8., 16.]]])), Tracks.of(torch.tensor([[[8., 16.], [8., 22.]]]))
    reached = [warp(tracks, noise_picture(), 12.)[1][0, 0, 4].count_nonzero().item() for tracks in (alone, pair)]
    assert reached == [8, 5]                        # blocks of four pixels in its row, the left edge cut off


def test_in_a_large_picture_of_many_tracks_distances_keep_their_digits(close):
    """Tracks a tenth of a pixel beside the centre of every eighth block, each reaching twice 12 pixels."""
    y, x = torch.meshgrid(torch.arange(2., 480, 32), torch.arange(2.1, 832, 32), indexing="ij")
    tracks = Tracks.of(torch.stack([x, y], dim=-1).flatten(0, 1)[None, None])
    _, near = warp(tracks, torch.zeros(1, 3, 480, 832), 12.)
    close(near[0, 0, ::8, ::8], torch.full((15, 26), 1 - .1 / 24), atol=1e-5)


def test_half_a_pixel_is_half_a_pixel(close):
    ramp = (torch.arange(48) / 48).expand(1, 3, 32, 48)
    tracks = Tracks.grid(G, 8, frames=2)
    tracks.xy[:, 1, :, 0] += 0.5
    close(warp(tracks, ramp, 12.)[0][:, 1, :, :, 1:], ramp[..., 1:] - 0.5 / 48, atol=1e-5)


def turning(degrees, size, to):
    """Points in the middle of each block of a picture of 32 x 48, where they are now (`to`), and where they were before all
    turned about the middle and grew."""
    angle = torch.tensor(degrees).deg2rad()
    turn = size * torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    middle = torch.tensor([24., 16.])
    return (to - middle) @ torch.linalg.inv(turn).T + middle


BLOCKS = torch.cartesian_prod(torch.arange(2., 32, 4), torch.arange(2., 48, 4)).flip(-1)


@pytest.mark.parametrize("degrees, size", [(0., 1.), (4., 1.1), (35., 1.45), (-80., 0.9), (180., 1.)])
def test_what_turns_and_grows_shows_no_blocks(degrees, size, close):
    """On a slope in x and y a pixel says where it came from."""
    y, x = torch.meshgrid(torch.arange(32) + .5, torch.arange(48) + .5, indexing="ij")
    pixel = torch.stack([x, y], dim=-1)
    came = turning(degrees, size, BLOCKS)
    frames, _ = warp(Tracks.of(torch.stack([came, BLOCKS])), (pixel / torch.tensor([48., 32.])).permute(2, 0, 1)[None], 12.)
    told = frames[0, 1].permute(1, 2, 0) * torch.tensor([48., 32.])
    want = turning(degrees, size, pixel)
    inner = ((want > 4) & (want < torch.tensor([44., 28.]))).all(dim=-1) & ((pixel > 4) & (pixel < 28)).all(dim=-1)
    close(told[inner], want[inner], atol=2e-3)
    assert inner.sum() > 100


def test_a_track_turns_as_those_about_it_do_and_not_as_those_beyond_an_edge(close):
    """The left half turns by a quarter, the right one stays; a few in each have gone astray."""
    at = BLOCKS[BLOCKS[:, 0] != 22]
    left = at[:, 0] < 24
    now = torch.where(left[:, None], turning(90., 1., at), at)
    astray = torch.rand(len(at), generator=torch.Generator().manual_seed(0)) < .1
    now = now + 9. * astray[:, None]
    a = turned_back(now[None], at, torch.ones(1, len(at), dtype=torch.bool), torch.full((len(at),), 14.))[0]
    want = torch.where(left[:, None], torch.tensor([0., 1.]), torch.tensor([1., 0.]))
    right = ((a - want).norm(dim=-1) < .05) | astray
    assert right.float().mean() > .97


def test_what_is_heard_of_too_few_or_of_none_is_not_believed(close):
    at = torch.tensor([[10., 10.], [14., 10.], [10., 14.], [14., 14.]])
    now, none, far = turning(90., 1., at)[None], torch.tensor([1., 0.]), torch.full((4,), 14.)
    turn = lambda known=4, within=far, count=4: turned_back(now[:, :count], at[:count], torch.arange(count)[None] < known,
                                                            within[:count])
    close(turn(), torch.tensor([0., 1.]).expand(1, 4, 2))
    for few in (turn(known=3), turn(within=far / 4), turn(count=3), turn(count=1)):
        close(few, none.expand_as(few))


def test_at_an_edge_a_block_goes_by_itself_and_elsewhere_pixels_go_in_between(close):
    way, still = torch.zeros(1, 6, 6, 2), torch.tensor([1., 0.]).expand(1, 6, 6, 2)
    way[:, :, 3:, 0] = 4
    close(spread(way, still, 4), way.repeat_interleave(4, 1).repeat_interleave(4, 2))
    way[:, :, 3:, 0] = 3.9
    between = spread(way, still, 4)[0, 0, :, 0]
    close(between[9:15], torch.tensor([0.] + [3.9 * k / 8 for k in (1, 3, 5, 7)] + [3.9]))


def test_a_track_that_does_not_know_its_origin_carries_nothing(close):
    picture, late = noise_picture(), at([20.0, 12.0], frames=4).hide(slice(0, 1))
    frames, near = warp(late, picture, 12.)
    assert torch.equal(frames[0, 3], frames[0, 0]) and not near.any()
    told = Tracks(late.xy, late.visible, late.ids, torch.tensor([[[4.0, 4.0]]]))
    frames, near = warp(told, picture, 12.)
    assert near[:, 1:].any() and not near[:, 0].any()
    close(frames[0, 1, :, 10:14, 18:22], picture[0, :, 2:6, 2:6], atol=1e-4)


def grouped(frames):
    """An encoder that can be seen through: the mean colour of each cell and group of four."""
    return F.avg_pool2d(frames.flatten(0, 1), 8).unflatten(0, (len(frames), -1, 4)).mean(dim=2)


def test_what_is_carried_is_zero_where_no_track_is_near(close):
    tracks, picture = at([12.0, 12.0], frames=9), noise_picture()
    carried = carry(tracks, picture, grouped, G)
    assert carried.shape == (1, 3, 3 + 4, 4, 6)
    silent = (carried[:, :, 3:] == 0).all(dim=2)
    assert silent[..., 5].all() and not silent[:, :, 1, 1].any()
    assert (carried.transpose(1, 2)[:, :, silent[0]] == 0).all()
    close(carried[:, :, :3, 1, 1], F.avg_pool2d(picture, 8)[:, None, :, 1, 1].expand(-1, 3, -1), atol=1e-5)
    nothing = carry(tracks.hide(slice(None)), picture, grouped, G)
    assert nothing.shape == carried.shape and not nothing.any()


def test_the_map_is_ids_then_what_is_carried_and_chunks_make_the_same_of_it(close):
    head = TrackHead(config("bilinear", carry=3), G)
    tracks, picture = some(frames=9), noise_picture(2)
    told = Tracks(tracks.xy, tracks.visible, tracks.ids, tracks.origins())

    def read(tracks, start=True):
        return head(tracks, start, carry(tracks, picture, grouped, G, start))

    whole = read(tracks)
    assert whole.shape == (2, 3, 5 + 3 + 4, 4, 6) == (2, 3, head.config.width(4), 4, 6)
    close(torch.cat([read(told.frames(0, 5)), read(told.frames(5, 9), start=False)], dim=1), whole)
    close(head(tracks)[:, :, :5], whole[:, :, :5])
    assert (head(tracks)[:, :, 5:] == 0).all()
    with pytest.raises(ValueError, match=r"came as \[2, 3, 8, 4, 6\], but these tracks ask for \[2, 3, 7, 4, 6\]"):
        head(tracks, carried=torch.zeros(2, 3, 8, 4, 6))


def test_drawn_tracks_have_a_colour_each_and_hidden_ones_none():
    from msk.motion import drawn
    geometry = PRESETS["toy"].geometry
    tracks = Tracks.of([[[4.0, 4.0], [20.0, 9.0], [50.0, 9.0]]] * 2, ids=[7, 5000, 3]).hide(slice(1, 2))
    frames = drawn(tracks, geometry)
    assert frames.shape == (1, 2, 3, geometry.height, geometry.width) and not frames[0, 1].any()
    lit = frames[0, 0].any(dim=0)
    assert lit.sum() == 18 and lit[3:6, 3:6].all() and lit[8:11, 19:22].all()
    assert (frames[0, 0, :, 4, 4] - frames[0, 0, :, 9, 20]).abs().max() > 0.05
