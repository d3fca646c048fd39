"""Images arrive whole and in order, however the feed holds or fetches them."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from bench.datasets import prefetch
from bench.datasets.in_memory import make_data

PIECES = [(0, 4), (4, 8), (8, 10)]


@pytest.fixture
def data():
    return make_data("ten", torch.rand(10, 1, 4, 4), torch.arange(10), ())


@pytest.mark.parametrize("settings", [{}, {"stays": True}, {"ahead": True}])
def test_every_piece_is_the_data_sets_in_any_order(data, settings) -> None:
    fed = prefetch.Prefetcher(data, PIECES, torch.device("cpu"), **settings)
    for piece in [*PIECES, *PIECES, PIECES[2], PIECES[0], (1, 3)]:
        assert torch.equal(fed.read(*piece), data.read(*piece))


def test_what_stays_is_read_once(data) -> None:
    reads: Counter[tuple[int, int]] = Counter()

    def counted(first: int, last: int) -> torch.Tensor:
        reads[first, last] += 1
        return data.read(first, last)

    fed = prefetch.Prefetcher(replace(data, read=counted), PIECES, torch.device("cpu"), stays=True)
    for piece in PIECES * 3:
        fed.read(*piece)
    assert set(reads.values()) == {1}


def test_the_next_piece_is_fetched_before_it_is_asked_for(data) -> None:
    reads = []

    def noted(first: int, last: int) -> torch.Tensor:
        reads.append((first, last))
        return data.read(first, last)

    fed = prefetch.Prefetcher(replace(data, read=noted), PIECES, torch.device("cpu"), ahead=True)
    fed.read(0, 4)
    fed._coming[4, 8].result()
    assert reads == [(0, 4), (4, 8)]
    fed.read(4, 8)
    assert reads.count((4, 8)) == 1


def test_a_picture_that_cannot_be_read_fails_where_it_is_asked_for(data) -> None:
    def broken(first: int, last: int) -> torch.Tensor:
        if first == 4:
            raise OSError("no such file")
        return data.read(first, last)

    fed = prefetch.Prefetcher(replace(data, read=broken), PIECES, torch.device("cpu"), ahead=True)
    assert torch.equal(fed.read(0, 4), data.read(0, 4))
    with pytest.raises(OSError, match="no such file"):
        fed.read(4, 8)


def test_a_cpu_reads_as_it_goes_and_keeps_nothing(data) -> None:
    fed = prefetch.make_prefetcher(torch.device("cpu"), data, PIECES)
    fed.read(0, 4)
    assert not fed._here
    assert not fed._coming


def test_a_part_of_what_stays_is_read_with_its_whole_piece(data) -> None:
    reads = []

    def noted(first: int, last: int) -> torch.Tensor:
        reads.append((first, last))
        return data.read(first, last)

    fed = prefetch.Prefetcher(replace(data, read=noted), PIECES, torch.device("cpu"), stays=True)
    for piece in [(1, 3), (0, 2), (0, 4), (5, 8), (4, 8)]:
        assert torch.equal(fed.read(*piece), data.read(*piece))
    assert reads == [(0, 4), (4, 8)]
