"""Capture one step of the engine as a CUDA graph: one launch in place of a hundred.

The pass of a small network ends before the host has launched its next kernel. A captured step
(forward, backward, update and the test for success) costs one launch. Unused rows of the buffers
hold old values; as no row reads another, they change nothing but the time.
"""

from collections.abc import Callable

import torch

from bench.engine import heartbeat
from bench.engine.model_state import is_out_of_memory
from bench.engine.tensor_tree import Batch, count_rows, list_tensors, map_tensors, take_rows

WARM = 3
"""Calls before the capture, as torch requires: libraries choose their kernels in them."""


def capture(turn: Callable[[Batch], Batch], most: int) -> Callable[[Batch], Batch]:
    """Capture a function as CUDA graphs when it is first called, and replay them afterwards.

    Graphs are captured for `most` rows and its halves; the smallest that holds a batch is used. A
    function that cannot be captured (its model asks the host for values) runs as it is.

    Args:
        turn: Function of a batch that returns a batch of its kind.
        most: Largest number of rows.

    Returns:
        A function with the same result.
    """
    graphs: dict[int, Callable[[Batch], Batch]] = {}

    def run(batch: Batch) -> Batch:
        held = most
        while held // 2 >= count_rows(batch):
            held //= 2
        if held not in graphs:
            graphs[held] = capture_graph(turn, pad_rows(batch, held))
        return graphs[held](batch)

    return run


def capture_graph(turn: Callable[[Batch], Batch], example: Batch) -> Callable[[Batch], Batch]:
    """Capture `turn` as a graph over buffers of the example's shapes.

    Args:
        turn: Function of a batch that returns a batch of its kind.
        example: A batch of as many rows as the graph holds.

    Returns:
        A function that replays the graph; `turn` itself if the capture fails.

    Raises:
        RuntimeError: The buffers do not fit the GPU's memory.
    """
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
    except Exception as error:  # foreign code: the step runs kernel by kernel
        if is_out_of_memory(error):
            raise
        return turn
    return lambda batch: replay(graph.replay, static, batch)


def replay(launch: Callable[[], None], static: Batch, batch: Batch) -> Batch:
    """Fill the buffers from a batch, run a recording, and read as many rows back.

    Args:
        launch: Replays the recording over the buffers.
        static: The buffers, with at least as many rows as the batch.
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.

    Returns:
        The rows of the batch after the recorded function.
    """
    copy_rows(batch, static)
    launch()
    heartbeat.beat()  # no module is called here that could report one
    return map_tensors(lambda buffer: buffer[: count_rows(batch)].clone(), static)


def copy_rows(source: Batch, into: Batch) -> None:
    """Copy each tensor into the first rows of its buffer.

    Args:
        source: Batch to copy.
        into: Buffers of the same structure.
    """
    for new, buffer in zip(list_tensors(source), list_tensors(into), strict=True):
        buffer[: len(new)].copy_(new)


def pad_rows(batch: Batch, held: int) -> Batch:
    """Repeat the rows of a batch until there are `held`.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.
        held: Number of rows.

    Returns:
        The padded batch.
    """
    return take_rows(
        batch, torch.arange(held, device=list_tensors(batch)[0].device) % count_rows(batch)
    )
