import random

import pytest
import torch

from msk.cache import ChunkCache, FrameCache


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


class Plain:
    """The slow way: all that is remembered in one list of (number, is it a sink?), gone through piece by piece."""

    def __init__(self, sink, budget):
        self.sink, self.budget, self.made, self.kept = sink, budget, 0, []

    def push(self, frames):
        for _ in range(frames):
            self.kept.append((self.made, sum(sink for _, sink in self.kept) < self.sink))
            self.made += 1
            self.trim()

    def trim(self):
        while sum(not sink for _, sink in self.kept) > self.budget - self.sink:
            self.kept.remove(next(one for one in self.kept if not one[1]))

    def resize(self, sink, budget):
        self.sink, self.budget = sink, budget
        self.kept = [(number, i < sink) for i, (number, _) in enumerate(self.kept)]
        self.trim()

    def anchor(self, frames):
        self.kept = self.kept[-frames:]
        self.resize(self.sink, self.budget)

    def places(self, new):
        seen = [number for number, _ in self.kept]
        while len(seen) + new > self.budget and (rolling := [n for n, sink in self.kept if not sink and n in seen]):
            seen.remove(rolling[0])
        return [*seen, *range(self.made, self.made + new)]


@pytest.mark.parametrize("seed", range(40))
def test_frames_stand_where_they_were_made_whatever_became_of_sinks_and_budget(seed):
    """Keys that say their number come back beside it, after any order of chunks, anchors and other sizes."""
    rng = random.Random(seed)
    sink = rng.randint(0, 3)
    budget = sink + rng.randint(3, 9)
    cache, slow = FrameCache(sink, budget), Plain(sink, budget)
    for _ in range(30):
        new = rng.randint(1, 3)
        past = cache.past(new)
        keys = [] if past is None else past[0][0][0, :, 0, 0].int().tolist()
        assert [*keys, *range(cache.made, cache.made + new)] == list(cache.places(new)) == slow.places(new)
        number = torch.arange(cache.made, cache.made + new, dtype=torch.float)[None, :, None, None]
        cache.push([(number, number)], new)
        slow.push(new)
        if rng.random() < 0.3:
            sink = rng.randint(0, 4)
            budget = sink + rng.randint(3, 9)
            cache.resize(sink, budget)
            slow.resize(sink, budget)
        elif rng.random() < 0.1:
            cache.anchor(new)
            slow.anchor(new)
        assert sorted(sum(cache.held(), [])) == [number for number, _ in slow.kept]
