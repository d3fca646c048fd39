"""The images of a data set on the device that needs them, a shard at a time.

On a GPU a data set that fits stays there once it has been read; of a larger one the next shard is
read and pinned by another thread while this one is attacked, so that the GPU does not wait for a
disk or a decoder. On a CPU the images are where they are needed already.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data

CHUNK_DIVISOR = 4
"""A data set may take one part in so many of a GPU's free memory."""


class Prefetcher:
    """`data` cut into `pieces` of (first, last), handed out on `device`."""

    def __init__(
        self,
        data: Data,
        pieces: list[tuple[int, int]],
        device: torch.device,
        stays: bool = False,
        ahead: bool = False,
    ) -> None:
        self.data, self.pieces, self.device, self.stays = data, pieces, device, stays
        self._here: dict[tuple[int, int], Tensor] = {}
        self._reader = ThreadPoolExecutor(max_workers=1) if ahead and not stays else None
        self._coming: dict[tuple[int, int], Future[Tensor]] = {}

    def read(self, first: int, last: int) -> Tensor:
        """The images of one piece, (last - first, c, h, w), on the device."""
        piece = first, last
        if piece in self._here:
            return self._here[piece]
        coming = self._coming.pop(piece, None)
        images = self._fetch(piece) if coming is None else coming.result()
        if self._reader is not None and piece in self.pieces:
            after = self.pieces[(self.pieces.index(piece) + 1) % len(self.pieces)]
            if after != piece:
                self._coming = {after: self._reader.submit(self._fetch, after)}
        images = images.to(self.device, non_blocking=True)
        if self.stays:
            self._here[piece] = images
        return images

    def _fetch(self, piece: tuple[int, int]) -> Tensor:
        images = self.data.read(*piece)
        return images.pin_memory() if self.device.type == "cuda" else images


def make_prefetcher(device: torch.device, data: Data, pieces: list[tuple[int, int]]) -> Prefetcher:
    """The feed of `data` as that device wants it."""
    if device.type != "cuda":
        return Prefetcher(data, pieces, device)
    channels, height, width = data.shape
    free, _ = torch.cuda.mem_get_info(device)
    stays = 4 * data.n * channels * height * width <= free // CHUNK_DIVISOR
    return Prefetcher(data, pieces, device, stays, ahead=True)
