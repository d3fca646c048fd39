"""Random numbers as a function of their purpose, never of when or where they are drawn.

Noise is keyed by (seed, purpose, restart, example), where an example is its position in the data
set as loaded. So a result does not depend on the batch, the order in which examples are attacked, a
resume or the number of workers. The key does not know the image: in a data set of another order the
noise stays with the position. The global random state is touched in one place only, `seed_global`.
"""

import contextlib
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core import philox
from bench.core.contracts.types import GPUS

Fill = Callable[[np.random.Generator, np.ndarray], None]
"""Draws into a row, float32."""


def fold(*parts: object) -> int:
    """Derive a 64-bit number from values (BLAKE2b of their text), the same on every machine.

    >>> fold(0, "pgd") == fold(0, "pgd") != fold(1, "pgd")
    True

    Args:
        *parts: Values with a stable text.

    Returns:
        A number in [0, 2**64).
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class SharedDraws:
    """Draws that the rows of one example share at every eps: those of its latest restart.

    Holds one draw of each kind for each example, no more memory than the images themselves.
    """

    def __init__(self, examples: Tensor) -> None:
        """Hold nothing yet.

        Args:
            examples: Ids of all examples, (n,).
        """
        self._places = {example: at for at, example in enumerate(examples.tolist())}
        self._held: dict[object, tuple[dict[int, int], Tensor]] = {}

    def take(
        self,
        kind: object,
        pairs: Sequence[tuple[int, int]],
        draw: Callable[[Sequence[int]], Tensor],
        like: Tensor,
    ) -> Tensor:
        """Return draws of rows; those that are not held are drawn, each once.

        Args:
            kind: What distinguishes the draws of an example and restart from one another.
            pairs: Restart and example of each row.
            draw: Draws the rows of these indices.
            like: Tensor whose shape, dtype and device the draws have, (n, *input).

        Returns:
            Draws, as `like`, which the caller may change.
        """
        shape = like.shape[1:]
        restarts, held = self._held.setdefault(
            (kind, shape, like.dtype, like.device), ({}, like.new_empty(len(self._places), *shape))
        )
        places = [self._places[example] for _, example in pairs]
        rows: dict[tuple[int, int], int] = {}  # the first row of each pair that is not held
        for at, ((restart, example), place) in enumerate(zip(pairs, places, strict=True)):
            if restarts.get(place) != restart:
                rows.setdefault((restart, example), at)
        found = held[places]
        if not rows:
            return found
        drawn = draw(list(rows.values()))
        numbers = {pair: number for number, pair in enumerate(rows)}
        new = [at for at, pair in enumerate(pairs) if pair in numbers]
        found[new] = drawn[[numbers[pairs[at]] for at in new]]
        latest = {places[at]: number for number, at in enumerate(rows.values())}
        held[list(latest)] = drawn[list(latest.values())]
        restarts.update({places[at]: pairs[at][0] for at in rows.values()})
        return found


class Noise:
    """Random draws for the rows of a batch, keyed by example and restart.

    The key has no eps: where rows of several eps share their draws (`SharedDraws`), each is made
    once. On a GPU, uniform draws are made there, of the same bits (`bench.core.philox`); normal
    ones are made on the CPU and copied.

    Source: Philox4x64 (Salmon et al. 2011) as NumPy's counter-based bit generator; the key is (fold
    of seed, purpose and restart; example id).
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        examples: Tensor,
        restarts: Tensor,
        shared: SharedDraws | None = None,
    ) -> None:
        self.seed = fold(seed, purpose) % 2**31
        """A seed for foreign code that takes one; the same for every batch of the attack."""
        self._of = seed, purpose, examples, restarts
        self._shared = shared
        self.examples = examples
        """Ids of the rows' examples, (n,)."""

    @functools.cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Restart and example of each row; read when something is drawn, as the keys."""
        _, _, examples, restarts = self._of
        return list(zip(restarts.tolist(), examples.tolist(), strict=True))

    @functools.cached_property
    def _keys(self) -> list[tuple[int, int]]:
        """Derive the keys when something is drawn: most attacks draw once, some never."""
        seed, purpose, _, _ = self._of
        stream = {
            restart: fold(seed, purpose, restart) for restart in {pair[0] for pair in self._pairs}
        }
        return [(stream[restart], example) for restart, example in self._pairs]

    def _draw(self, kind: str, draw: int, fill: Fill, like: Tensor) -> Tensor:
        """Draw for each row with a generator of its key, starting at counter `draw`."""

        def make(rows: Sequence[int]) -> Tensor:
            drawn = np.empty((len(rows), *like.shape[1:]), dtype=np.float32)
            keys = [self._keys[row] for row in rows]
            for generator, row in zip(_generators(keys, draw), drawn, strict=True):
                fill(generator, row)
            return torch.from_numpy(drawn).to(like)

        return self._share((kind, draw), make, like)

    def _share(self, kind: object, make: Callable[[Sequence[int]], Tensor], like: Tensor) -> Tensor:
        """Make the draws of all rows, or of those that no other eps has made."""
        if self._shared is None:
            return make(range(len(self._pairs)))
        seed, purpose, _, _ = self._of
        return self._shared.take((seed, purpose, kind), self._pairs, make, like)

    def uniform(self, like: Tensor, draw: int = 0) -> Tensor:
        """Draw independently from U(-1, 1).

        Args:
            like: Tensor whose shape, dtype and device the draws have, (n, *input).
            draw: Number of the draw: different numbers are independent, the same one repeats.

        Returns:
            Draws, as `like`.
        """
        if _computes_itself(like.device):
            words = _key_words(self._keys).to(like.device)
            return philox.draw_uniform(words, draw, like[0].numel()).to(like).view_as(like)
        return self._draw("uniform", draw, _fill_uniform, like)

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        """Draw independently from the standard normal distribution.

        Args:
            like: Tensor whose shape, dtype and device the draws have, (n, *input).
            draw: Number of the draw: different numbers are independent, the same one repeats.

        Returns:
            Draws, as `like`.
        """
        return self._draw("normal", draw, _fill_normal, like)

    def unit(self, like: Tensor) -> Tensor:
        """Draw one number from U(0, 1) for each row, independent of the other draws.

        Args:
            like: Tensor whose dtype and device the draws have.

        Returns:
            Draws, (n,).
        """
        keys = [(_round_key(fold(key, "unit")), example) for key, example in self._keys]
        if _computes_itself(like.device):
            return philox.draw_unit(_key_words(keys).to(like.device)).to(like)

        def make(rows: Sequence[int]) -> Tensor:
            generators = _generators([keys[row] for row in rows], 0)
            return torch.tensor([generator.random() for generator in generators]).to(like)

        return self._share("unit", make, like.new_empty(len(keys)))

    def of_attack(self, name: str) -> "Noise":
        """Return the noise that another attack with the same seed has for the same rows.

        Args:
            name: Name of the attack.

        Returns:
            Its noise.
        """
        seed, _, examples, restarts = self._of
        return Noise(seed, name, examples, restarts)

    def keys(self, like: Tensor) -> Tensor:
        """Return a key of each row for `hash_uniform`.

        Args:
            like: Tensor on whose device the keys are.

        Returns:
            Keys, (n,), int64.
        """
        folds = [fold(key, "hashed", example) for key, example in self._keys]
        return torch.from_numpy(np.array(folds, dtype=np.uint64).view(np.int64)).to(like.device)


def _computes_itself(device: torch.device) -> bool:
    """Return whether a device computes what it can of its draws, in place of NumPy."""
    return device.type != "cpu"


def _generators(keys: Sequence[tuple[int, int]], draw: int) -> Iterator[np.random.Generator]:
    """Yield one generator, set to each key and to counter `draw` in turn.

    Setting the state is faster than a new object.
    """
    counter = np.array([0, 0, draw, 0], dtype=np.uint64)  # 2**128 numbers from the next draw
    bits = np.random.Philox(key=0)
    generator, fresh = np.random.Generator(bits), bits.state
    for key in np.array(keys, dtype=np.uint64).reshape(-1, 2):
        fresh["state"] = {"counter": counter, "key": key}
        bits.state = fresh
        yield generator


def _fill_uniform(generator: np.random.Generator, row: np.ndarray) -> None:
    generator.random(out=row, dtype=np.float32)
    row *= 2.0
    row -= 1.0


def _fill_normal(generator: np.random.Generator, row: np.ndarray) -> None:
    generator.standard_normal(out=row, dtype=np.float32)


def _round_key(word: int) -> int:
    """Round a word as NumPy does where a pair of integers is the key of a new generator.

    A pair with one number of 2**63 or more and one below is read as float64. Published numbers
    were drawn so.
    """
    return word if word < 2**63 else min(int(float(word)), 2**64 - 1)


def _key_words(keys: Sequence[tuple[int, int]]) -> Tensor:
    """Return keys as (n, 2), int64 of the same bits as unsigned."""
    return torch.from_numpy(np.array(keys, dtype=np.uint64).reshape(-1, 2).view(np.int64))


WEYL, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""SplitMix64's odd constants, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB, as
the signed numbers of the same bits: int64 products and sums wrap, so nothing but their names
differs."""


def hash_uniform(keys: Tensor, counter: Tensor, draws: int) -> Tensor:
    """Draw from U[0, 1) by a hash of a key and a counter for each row.

    For an attack that draws at every step: some twenty operations on a few integers a row, none of
    which asks the host, so that a GPU can replay them; `Noise` itself costs a row microseconds. The
    upper 24 bits are used, as many as float32 holds, so u < 1 exactly, and u * m < m for every
    integer m < 2**24.

    Source: SplitMix64, Steele, Lea and Flood 2014, figures 16 and 17 (Stafford's variant 13),
    https://doi.org/10.1145/2660193.2660195; the key is its seed.

    Args:
        keys: Key of each row, (n,), int64.
        counter: Number of the step of each row, (n,), int64.
        draws: Numbers per step.

    Returns:
        Draws number counter * draws to counter * draws + draws - 1 of each row, (n, draws),
        float32.
    """
    number = counter[:, None] * draws + torch.arange(1, draws + 1, device=keys.device)
    bits = keys[:, None] + number * WEYL
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).float() * 2.0**-24


def hash_keys(keys: Tensor, streams: Tensor) -> Tensor:
    """Derive a key for each row and a number of a stream, as `hash_uniform` mixes its bits.

    Args:
        keys: Keys, (n,), int64.
        streams: Number of the stream of each row, (n,), int64.

    Returns:
        Keys, (n,), int64; other streams of one key are independent.
    """
    bits = keys + (streams + 1) * FIRST
    bits = (bits ^ _shifted(bits, 30)) * SECOND
    return bits ^ _shifted(bits, 27)


def hash_normal(keys: Tensor, counter: Tensor, draws: int) -> Tensor:
    """Draw from the standard normal distribution by `hash_uniform`.

    The distribution function is inverted at the middle of each of the 2**24 values of U, so every
    draw is finite.

    Args:
        keys: Key of each row, (n,), int64.
        counter: Number of the step of each row, (n,), int64.
        draws: Numbers per step.

    Returns:
        Draws, (n, draws), float32, of magnitude below 5.5.
    """
    u = hash_uniform(keys, counter, draws)
    return torch.erfinv((2 * u - 1) + 2.0**-24) * 2**0.5


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift bits to the right and fill with zeros, where int64 would repeat the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def draw_integers(seed: int, purpose: str, examples: Tensor, high: int) -> Tensor:
    """Draw one integer in [0, high) for each example.

    Args:
        seed: Seed.
        purpose: Name of what is drawn.
        examples: Ids of the examples, (n,).
        high: Upper bound, excluded.

    Returns:
        Integers, (n,), int64.
    """
    return torch.tensor([fold(seed, purpose, example) % high for example in examples.tolist()])


def permute(seed: int, purpose: str, n: int) -> Tensor:
    """Draw a permutation of range(n).

    Args:
        seed: Seed.
        purpose: Name of what is drawn.
        n: Number of entries.

    Returns:
        Permutation, (n,), int64; a function of the arguments alone.
    """
    generator = torch.Generator().manual_seed(fold(seed, purpose) % 2**63)
    return torch.randperm(n, generator=generator)


@contextmanager
def seed_global(*parts: object) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random; restore them afterwards.

    For code that knows no other generator: initialisers of modules, attacks of other libraries. Of
    several GPUs, only those are touched that this process uses.

    Args:
        *parts: Values that the seed is derived from.

    Yields:
        With the generators seeded.
    """
    value = fold(*parts)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as gpus:
            for kind in GPUS:
                gpus.enter_context(_seed_gpus(torch.get_device_module(kind), value % 2**63))
            torch.default_generator.manual_seed(value % 2**63)
            np.random.seed(value % 2**32)
            random.seed(value)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _seed_gpus(gpus: Any, seed: int) -> Iterator[None]:
    """Seed the GPUs of a kind that are in use, and restore their generators afterwards.

    Reading the generator of another opens a context there, which takes hundreds of megabytes.

    Args:
        gpus: `torch.cuda` or a module like it.
        seed: Seed of every generator.

    Yields:
        With the generators seeded.
    """
    if not gpus.is_available():
        yield
    elif not gpus.is_initialized():
        # torch notes the seed for later. The processor's generator has the seed that was noted.
        before = torch.initial_seed()
        gpus.manual_seed_all(seed)
        try:
            yield
        finally:
            gpus.manual_seed_all(before)
    else:
        current = gpus.current_device()
        used = [
            index
            for index in range(gpus.device_count())
            if index == current or gpus.memory_reserved(index) > 0
        ]
        states = [gpus.get_rng_state(index) for index in used]
        for index in used:
            gpus.default_generators[index].manual_seed(seed)
        try:
            yield
        finally:
            for index, state in zip(used, states, strict=True):
                gpus.set_rng_state(state, index)
