"""Parts: memory over repeated calls, passes of a large network, AutoAttack, a second GPU."""

import gc
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.core.contracts.attack import EnsembleAttack
from bench.core.contracts.types import Precision
from bench.engine import timing
from bench.engine.acceleration import layers
from bench.engine.acceleration.accelerate import AcceleratedNet
from bench.engine.acceleration.calibration import LAYOUTS, Layout
from bench.engine.device import enter_device, has_tf32
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.evaluation.crafting import Examples
from bench.evaluation.ensemble import run_ensemble
from bench.evaluation.judge import judge
from bench.workflows.gpu_check.setup import (
    Job,
    Setup,
    build_net,
    load_net,
    make_spec,
    run_engine,
)

LARGE_NET = "resnet50"
ROBUST_WEIGHTS, ROBUST_EPS = "mnist-pgd", 0.3


def list_memory_jobs(setup: Setup) -> Iterator[Job]:
    """List what is measured of memory and of waiting.

    Args:
        setup: Device, images and sizes.

    Yields:
        Jobs.
    """
    yield Job("repeated calls", partial(compare_memory, setup))
    yield Job("waits of the host", partial(count_waits, setup))


def compare_memory(setup: Setup) -> dict[str, Any]:
    """Attack several times without a garbage collection, and read the memory after each call.

    Args:
        setup: Device, images and sizes.

    Returns:
        Bytes `allocated` and `reserved` after each call, and whether the allocated ones `grow`
        after the second call; of a CPU nothing is known.
    """
    net, allocated, reserved = load_net(setup.device), [], []
    spec = make_spec("pgd", "linf", (0.1, 0.3), params={"steps": setup.sizes.pgd_steps})
    n = min(1000, len(setup.x))
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(setup.sizes.calls):
            run_engine(net, spec, setup.x[:n], setup.y[:n], 8192)
            if setup.device.type == "cuda":
                allocated.append(torch.cuda.memory_allocated(setup.device))
                reserved.append(torch.cuda.memory_reserved(setup.device))
    finally:
        if collects:
            gc.enable()
    grows = bool(allocated) and allocated[-1] > allocated[min(1, len(allocated) - 1)]
    return {"allocated": allocated, "reserved": reserved, "grows": grows}


def count_waits(setup: Setup) -> dict[str, Any]:
    """Count how often the host waits in one attack, as CUDA itself reports it.

    Args:
        setup: Device, images and sizes.

    Returns:
        `waits`; None on a CPU.
    """
    if setup.device.type != "cuda":
        return {"waits": None}
    net = load_net(setup.device)
    spec = make_spec("pgd", "linf", (0.1,), stop="never", params={"steps": setup.sizes.pgd_steps})
    n = min(1000, len(setup.x))
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run_engine(net, spec, setup.x[:n], setup.y[:n], n)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return {"waits": sum("synchroniz" in str(each.message) for each in caught)}


def list_precisions(device: torch.device) -> list[Precision]:
    """List the arithmetics of gradients that a device has.

    Args:
        device: The device.

    Returns:
        float32 first; without tf32 where it would be float32.
    """
    return ["float32", "tf32", "bfloat16"] if has_tf32(device) else ["float32", "bfloat16"]


def list_precision_jobs(setup: Setup) -> Iterator[Job]:
    """List gradients of the large network by batch size, precision and memory layout.

    Args:
        setup: Device, images and sizes.

    Yields:
        Jobs.
    """
    net = build_net(LARGE_NET, setup.device)
    for size in setup.sizes.large:
        for precision in list_precisions(setup.device):
            for layout in LAYOUTS:
                yield Job(
                    f"{size} images, {precision}, {layout}",
                    partial(time_gradient, setup, net, size, precision, layout),
                )


def time_gradient(
    setup: Setup, net: nn.Module, n: int, precision: Precision, layout: Layout
) -> dict[str, Any]:
    """Time one gradient of a network with fused layers.

    Args:
        setup: Device, images and sizes.
        net: The network on the device, in evaluation mode; it is copied.
        n: Images a batch.
        precision: Arithmetic of the pass.
        layout: Memory layout of images and weights.

    Returns:
        `seconds` of a pass, and `images_per_second`.
    """
    device, side = setup.device, setup.sizes.side
    fused = layers.fuse_layers(net, device.type == "cpu")
    fast = AcceleratedNet(fused, layout, precision).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, side, side, generator=generator).to(device)
    y = torch.zeros(n, dtype=torch.int64, device=device)
    objective = make_objective("cross-entropy", "untargeted")
    with allow_tf32(precision == "tf32"):
        seconds, _ = timing.median_seconds(
            lambda: gradient_pass(fast, objective, x, y, y), device, 1.0
        )
    return {"seconds": seconds, "images_per_second": n / seconds}


def list_ensemble_jobs(setup: Setup) -> Iterator[Job]:
    """List AutoAttack on the robust LeNet.

    Args:
        setup: Device, images and sizes.

    Yields:
        One job.
    """
    yield Job(f"linf, eps {ROBUST_EPS}", partial(run_autoattack, setup))


def run_autoattack(setup: Setup) -> dict[str, Any]:
    """Run AutoAttack on the LeNet that was trained against PGD.

    Args:
        setup: Device, images and sizes.

    Returns:
        `images` that were attacked, `robust` ones, `broken_by` each part, `seconds`.
    """
    net, n = load_net(setup.device, ROBUST_WEIGHTS), setup.sizes.robust
    params = setup.sizes.ensemble
    spec = make_spec("autoattack", "linf", (ROBUST_EPS,), params=params)
    assert isinstance(spec.attack, EnsembleAttack)
    x, y = setup.x[:n], setup.y[:n]
    clean = judge(net, x, 8192)
    right = clean.pred == y
    ids = torch.arange(len(x), device=x.device)
    fields = (ids, x, y, torch.full_like(y, -1), clean.pred, clean.confidence, clean.agreement)
    chosen = Examples(*(field[right] for field in fields))
    output, seconds = timing.time_call(lambda: run_ensemble(net, spec, chosen, 8192), setup.device)
    assert output.part is not None
    labels = [part.label for part in spec.attack.parts(spec.params, "linf")]
    part = output.part[0].tolist()
    return {
        "images": len(chosen.id),
        "robust": part.count(-1),
        "broken_by": {label: part.count(number) for number, label in enumerate(labels)},
        "attack_seconds": seconds,
    }


def list_device_jobs(setup: Setup) -> Iterator[Job]:
    """List a comparison with a second GPU.

    Args:
        setup: Device, images and sizes.

    Yields:
        One job.
    """
    yield Job("PGD", partial(compare_devices, setup))


def compare_devices(setup: Setup) -> dict[str, Any]:
    """Attack on another GPU, which is not the current one when the check starts.

    Args:
        setup: Device, images and sizes.

    Returns:
        `devices` that there are; with a second one also `captured`, and whether the images are
        `equal`.
    """
    count = torch.cuda.device_count() if setup.device.type == "cuda" else 0
    if count < 2:
        return {"devices": count}
    other = torch.device("cuda", 0 if setup.device.index else 1)
    n = setup.sizes.captured
    runs = []
    for device in (setup.device, other):
        x, y = setup.x[:n].to(device), setup.y[:n].to(device)
        spec = make_spec("pgd", "linf", (0.1,), stop="never", params={"steps": setup.sizes.steps})
        with enter_device(device):
            runs.append(run_engine(load_net(device), spec, x, y, n))
    images = [run.result.x_adv.cpu() for run in runs]
    return {
        "devices": count,
        "captured": not any(run.failures for run in runs),
        "equal": torch.equal(*images),
    }
