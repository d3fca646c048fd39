"""Randomness as a function of what it is for, never of when or where it is drawn.

Noise is keyed by (seed, purpose, restart, example), where an example is its position in the data
set as loaded: so a result does not depend on the batch, the order in which examples are attacked, a
resume or the number of workers. It does not know what the image is: in a data set of another order
the noise stays with the position, and an image gets that of the place where it now stands. The
global random state is touched in one place only,
`seeded`, which forks it around code that knows no other (module initialisers, foreign attacks).
"""

import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def fold(*parts: object) -> int:
    """A 64-bit number derived from `parts` (blake2b of their text), the same on every machine.

    >>> fold(0, "pgd") == fold(0, "pgd") != fold(1, "pgd")
    True
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Noise:
    """Random draws for the rows of a batch, each row keyed by its example and restart.

    Source: Philox4x64 (Salmon et al. 2011) as NumPy's counter-based bit generator; the key is
    (fold of seed, purpose and restart; example id).
    """

    def __init__(self, seed: int, purpose: str, examples: Tensor, restarts: Tensor) -> None:
        self.seed = fold(seed, purpose) % 2**31
        """A seed for foreign code that takes one; the same for every batch of the attack."""
        self._of = seed, purpose, examples, restarts
        self.examples = examples
        """Ids of the rows' examples, (n,)."""

    @functools.cached_property
    def _keys(self) -> list[tuple[int, int]]:
        """Made when something is drawn: most attacks draw once, some never."""
        seed, purpose, examples, restarts = self._of
        stream = {restart: fold(seed, purpose, restart) for restart in set(restarts.tolist())}
        pairs = zip(restarts.tolist(), examples.tolist(), strict=True)
        return [(stream[restart], example) for restart, example in pairs]

    def _draw(
        self, draw: int, how: Callable[[np.random.Generator], np.ndarray], like: Tensor
    ) -> Tensor:
        counter = np.array([0, 0, draw, 0], dtype=np.uint64)  # 2**128 numbers from the next draw
        bits = np.random.Philox(key=0)
        generator, fresh = np.random.Generator(bits), bits.state
        rows = []
        for key in self._keys:  # quicker set anew than made anew
            fresh["state"] = {"counter": counter, "key": np.array(key, dtype=np.uint64)}
            bits.state = fresh
            rows.append(how(generator))
        return torch.from_numpy(np.stack(rows)).to(like)

    def uniform(self, like: Tensor, draw: int = 0) -> Tensor:
        """Independent draws from U(-1, 1), shape, dtype and device of `like` (n, *input).

        Another `draw` is independent of this one; the same gives the same numbers again.
        """
        shape = like.shape[1:]
        return self._draw(draw, lambda g: 2.0 * g.random(shape, dtype=np.float32) - 1.0, like)

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        """Independent standard normal draws, shape, dtype and device of `like` (n, *input)."""
        shape = like.shape[1:]
        return self._draw(draw, lambda g: g.standard_normal(shape, dtype=np.float32), like)

    def unit(self, like: Tensor) -> Tensor:
        """One draw from U(0, 1) for each row, shape (n,); independent of the other draws."""
        keys = [(fold(key, "unit"), example) for key, example in self._keys]
        rows = [np.random.Generator(np.random.Philox(key=key)).random() for key in keys]
        return torch.tensor(rows).to(like)

    def keys(self, like: Tensor) -> Tensor:
        """A key of each row's own for `hashed`, (n,), int64, on the device of `like`."""
        folds = [fold(key, "hashed", example) for key, example in self._keys]
        return torch.from_numpy(np.array(folds, dtype=np.uint64).view(np.int64)).to(like.device)


WEYL, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""SplitMix64's odd constants, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB, as
the signed numbers of the same bits: int64 products and sums wrap, so nothing but their names
differs."""


def hash_uniform(keys: Tensor, counter: Tensor, draws: int) -> Tensor:
    """Draws number counter * draws, ..., counter * draws + draws - 1 of each row's own generator,
    from U[0, 1), float32, (n, draws).

    For an attack that draws at every step: some twenty operations on a few integers a row, none of
    which asks the host, so that a GPU can replay them; `Noise` itself costs a row microseconds.
    Shapes: keys, counter (n,), int64. The upper 24 bits are kept, as many as float32 holds: below
    1 for certain, and so is u * m below m for every integer m < 2**24.
    Source: SplitMix64, Steele, Lea and Flood 2014, figures 16 and 17 (Stafford's variant 13),
    https://doi.org/10.1145/2660193.2660195; the key is its seed.
    """
    number = counter[:, None] * draws + torch.arange(1, draws + 1, device=keys.device)
    bits = keys[:, None] + number * WEYL
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).float() * 2.0**-24


def _shifted(bits: Tensor, places: int) -> Tensor:
    """`bits` moved to the right, zeros moving in, where int64 would copy the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def draw_integers(seed: int, purpose: str, examples: Tensor, high: int) -> Tensor:
    """One integer in [0, high) for each example id, shape (n,), int64."""
    return torch.tensor([fold(seed, purpose, example) % high for example in examples.tolist()])


def permute(seed: int, purpose: str, n: int) -> Tensor:
    """A permutation of range(n) that only `seed` and `purpose` decide."""
    generator = torch.Generator().manual_seed(fold(seed, purpose) % 2**63)
    return torch.randperm(n, generator=generator)


@contextmanager
def seed_global(*parts: object) -> Iterator[None]:
    """Code inside finds the global generators (torch, numpy, random) seeded from `parts`;
    afterwards they are as they were, whatever that code did to them."""
    value = fold(*parts)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(value % 2**63)
            np.random.seed(value % 2**32)
            random.seed(value)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
