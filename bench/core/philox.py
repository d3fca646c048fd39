"""NumPy's counter-based generator in integer operations of torch, for devices other than the CPU.

The numbers are those of `numpy.random.Philox` to the last bit. All operations are on int64, whose
products and sums wrap as unsigned ones do; nothing is asked of the device, and the keys alone are
copied to it. A normal draw of NumPy depends on a sequence of rejections and on the processor's
logarithm: it cannot be made here.
Source: Philox4x64-10, Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405
"""

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
"""Multipliers of the words 0 and 2."""
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
"""What is added to the words of the key after each round."""
LOW = 0xFFFFFFFF
"""The lower half of a word."""
AT_ONCE = 2**22
"""Words computed at once, so that some ten tensors of them need no more than 400 MB."""


def draw_words(keys: Tensor, draw: int, blocks: int) -> Tensor:
    """Compute the first words of a generator for each key.

    Args:
        keys: Keys, (n, 2), int64 of the same bits as unsigned.
        draw: Third word of the counter at the start; the others are 0.
        blocks: Number of blocks of four words.

    Returns:
        Words, (n, 4 * blocks), int64 of the same bits as unsigned.
    """
    count = torch.arange(1, blocks + 1, device=keys.device)
    even = torch.stack([count, torch.full_like(count, draw)])[:, None]  # words 0 and 2
    odd = torch.zeros_like(even)  # words 1 and 3
    key = keys.T[:, :, None]
    multiplier, weyl = (_constants(pair, keys.device) for pair in (MULTIPLIERS, WEYL))
    for _ in range(ROUNDS):
        high, low = _multiply(even, multiplier)
        even, odd = high.flip(0) ^ odd ^ key, low.flip(0)
        key = key + weyl
    return torch.stack([even[0], odd[0], even[1], odd[1]], -1).flatten(1)


def draw_uniform(keys: Tensor, draw: int, count: int) -> Tensor:
    """Draw from U(-1, 1) as 2 * `Generator.random(count, dtype=float32)` - 1 does.

    Args:
        keys: Keys, (n, 2), int64 of the same bits as unsigned.
        draw: Third word of the counter at the start.
        count: Numbers for each key.

    Returns:
        Draws, (n, count), float32.
    """
    blocks = -(-count // 8)  # a word makes two numbers, the first from its lower half
    drawn = keys.new_empty(len(keys), count, dtype=torch.float32)
    rows = max(1, AT_ONCE // max(1, 4 * blocks))
    for some, into in zip(keys.split(rows), drawn.split(rows), strict=True):
        words = draw_words(some, draw, blocks)
        bits = torch.stack([words >> 8, words >> 40], -1).flatten(1)[:, :count] & 0xFFFFFF
        into.copy_(bits.float() * 2.0**-23 - 1)
    return drawn


def draw_unit(keys: Tensor) -> Tensor:
    """Draw from U[0, 1) as `Generator.random()` does, rounded to torch's default dtype.

    Args:
        keys: Keys, (n, 2), int64 of the same bits as unsigned.

    Returns:
        Draws, (n,); rounding may make one of them 1.
    """
    first = draw_words(keys, 0, 1)[:, 0]
    return _shift(first, 11).to(torch.get_default_dtype()) * 2.0**-53


def _constants(pair: tuple[int, int], device: torch.device) -> Tensor:
    """Return two words as (2, 1, 1), filled on the device."""
    signed = [word - 2**64 if word >= 2**63 else word for word in pair]
    return torch.stack([torch.full((1, 1), word, device=device) for word in signed])


def _multiply(word: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Return the higher and the lower half of the 128 bits of unsigned products.

    No product or sum of halves exceeds 64 bits: (2**32 - 1)**2 + 2 * (2**32 - 1) < 2**64.
    """
    word_high, word_low = _shift(word, 32), word & LOW
    by_high, by_low = _shift(by, 32), by & LOW
    cross = word_high * by_low + _shift(word_low * by_low, 32)
    other = word_low * by_high + (cross & LOW)
    return word_high * by_high + _shift(cross, 32) + _shift(other, 32), word * by


def _shift(word: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros, where int64 would repeat the sign."""
    return (word >> places) & ((1 << (64 - places)) - 1)
