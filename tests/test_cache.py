import pytest
import torch

from msk.cache import ChunkCache


def chunk(i, layers=2):
    """Keys that say which chunk they came from, and values that say the layer."""
    return [(torch.full((1, 3, 1, 2), float(i)), torch.full((1, 3, 1, 2), float(layer))) for layer in range(layers)]


def held(cache):
    past = cache.past()
    return [] if past is None else past[0][0][0, ::3, 0, 0].int().tolist()


@pytest.mark.parametrize("sink, window, last", [(1, 1, [0, 9]), (2, 1, [0, 1, 9]), (0, 2, [8, 9]), (1, 3, [0, 7, 8, 9]),
                                                (1, 0, [0]), (0, 0, [])])
def test_it_holds_the_first_chunks_and_the_latest_ones(sink, window, last):
    cache = ChunkCache(sink, window)
    for i in range(10):
        cache.push(chunk(i))
    assert held(cache) == last


def test_sinks_come_first_and_fill_first():
    cache, seen = ChunkCache(1, 2), []
    for i in range(5):
        cache.push(chunk(i))
        seen.append(held(cache))
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_layers_stay_apart():
    cache = ChunkCache()
    cache.push(chunk(0))
    cache.push(chunk(1))
    assert [v.unique().tolist() for _, v in cache.past()] == [[0.0], [1.0]]


def test_memory_is_constant_and_the_sink_is_never_touched():
    cache, sizes = ChunkCache(1, 1), []
    cache.push(chunk(0))
    sink = cache.past()[0][0][:, :3].clone()
    for i in range(1, 200):
        cache.push(chunk(i))
        sizes.append(cache.nbytes)
    assert len(set(sizes)) == 1
    assert torch.equal(cache.past()[0][0][:, :3], sink)


def test_a_past_is_a_value():
    cache = ChunkCache(1, 1)
    cache.push(chunk(0))
    cache.push(chunk(1))
    before = cache.past()[0][0]
    copy = before.clone()
    cache.push(chunk(2))
    assert torch.equal(before, copy)


@pytest.mark.parametrize("sink, window, now, later", [(1, 3, [0, 9], [0, 9, 10, 11]), (2, 1, [0, 9], [0, 9, 11]),
                                                      (0, 2, [0, 9], [10, 11]), (1, 0, [0], [0])])
def test_another_size_keeps_what_fits_and_then_holds_so_many(sink, window, now, later):
    cache = ChunkCache(1, 1)
    for i in range(10):
        cache.push(chunk(i))
    cache.resize(sink, window)
    assert held(cache) == now and sum(cache.held(), []) == now
    cache.push(chunk(10))
    cache.push(chunk(11))
    assert held(cache) == later
