import math
from threading import Thread

import pytest
import torch

from msk import attention
from msk.attention import attend, backend, capture, chunk_mask, rope, sees, shares


def plain_rope(x, grid, start=0):
    """One token, one pair at a time: rotate by position * 10000^(-2i / size) of its axis."""
    out, (f, h, w), d = x.clone(), grid, x.shape[-1]
    side = 2 * (d // 6)
    sizes = d - 2 * side, side, side
    for token in range(f * h * w):
        places = start + token // (h * w), token // w % h, token % w
        at = 0
        for place, size in zip(places, sizes):
            for i in range(size // 2):
                angle = place * 10_000 ** (-2 * i / size)
                a, b = x[:, token, :, at], x[:, token, :, at + 1]
                out[:, token, :, at] = a * math.cos(angle) - b * math.sin(angle)
                out[:, token, :, at + 1] = a * math.sin(angle) + b * math.cos(angle)
                at += 2
    return out


def plain_attend(q, k, v, mask=None):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)


def qkv(queries=6, keys=9, dtype=torch.float32, d=24):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 2, d, generator=g).to(dtype) for n in (queries, keys, keys)]


@pytest.mark.parametrize("d, grid, start", [(24, (3, 2, 4), 0), (24, (2, 3, 2), 7), (32, (2, 2, 3), 3), (16, (3, 2, 2), 0)])
def test_rope_turns_each_pair_by_the_tokens_place(d, grid, start, close):
    x = torch.randn(2, math.prod(grid), 2, d)
    close(rope(x, grid, start), plain_rope(x, grid, start))


def test_both_ways_to_turn_agree(close):
    x, grid = torch.randn(1, 24, 2, 24), (2, 3, 4)
    cos, sin, _ = attention.turns(grid, 5, 24, x.device)
    close(torch.addcmul(x * cos, x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sin), rope(x, grid, 5))


def test_only_distances_count(close):
    q, k, v = qkv(8, 8)
    grid = 2, 2, 2
    close(attend(rope(q, grid, 0), rope(k, grid, 0), v), attend(rope(q, grid, 50), rope(k, grid, 50), v))


def test_tables_made_while_streaming_can_be_trained_with():
    attention.turns.cache_clear()
    with torch.inference_mode():
        rope(torch.randn(1, 8, 2, 24), (2, 2, 2))
    x = torch.randn(1, 8, 2, 24, requires_grad=True)
    rope(x, (2, 2, 2)).square().sum().backward()
    assert torch.allclose(x.grad, 2 * x, atol=1e-5)                                 # a rotation keeps lengths


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_of_products(dtype, atol, masked):
    q, k, v = qkv(dtype=dtype)
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else None
    if masked:
        mask[:, 0] = True
    torch.testing.assert_close(attend(q, k, v, mask).float(), plain_attend(q.float(), k.float(), v.float(), mask),
                               atol=atol, rtol=1e-2)


def test_autocast_takes_the_fast_way_too():
    q, k, v = qkv()
    q.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and q.grad.isfinite().all()


def test_the_backend_has_a_name():
    assert backend("cpu", torch.float32) == "sdpa"
    assert backend("cpu", torch.bfloat16) == "matmul"


def test_one_rule_draws_the_mask():
    seen = [[int(sees(q, k, sink=1, window=1)) for k in range(5)] for q in range(5)]
    assert seen == [[1, 0, 0, 0, 0],
                    [1, 1, 0, 0, 0],
                    [1, 1, 1, 0, 0],
                    [1, 0, 1, 1, 0],
                    [1, 0, 0, 1, 1]]
    mask = chunk_mask(frames=10, tokens_per_frame=3, chunk=2, sink=1, window=1)
    assert torch.equal(mask, torch.tensor(seen).bool().repeat_interleave(6, 0).repeat_interleave(6, 1))


def test_a_last_chunk_may_be_short():
    mask = chunk_mask(frames=4, tokens_per_frame=1, chunk=3, sink=0, window=0)
    assert mask.int().tolist() == [[1, 1, 1, 0]] * 3 + [[0, 0, 0, 1]]


def test_captured_maps_are_where_attention_went(close):
    q, k, v = qkv()
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[:, 4:] = False
    with capture() as maps:
        attend(q, k, v, mask)
        attend(q, k, v, kind="cross")                                               # not asked for
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    assert len(maps) == 1
    close(maps[0], scores.masked_fill(~mask, float("-inf")).softmax(-1).mean(1))
    attend(q, k, v)
    assert len(maps) == 1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sink, window", [(0, 0), (6, 0), (3, 6)])
def test_shares_of_attention_are_what_a_plain_softmax_gives(sink, window, masked, close):
    """To the sink, the window and the tokens themselves; a few queries speak for themselves only."""
    q, k, v = qkv(queries=6, keys=sink + window + 6)
    mask = torch.rand(6, k.shape[1], generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    look = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
    want = [look[..., :sink].sum(-1), look[..., sink:sink + window].sum(-1), look[..., sink + window:].sum(-1)]
    with capture(read=lambda *call: shares(*call, sink)) as seen:
        attend(q, k, v, mask)
    close(seen[0], torch.stack([part.mean() for part in want]), atol=1e-6)
    close(shares(q, k, mask, sink, queries=2), torch.stack([part[:, :, [0, 4]].mean() for part in want]), atol=1e-6)


def test_a_few_queries_speak_for_all_and_only_they_are_asked(monkeypatch, close):
    """Of a frame of 8 x 8 cells and one of Wan's 30 x 52 no row and no column is passed over."""
    asked, looks = [], attention.looks
    monkeypatch.setattr(attention, "looks", lambda q, *rest: asked.append(q[0, :, 0, 0].long()) or looks(q, *rest))
    for rows, columns, least in ((8, 8, 8), (30, 52, 20)):
        place = torch.arange(3 * rows * columns)
        q = place[None, :, None, None].float().expand(1, -1, 1, 6)
        close(shares(q, torch.zeros(1, 2 * len(place), 1, 6), sink=len(place)), torch.tensor([0.5, 0, 0.5]))
        at = asked.pop()
        assert len(at) == 32 and len(set((at // (rows * columns)).tolist())) == 3
        assert len(set((at // columns % rows).tolist())) >= least and len(set((at % columns).tolist())) >= least


def test_what_another_thread_looks_at_is_not_captured():
    q, k, v = qkv()
    with capture() as mine:
        thread = Thread(target=attend, args=(q, k, v))
        thread.start()
        thread.join()
    assert mine == []


def test_the_clock_chooses_and_every_way_gives_the_same(monkeypatch, close):
    from msk import attention
    monkeypatch.setattr(attention, "_chosen", {})
    q, k, v = (torch.randn(1, n, 2, 16) for n in (24, 40, 40))
    want = attend(q, k, v)
    took = attention.choose("cpu", torch.float32, 24, 40, 2, 16)
    assert set(took) == {"sdpa", "matmul"} and backend("cpu", torch.float32) == min(took, key=took.get)
    assert backend("cpu", torch.bfloat16) == "matmul"                               # of this one nobody asked
    for name in took:
        attention._chosen["cpu", torch.float32] = name
        close(attend(q, k, v), want)


def test_a_way_that_refuses_is_not_chosen(monkeypatch):
    from msk import attention
    monkeypatch.setattr(attention, "_chosen", {})
    monkeypatch.setattr(attention, "ways", lambda *_: ["cuDNN", "sdpa"])
    real = attention._by

    def picky(name, *args, **more):
        if name == "cuDNN":
            raise RuntimeError("no kernel for this")
        return real(name, *args, **more)

    monkeypatch.setattr(attention, "_by", picky)
    assert list(attention.choose("cpu", torch.float32, 8, 8, 1, 16)) == ["sdpa"]
    assert backend("cpu", torch.float32) == "sdpa"


def test_cards_that_want_float16_are_too_old_for_flash_attention(monkeypatch):
    monkeypatch.setattr(attention, "_packages", lambda: {"flash-attn 2": None})
    assert backend("cuda", torch.bfloat16) == "flash-attn 2" and backend("cuda", torch.float16).startswith("sdpa")
