"""Memory that runs out is recognised in all its forms, and fewer rows are then captured anew."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.engine import cuda_graphs, stream
from bench.engine.model_state import is_out_of_memory
from bench.engine.resident_rows import copy_changed
from bench.engine.tensor_tree import count_rows

MESSAGES = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "XPU out of memory. Tried to allocate 2.00 GiB.",
    "MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 3.2 MB)",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "miopenStatusAllocFailed",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)",
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried",
    "std::bad_alloc",
)
OTHERS = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle, m)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle, m)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "Expected all tensors to be on the same device",
    "mat1 and mat2 shapes cannot be multiplied (4x784 and 10x784)",
)
KINDS = [torch.OutOfMemoryError, RuntimeError]
if hasattr(torch, "AcceleratorError"):  # since torch 2.8
    KINDS.append(torch.AcceleratorError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_says_that_memory_ran_out(message: str, kind: Any) -> None:
    assert is_out_of_memory(kind(message))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_are_not_taken_for_it(message: str, kind: Any) -> None:
    assert not is_out_of_memory(kind(message))


def test_an_error_that_hides_it_is_recognised() -> None:
    """The end of a capture fails with an error of its own."""
    hidden, end = RuntimeError(MESSAGES[0]), RuntimeError("operation failed during capture")
    assert not is_out_of_memory(end)
    end.__context__ = hidden
    assert is_out_of_memory(end)


Attacked = Callable[..., stream.StreamResult]


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.double().requires_grad_(False)


class Capture:
    """In place of CUDA graphs: a capture takes memory for `most` rows; what is captured counts."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.tried: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, step: Any, static: Any, number: int, memory: Any) -> Any:
        rows = count_rows(static)
        self.tried.append(rows)
        if rows > self.most:
            raise self.error

        def replay() -> None:
            self.replayed.append(rows)
            copy_changed(step(static, number), static)

        return replay


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Capture]:
    def start(most: int, error: Exception | None = None) -> Capture:
        capture = Capture(most, error or RuntimeError(MESSAGES[6]))
        monkeypatch.setattr(cuda_graphs, "capture_graph", capture)
        monkeypatch.setattr(stream, "runs_asynchronously", lambda device: True)
        return capture

    return start


def attack(net: nn.Module, digits: tuple[Tensor, Tensor], attacked: Attacked) -> Any:
    x, y = digits[0][:16].double(), digits[1][:16]
    settings = {"params": {"steps": 4}, "stop": "never"}
    return attacked(net, x, y, "pgd", (0.1,), rows=16, **settings)


@pytest.mark.parametrize(
    ("most", "tried", "rows"),
    [
        (16, [16], 16),
        (8, [16, 8], 8),  # captured anew for half the rows
        (4, [16, 8], 4),  # no longer captured, after it failed twice
    ],
)
def test_after_memory_ran_out_fewer_rows_are_captured_anew(
    most: int,
    tried: list[int],
    rows: int,
    net: nn.Module,
    digits: Any,
    attacked: Attacked,
    capturing: Any,
) -> None:
    wanted = attack(net, digits, attacked)
    capture = capturing(most)
    result = attack(net, digits, attacked)
    assert capture.tried == tried
    assert result.rows == rows
    # 16 images in batches of `rows`, whose 4 steps are one recording.
    assert capture.replayed == ([rows] * (16 // rows) if most >= 8 else [])
    assert torch.allclose(result.x_adv, wanted.x_adv, rtol=0, atol=1e-6)
