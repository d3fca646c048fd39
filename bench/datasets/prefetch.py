"""Move the images of a data set to the device chunk by chunk.

A data set that fits into a GPU's memory remains there once it has been read. Of a larger one, the
next chunk is read and pinned by another thread while the current one is attacked, so that the GPU
does not wait for a disk or a decoder. On a CPU nothing is moved.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.engine.device import enter_device, is_gpu, read_memory

MEMORY_DIVISOR = 4
"""A data set may take 1 / MEMORY_DIVISOR of a GPU's free memory."""


class Prefetcher:
    """Reads the chunks of a data set onto a device."""

    def __init__(
        self,
        data: Data,
        pieces: list[tuple[int, int]],
        device: torch.device,
        stays: bool = False,
        ahead: bool = False,
    ) -> None:
        """Prepare reading.

        Args:
            data: The data set.
            pieces: First and last example (exclusive) of each chunk, in the order of use.
            device: Destination.
            stays: Whether chunks remain on the device.
            ahead: Whether the next chunk is read while the current one is in use.
        """
        self.data, self.pieces, self.device, self.stays = data, pieces, device, stays
        self._here: dict[tuple[int, int], Tensor] = {}
        self._reader = ThreadPoolExecutor(max_workers=1) if ahead and not stays else None
        self._coming: dict[tuple[int, int], Future[Tensor]] = {}

    def read(self, first: int, last: int) -> Tensor:
        """Read the images of one chunk, or of a part of one.

        Args:
            first: First example.
            last: Last example, exclusive.

        Returns:
            Images on the device, (last - first, c, h, w).
        """
        if self.stays:
            for begin, end in self.pieces:
                if begin <= first and last <= end:
                    return self._keep((begin, end))[first - begin : last - begin]
        piece = first, last
        coming = self._coming.pop(piece, None)
        images = self._fetch(piece) if coming is None else coming.result()
        if self._reader is not None and piece in self.pieces:
            after = self.pieces[(self.pieces.index(piece) + 1) % len(self.pieces)]
            if after != piece:
                self._coming = {after: self._reader.submit(self._fetch, after)}
        return images.to(self.device, non_blocking=True)

    def _keep(self, piece: tuple[int, int]) -> Tensor:
        """Return a whole chunk, which is read once."""
        if piece not in self._here:
            self._here[piece] = self._fetch(piece).to(self.device, non_blocking=True)
        return self._here[piece]

    def _fetch(self, piece: tuple[int, int]) -> Tensor:
        images = self.data.read(*piece)
        if self.device.type != "cuda":
            return images
        with enter_device(self.device):  # each thread has its own
            return images.pin_memory()


def make_prefetcher(device: torch.device, data: Data, pieces: list[tuple[int, int]]) -> Prefetcher:
    """Make a prefetcher with the strategy that suits a device.

    Args:
        device: Destination.
        data: The data set.
        pieces: First and last example (exclusive) of each chunk, in the order of use.

    Returns:
        The prefetcher.
    """
    if not is_gpu(device):
        return Prefetcher(data, pieces, device)
    channels, height, width = data.shape
    free, _ = read_memory(device)
    stays = 4 * data.n * channels * height * width <= free // MEMORY_DIVISOR
    return Prefetcher(data, pieces, device, stays, ahead=True)
