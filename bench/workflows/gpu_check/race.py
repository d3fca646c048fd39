"""Part: PGD on LeNet at seven eps, against torchattacks and against the memory's bandwidth."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.core.optional import import_library
from bench.core.rng import seed_global
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.evaluation.judge import judge
from bench.workflows.gpu_check.setup import Job, Setup, load_net, make_spec, run_engine

EPS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
ALPHA = 0.01
ROUNDS = 3
"""Timed runs after one that warms up; the fastest counts."""
COPIED = 2**28
"""Floats that are copied on a GPU to measure its bandwidth: 1 GiB."""


def list_jobs(setup: Setup) -> Iterator[Job]:
    """List bench's and the library's runs, and what follows from them.

    Args:
        setup: Device, images and sizes.

    Yields:
        Jobs.
    """
    race, sizes = Race(setup), setup.sizes
    for rows in sizes.rows:
        yield Job(f"bench, {rows} rows", partial(race.run_bench, rows))
    rows = sizes.rows[1]
    yield Job(f"bench, {rows} rows, launch by launch", partial(race.run_bench, rows, False))
    yield Job(f"bench, {rows} rows, every step", partial(race.run_bench, rows, stop="never"))
    for size in sizes.batches:
        yield Job(f"torchattacks, batch {size}", partial(race.run_library, size))
    yield Job("ratios", race.compare)


class Race:
    """The runs of one race and their times."""

    def __init__(self, setup: Setup) -> None:
        """Load the model, which nobody changes.

        Args:
            setup: Device, images and sizes.
        """
        self.setup, self.net = setup, load_net(setup.device)
        with allow_tf32(False):
            self.copy = accelerate.accelerate_model(
                self.net, setup.x[:16], setup.sizes.rows[0], fixed=True
            ).model
        self.bench: dict[str, float] = {}
        self.library: dict[int, float] = {}
        self.gradients = 0.0
        """Rows whose gradient bench computes where it makes every step."""

    def run_bench(
        self, rows: int, captures: bool = True, stop: Any = "first-success"
    ) -> dict[str, Any]:
        """Time bench.

        Args:
            rows: Most rows a pass.
            captures: Whether steps may be captured.
            stop: "first-success" or "never".

        Returns:
            Seconds, correct predictions at each eps, and failed captures.
        """
        steps = self.setup.sizes.pgd_steps
        params = {"steps": steps, "alpha": ALPHA}
        spec = make_spec("pgd", "linf", EPS, stop=stop, params=params)
        x, y = self.setup.x, self.setup.y

        def attack() -> Any:
            return run_engine(self.net, spec, x, y, rows, captures=captures, accelerated=self.copy)

        run, seconds = _time(attack, self.setup.device)
        if captures:
            self.bench[stop] = min(seconds, self.bench.get(stop, seconds))
        if stop == "never":
            self.gradients = float(run.result.backwards.sum())
        return {
            "seconds": seconds,
            "correct": self._count(list(run.result.x_adv), y),
            "failed_captures": list(run.failures),
        }

    def run_library(self, batch: int) -> dict[str, Any]:
        """Time torchattacks at one batch size; the first size on a share of the images.

        Args:
            batch: Images a batch.

        Returns:
            Seconds for all images, images that were attacked, correct predictions at each eps.
        """
        library = import_library("torchattacks")
        setup = self.setup
        first = batch == setup.sizes.batches[0]
        n = max(len(setup.x) // setup.sizes.share, 1) if first else len(setup.x)
        x, y = setup.x[:n], setup.y[:n]

        def attack() -> list[Tensor]:
            with allow_tf32(False), seed_global("gpu-check", batch):
                return [
                    torch.cat(
                        [
                            library.PGD(
                                self.net, eps=eps, alpha=ALPHA, steps=setup.sizes.pgd_steps
                            )(*pair)
                            for pair in zip(x.split(batch), y.split(batch), strict=True)
                        ]
                    )
                    for eps in EPS
                ]

        images, seconds = _time(attack, setup.device, 1 if first else ROUNDS)
        self.library[batch] = seconds * len(setup.x) / n
        return {"seconds": self.library[batch], "images": n, "correct": self._count(images, y)}

    def _count(self, images: list[Tensor], y: Tensor) -> list[int]:
        """Count the images that the model still classifies as y, at each eps."""
        rows = self.setup.sizes.rows[0]
        return [int((judge(self.net, each, rows).pred == y).sum()) for each in images]

    def compare(self) -> dict[str, Any]:
        """Compute how often bench is faster, and how near it comes to the memory's bandwidth.

        Returns:
            `over_first` and `over_best` (seconds of the library at its first and its best batch
            size over bench's), `bandwidth` in bytes a second, `traffic` of a gradient in bytes a
            row, `limit` (seconds that its gradients take at that bandwidth where every operation
            reads and writes its tensors once) and `limit_share` (of the time with every step).
        """
        found: dict[str, Any] = {}
        ours, first = self.bench.get("first-success"), self.setup.sizes.batches[0]
        if ours and self.library:
            found["over_best"] = min(self.library.values()) / ours
        if ours and first in self.library:
            found["over_first"] = self.library[first] / ours
        bandwidth = measure_bandwidth(self.setup.device)
        traffic = count_traffic(self.net, self.setup.x[:2], self.setup.y[:2])
        found |= {"bandwidth": bandwidth, "traffic": traffic}
        if "never" in self.bench:
            limit = self.gradients * traffic / bandwidth
            found |= {"limit": limit, "limit_share": limit / self.bench["never"]}
        return found


def _time(work: Callable[[], Any], device: torch.device, rounds: int = ROUNDS) -> tuple[Any, float]:
    """Run once to warm up, then `rounds` times; return the last result and the least seconds."""
    work()
    runs = [timing.time_call(work, device) for _ in range(rounds)]
    return runs[-1][0], min(seconds for _, seconds in runs)


def measure_bandwidth(device: torch.device) -> float:
    """Measure how fast memory is copied.

    Args:
        device: The device.

    Returns:
        Bytes read and written in a second.
    """
    source = torch.ones(COPIED if device.type == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    seconds, _ = timing.median_seconds(lambda: target.copy_(source), device)
    return 2 * source.numel() * source.element_size() / seconds


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.bytes += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, Tensor)
            )
        return result


def count_traffic(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Count the bytes that the operations of one gradient read and write, for each row.

    The weights, which all rows of a pass share, are left out by a difference of two passes.

    Args:
        net: The model.
        x: Two images, (2, c, h, w).
        y: Labels, (2,).

    Returns:
        Bytes.
    """
    objective, counted = make_objective("cross-entropy", "untargeted"), []
    for n in (1, 2):
        with _Traffic() as traffic:
            gradient_pass(net, objective, x[:n], y[:n], y[:n])
        counted.append(traffic.bytes)
    return float(counted[1] - counted[0])
