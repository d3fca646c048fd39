"""adversarial-library: one function, `pgd_linf`, with and without a random start.

It returns the last iterate that fooled the model, or the clean image if none did. The image after
the last step is not evaluated, so k - 1 of k steps count. It has no FGSM (one step would return the
clean image) and no momentum.
It needs visdom, which builds only with setuptools below 81: `pip install "setuptools<81" wheel`,
then `pip install --no-build-isolation adv-lib`.
Source: Rony and Ben Ayed 2020, version 0.2.8.
"""

from collections.abc import Iterator

from torch import Tensor

from bench.workflows.speed.setup import (
    BatchResult,
    Competitor,
    RaceTask,
    RunWork,
    library_competitor,
    run_library_loop,
)
from bench.workflows.speed.workloads import Workload

LAST = "returns the last fooling iterate, without evaluating the last step"
NOTES = {"pgd": f"its own random starts; {LAST}", "bim": LAST}


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    yield library_competitor(
        work,
        prepare,
        name="adversarial-library",
        distribution="adv-lib",
        peer="adv_lib",
        notes=NOTES,
    )


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    from adv_lib.attacks import pgd_linf

    start = bool(getattr(task.params, "random_start", False))

    def attack(x: Tensor, y: Tensor, eps: float) -> BatchResult:
        return BatchResult(
            pgd_linf(
                task.model,
                x,
                y,
                eps,
                steps=task.steps,
                random_init=start,
                absolute_step_size=task.alpha(eps),
            )
        )

    return lambda rows: run_library_loop(task, rows, attack)
