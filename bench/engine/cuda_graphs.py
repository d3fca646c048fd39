"""One turn of the engine recorded as a CUDA graph: one launch instead of a hundred.

A small network's pass is over before the host has launched its next kernel. Recorded once and
replayed, a turn (forward, backward, step and who is done) costs one launch. Rows beyond those that
are in use hold what was left there: no row reads another, so they change nothing but the time.
"""

from collections.abc import Callable

import torch

from bench.engine import heartbeat
from bench.engine.tensor_tree import Batch, count_rows, list_tensors, map_tensors, take_rows

WARM = 3
"""Turns made before recording, as torch asks: libraries choose their kernels there."""


def capture(turn: Callable[[Batch], Batch], most: int) -> Callable[[Batch], Batch]:
    """`turn`, recorded when it is first needed for a number of rows, and replayed from then on.

    Recordings are made for `most` rows and its halves, and the smallest that holds a batch is used.
    What cannot be recorded (a model that asks the host for values) is run as it is.
    """
    recorded: dict[int, Callable[[Batch], Batch]] = {}

    def play(batch: Batch) -> Batch:
        held = most
        while held // 2 >= count_rows(batch):
            held //= 2
        if held not in recorded:
            recorded[held] = capture_graph(turn, pad_rows(batch, held))
        return recorded[held](batch)

    return play


def capture_graph(turn: Callable[[Batch], Batch], example: Batch) -> Callable[[Batch], Batch]:
    """`turn` as a graph over buffers of the example's shapes; `turn` itself if that fails."""
    try:
        static = map_tensors(torch.clone, example)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                turn(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            copy_rows(turn(static), static)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a stranger's model or rule: the turn is made launch by launch
        return turn
    return lambda batch: replay(graph.replay, static, batch)


def replay(replay: Callable[[], None], static: Batch, batch: Batch) -> Batch:
    """Fill the buffers from `batch`, replay, and read as many rows back."""
    copy_rows(batch, static)
    replay()
    heartbeat.beat()  # no module is called here that could give a sign of life
    return map_tensors(lambda buffer: buffer[: count_rows(batch)].clone(), static)


def copy_rows(source: Batch, into: Batch) -> None:
    """Copy each tensor into the first rows of its buffer."""
    for new, buffer in zip(list_tensors(source), list_tensors(into), strict=True):
        buffer[: len(new)].copy_(new)


def pad_rows(batch: Batch, held: int) -> Batch:
    """`batch` with its rows repeated until there are `held`."""
    return take_rows(
        batch, torch.arange(held, device=list_tensors(batch)[0].device) % count_rows(batch)
    )
