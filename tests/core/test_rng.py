"""Noise belongs to the example: no batch, order or caller can change it."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core import philox, rng

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


# ------------------------------------------------------------------------------- draws on a GPU


def numpy_generator(key: tuple[int, int], draw: int = 0) -> np.random.Generator:
    counter = np.array([0, 0, draw, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64), counter=counter))


def random_keys(n: int) -> list[tuple[int, int]]:
    """Keys of all sizes, among them the largest."""
    chosen, most = random.Random(0), 2**64 - 1
    some = [
        (chosen.getrandbits(64), chosen.getrandbits(chosen.choice([3, 32, 64]))) for _ in range(n)
    ]
    return [(0, 0), (most, most), (2**63, 1), *some]


def as_words(keys: list[tuple[int, int]]) -> Tensor:
    return torch.from_numpy(np.array(keys, dtype=np.uint64).view(np.int64))


@pytest.mark.parametrize("draw", [0, 1, 2**40])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 784, 3 * 32 * 32 + 5])
def test_integer_operations_draw_the_uniform_numbers_of_numpy(count: int, draw: int) -> None:
    keys = random_keys(20)
    wanted = np.stack(
        [
            2.0 * numpy_generator(key, draw).random(count, dtype=np.float32) - np.float32(1)
            for key in keys
        ]
    )
    drawn = philox.draw_uniform(as_words(keys), draw, count)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, torch.from_numpy(wanted))


def test_large_draws_are_made_in_pieces_of_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = as_words(random_keys(10))
    whole = philox.draw_uniform(words, 0, 100)
    for at_once in (1, 60, 120):
        monkeypatch.setattr(philox, "AT_ONCE", at_once)
        assert torch.equal(philox.draw_uniform(words, 0, 100), whole)
    assert philox.draw_uniform(words[:0], 0, 100).shape == (0, 100)


def test_integer_operations_draw_the_numbers_of_numpy_in_0_to_1() -> None:
    keys = random_keys(3000)
    wanted = torch.tensor([numpy_generator(key).random() for key in keys])
    assert torch.equal(philox.draw_unit(as_words(keys)), wanted)


def test_a_number_in_0_to_1_is_that_of_a_new_generator_whose_key_is_a_pair() -> None:
    """Which NumPy rounds to float64 where a number of the pair is 2**63 or more."""
    restarts = torch.arange(12)
    noise = rng.Noise(0, "a", restarts + 7, restarts)
    folds = [rng.fold(rng.fold(0, "a", restart), "unit") for restart in range(12)]
    assert min(folds) < 2**63 < max(folds)
    pairs = [(key, restart + 7) for restart, key in enumerate(folds)]
    wanted = [np.random.Generator(np.random.Philox(key=pair)).random() for pair in pairs]
    assert torch.equal(noise.unit(torch.zeros(12)), torch.tensor(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["uniform", "unit"])
def test_another_device_has_the_numbers_of_the_cpu_and_computes_them_itself(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no GPU is at hand, the CPU stands for one."""
    noise = rng.Noise(3, "a", torch.tensor([5, 2**40, 7]), torch.tensor([0, 1, 2]))
    like = torch.zeros(3, 1, 5, 5, dtype=dtype)
    by_numpy = getattr(noise, kind)(like)
    monkeypatch.setattr(rng, "_generators", None)  # nothing is drawn by NumPy any more
    if torch.cuda.is_available():
        assert torch.equal(getattr(noise, kind)(like.cuda()).cpu(), by_numpy)
    monkeypatch.setattr(rng, "_computes_itself", lambda device: True)
    there = getattr(noise, kind)(like)
    assert there.dtype == dtype
    assert torch.equal(there, by_numpy)


@pytest.mark.parametrize("kind", ["uniform", "unit"])
def test_no_number_of_another_device_is_read(kind: str) -> None:
    """Tensors of the device "meta" have none."""
    noise = rng.Noise(3, "a", torch.tensor([5, 6]), torch.tensor([0, 1]))
    drawn = getattr(noise, kind)(torch.zeros(2, 3, 4, device="meta"))
    assert drawn.device.type == "meta"
    assert drawn.shape == ((2,) if kind == "unit" else (2, 3, 4))


# ------------------------------------------------------------------------ draws that eps share


@pytest.fixture
def drawn_keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The keys of the rows that NumPy draws."""
    drawn: list[tuple[int, int]] = []
    generators = rng._generators

    def note(keys: Any, draw: int) -> Any:
        drawn.extend(keys)
        return generators(keys, draw)

    monkeypatch.setattr(rng, "_generators", note)
    return drawn


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_shared_draws_are_the_rows_own_whatever_was_drawn_before(
    kind: str, drawn_keys: list[tuple[int, int]]
) -> None:
    """Batches of all eps, restarts and orders: an example may be in one several times."""
    ids, chosen = torch.tensor([4, 9, 2**40, 11, 3]), torch.Generator().manual_seed(0)
    shared = rng.SharedDraws(ids)
    wanted = {
        (restart, example): draw(kind, [example], restart=restart)[0]
        for restart in range(3)
        for example in ids.tolist()
    }
    for _ in range(30):
        examples = ids[torch.randint(5, (7,), generator=chosen)]
        restarts = torch.randint(3, (7,), generator=chosen)
        noise = rng.Noise(0, "a", examples, restarts, shared)
        drawn = getattr(noise, kind)(torch.zeros(7, 2, 3))
        rows = zip(restarts.tolist(), examples.tolist(), strict=True)
        assert torch.equal(drawn, torch.stack([wanted[row] for row in rows]))
        drawn.zero_()  # the caller's own
    assert len(drawn_keys) < len(wanted) + 7 * 30


def test_an_examples_draw_is_made_once_for_all_eps(drawn_keys: list[tuple[int, int]]) -> None:
    ids, like = torch.arange(6), torch.zeros(3, 4)
    shared = rng.SharedDraws(ids)
    for restart in range(2):
        for _ in range(5):  # eps
            for some in ids.split(3):
                noise = rng.Noise(0, "a", some, torch.full_like(some, restart), shared)
                noise.uniform(like), noise.uniform(like, draw=1), noise.normal(like)
    assert len(drawn_keys) == 2 * 6 * 3
    assert len(set(drawn_keys)) == 2 * 6


def test_purposes_draws_and_dtypes_share_nothing() -> None:
    ids, shared = torch.arange(3), rng.SharedDraws(torch.arange(3))
    like = torch.zeros(3, 4)
    one, other = (rng.Noise(0, purpose, ids, torch.zeros_like(ids), shared) for purpose in "ab")
    draws = [one.uniform(like), one.uniform(like, draw=1), one.normal(like), other.uniform(like)]
    assert len({float(draw.sum()) for draw in draws}) == 4
    assert one.uniform(like.double()).dtype == torch.float64


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
