"""Name the device that computes."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor.

    Args:
        device: The device.

    Returns:
        The name, such as "NVIDIA H100".
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()
