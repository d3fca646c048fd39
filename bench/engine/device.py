"""What differs between the devices that compute: names, queues, memory, arithmetic."""

import contextlib
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from bench.core.contracts.types import GPUS

TF32_CAPABILITY = 8
"""First major compute capability of GPUs that multiply in TF32: that of Ampere."""


def is_gpu(device: torch.device) -> bool:
    """Return whether a device is a GPU that works through a queue beside the processor.

    Args:
        device: The device.

    Returns:
        True for a device of GPUS.
    """
    return device.type in GPUS


def enter_device(device: torch.device) -> AbstractContextManager[None]:
    """Make a GPU the current one of this thread; restore the former one afterwards.

    What names no device is placed on the current one: streams, graphs, kernels and libraries of
    foreign code. Each thread has its own current device, the first one of the machine by default.

    Args:
        device: The device; a processor needs no entering.

    Returns:
        A context in which the device is current.
    """
    if not is_gpu(device):
        return contextlib.nullcontext()
    entered: AbstractContextManager[None] = torch.get_device_module(device).device(device)
    return entered


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor.

    Args:
        device: The device.

    Returns:
        The name, such as "NVIDIA H100".
    """
    if not is_gpu(device):
        return processor_name()
    return str(torch.get_device_module(device).get_device_name(device))


def processor_name() -> str:
    """Return the model name of the processor.

    Returns:
        The name, such as "Intel(R) Xeon(R) Platinum 8481C".
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def has_tf32(device: torch.device) -> bool:
    """Return whether a device can round float32 products to TF32.

    Args:
        device: The device.

    Returns:
        True for an NVIDIA GPU of compute capability 8.0 or later; elsewhere torch's settings for
        TF32 change nothing, and products are in float32.
    """
    if device.type != "cuda" or torch.version.hip:
        return False
    major, _ = torch.get_device_module(device).get_device_capability(device)
    return bool(major >= TF32_CAPABILITY)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queue.

    Args:
        device: The device; a processor has none.
    """
    if is_gpu(device):
        torch.get_device_module(device).synchronize(device)


def read_memory(device: torch.device) -> tuple[int, int]:
    """Read the memory of a GPU.

    Args:
        device: A GPU.

    Returns:
        Bytes that are free, and all bytes.
    """
    free, total = torch.get_device_module(device).mem_get_info(device)
    return int(free), int(total)


def find_missing_arithmetic(device: torch.device) -> str:
    """Say why a device cannot verify images, which takes float64.

    Args:
        device: The device.

    Returns:
        The reason; empty for a device that computes in float64.
    """
    if device.type == "mps":
        return "Metal (mps) does not compute in float64, in which bench verifies distances"
    if device.type == "xpu" and not _read_properties(device).has_fp64:
        return "this XPU does not compute in float64, in which bench verifies distances"
    return ""


def _read_properties(device: torch.device) -> Any:
    return torch.get_device_module(device).get_device_properties(device)
