"""Noise belongs to the example: no batch, order or caller can change it."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core import rng

DRAWS = ("uniform", "normal", "unit")


def draw(
    kind: str, examples: list[int], seed: int = 0, purpose: str = "a", restart: int = 0
) -> Tensor:
    ids = torch.tensor(examples)
    noise = rng.Noise(seed, purpose, ids, torch.full_like(ids, restart))
    return getattr(noise, kind)(torch.zeros(len(examples), 2, 3))


def states() -> tuple[bytes, str, str]:
    """The global generators of torch, NumPy and Python."""
    numpy_state = str(np.random.get_state(legacy=False))
    return torch.get_rng_state().numpy().tobytes(), numpy_state, str(random.getstate())


def test_a_fold_is_the_same_on_every_machine_and_in_every_year() -> None:
    assert rng.fold() == 13020603013274838756
    assert rng.fold(0, "pgd", 3) == 3916335191663680418


def test_a_fold_depends_on_where_its_parts_are_divided() -> None:
    folds = [rng.fold(*parts) for parts in [(1, 23), (12, 3), (123,), ("1", "2", "3"), (23, 1)]]
    assert len(set(folds)) == 5


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_is_the_examples_own_whatever_its_batch_and_place(kind: str) -> None:
    together = draw(kind, [5, 6, 7])
    assert torch.equal(draw(kind, [7, 6, 5]), together.flip(0))
    assert torch.equal(draw(kind, [6]), together[1:2])


@pytest.mark.parametrize("kind", DRAWS)
def test_seed_purpose_restart_and_example_all_change_the_draw(kind: str) -> None:
    others = [
        draw(kind, [5]),
        draw(kind, [6]),
        draw(kind, [5], seed=1),
        draw(kind, [5], purpose="b"),
        draw(kind, [5], restart=1),
    ]
    assert len({tuple(other.flatten().tolist()) for other in others}) == 5


@pytest.mark.parametrize("kind", DRAWS)
def test_the_global_state_neither_decides_a_draw_nor_is_moved_by_it(kind: str) -> None:
    first, before = draw(kind, [1, 2]), states()
    assert torch.equal(draw(kind, [1, 2]), first)
    assert states() == before


def test_draws_have_the_distributions_they_are_named_after() -> None:
    ids = list(range(3000))
    uniform, normal, unit = (draw(kind, ids) for kind in DRAWS)
    assert -1 <= uniform.min() < -0.99 < 0.99 < uniform.max() <= 1
    assert abs(float(uniform.square().mean()) - 1 / 3) < 0.01
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.02
    assert unit.shape == (3000,)
    assert 0 <= unit.min() < 0.01 < 0.99 < unit.max() <= 1
    assert abs(float(unit.mean()) - 0.5) < 0.02


def test_a_draw_has_the_dtype_that_is_asked_for() -> None:
    one = rng.Noise(0, "a", torch.tensor([1]), torch.tensor([0]))
    assert one.uniform(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64


# --------------------------------------------------------------------------- draws at every step


def key(examples: list[int], seed: int = 0, purpose: str = "a", restart: int = 0) -> Tensor:
    ids = torch.tensor(examples)
    noise = rng.Noise(seed, purpose, ids, torch.full_like(ids, restart))
    return noise.keys(torch.zeros(len(examples), 1))


def chi_square(counts: Tensor) -> float:
    """Pearson's statistic against equal counts, in standard deviations from what is expected."""
    freedom, equal = counts.numel() - 1, counts.sum() / counts.numel()
    return float(((counts - equal).square() / equal).sum() - freedom) / (2 * freedom) ** 0.5


def binned(draws: Tensor, bins: int) -> Tensor:
    return (draws * bins).long()


def test_hashed_draws_are_the_upper_bits_of_splitmix64() -> None:
    """The first outputs of the published generator for the seed 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423,
               4593380528125082431, 16408922859458223821, 0]  # fmt: skip
    wanted = torch.tensor([(output >> 40) / 2**24 for output in outputs])
    seed = torch.tensor([1234567])
    assert torch.equal(rng.hash_uniform(seed, torch.tensor([0]), 5)[0], wanted[:5])
    assert torch.equal(rng.hash_uniform(seed, torch.tensor([1]), 2)[0], wanted[2:4])


def test_hashed_draws_are_the_examples_own_whatever_its_batch_and_place() -> None:
    together, counter = key([5, 6, 7]), torch.tensor([3, 900, 4])
    draws = rng.hash_uniform(together, counter, 4)
    assert torch.equal(rng.hash_uniform(key([7, 6, 5]), counter.flip(0), 4), draws.flip(0))
    assert torch.equal(rng.hash_uniform(key([6]), counter[1:2], 4), draws[1:2])
    assert draws.shape == (3, 4)


def test_seed_purpose_restart_example_and_counter_all_change_a_hashed_draw() -> None:
    own = [key([5]), key([6]), key([5], seed=1), key([5], purpose="b"), key([5], restart=1)]
    draws = [rng.hash_uniform(each, torch.tensor([0]), 2) for each in own]
    draws += [rng.hash_uniform(own[0], torch.tensor([1]), 2)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 6


def test_a_hashed_draw_never_reaches_1_nor_a_multiple_of_it_the_multiple() -> None:
    nearest = torch.tensor(1 - 2**-24)
    assert all(float(nearest * m) < m for m in range(1, 5000))
    draws = rng.hash_uniform(key(list(range(500))), torch.arange(500), 2000)
    assert 0 <= draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() <= nearest


@pytest.mark.parametrize("bins", [3, 64, 1000])
@pytest.mark.parametrize(("rows", "counters"), [(1, 100_000), (100_000, 1), (300, 300)])
def test_hashed_draws_are_uniform_over_rows_and_over_counters(
    rows: int, counters: int, bins: int
) -> None:
    keys = key(list(range(rows))).repeat_interleave(counters)
    draws = rng.hash_uniform(keys, torch.arange(counters).repeat(rows), 3)
    for column in draws.unbind(1):
        assert abs(chi_square(torch.bincount(binned(column, bins), minlength=bins))) < 4.5


@pytest.mark.parametrize("neighbour", ["draw", "counter", "example"])
def test_neighbouring_hashed_draws_are_independent(neighbour: str) -> None:
    """Over a table of 16 x 16 pairs, and by their correlation."""
    n, counter = 60_000, torch.arange(60_000)
    one, two = (key([example]).expand(n) for example in (5, 6))
    pairs = {
        "draw": rng.hash_uniform(one, counter, 2),
        "counter": torch.cat([rng.hash_uniform(one, counter + i, 1) for i in (0, 1)], 1),
        "example": torch.cat([rng.hash_uniform(each, counter, 1) for each in (one, two)], 1),
    }[neighbour]
    cells = 16 * binned(pairs[:, 0], 16) + binned(pairs[:, 1], 16)
    assert abs(chi_square(torch.bincount(cells, minlength=256))) < 4.5
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4.5 / n**0.5


def scramble() -> None:
    torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)


def test_seeded_code_leaves_all_global_generators_as_they_were() -> None:
    before = states()
    with rng.seed_global(0, "x"):
        scramble()
        assert states() != before
    assert states() == before


def test_seeded_code_that_raises_leaves_them_too() -> None:
    @rng.seed_global(0, "x")
    def broken() -> None:
        scramble()
        raise RuntimeError("planted")

    before = states()
    with pytest.raises(RuntimeError, match="planted"):
        broken()
    assert states() == before


def test_seeded_code_draws_the_same_numbers_and_other_parts_give_others() -> None:
    def numbers(*parts: object) -> tuple[float, float, float]:
        with rng.seed_global(*parts):
            return float(torch.rand(())), float(np.random.rand()), random.random()

    assert numbers(0, "x") == numbers(0, "x")
    assert not set(numbers(0, "x")) & set(numbers(1, "x"))


def test_integers_are_the_examples_own_and_cover_their_range() -> None:
    many = rng.draw_integers(0, "target", torch.arange(300), 9)
    assert sorted(set(many.tolist())) == list(range(9))
    assert torch.equal(rng.draw_integers(0, "target", torch.arange(300).flip(0), 9), many.flip(0))
    assert not torch.equal(rng.draw_integers(1, "target", torch.arange(300), 9), many)


def test_a_shuffle_is_a_permutation_that_its_seed_decides() -> None:
    order: Tensor = rng.permute(0, "train", 50)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, rng.permute(0, "train", 50))
    assert not torch.equal(order, rng.permute(1, "train", 50))
    assert not torch.equal(order, torch.arange(50))
