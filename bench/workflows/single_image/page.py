"""Report the attack on one image: lines for the terminal, and a page."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from bench.attacks.common import ONE_IMAGE
from bench.core.contracts.types import BALLS
from bench.core.files import write_atomic
from bench.evaluation.audit.checks import USED_SHARE
from bench.reporting import templates
from bench.reporting.formats import markdown, numbers
from bench.reporting.formats.numbers import format_number
from bench.reporting.report.views import View
from bench.workflows.single_image.attack import Prediction, SingleImageResult

SIZES = ("linf", "l2", "l1", "l0")


def format_lines(result: SingleImageResult, every: int) -> Iterator[str]:
    """Format the result for the terminal.

    Args:
        result: The result.
        every: Show the loss of every so many steps.

    Yields:
        Lines: losses, likeliest classes before and after, norms, the outcome.
    """
    yield from (f"note: {note}" for note in result.notes)
    for step, loss in select_steps(result, every):
        yield f"step {step:4d}   loss {loss:.6g}"
    for when, answer in (("before", result.before), ("after", result.after)):
        likeliest = ", ".join(f"{name} {share:.4f}" for name, share in answer.top)
        yield f"{when}: {likeliest}; {result.label} (the label) {answer.true:.4g}"
    sizes = ", ".join(f"{name} {result.record[name]:.6g}" for name in SIZES)
    yield f"change: {sizes}; shown {result.magnified:g} times in {result.figure}"
    name, share = result.read_back.top[0]
    yield f"read back from {result.png}: {name} {share:.4f}"
    if result.record["violation"]:
        yield f"violation: {result.record['violation']}"
    yield describe_verdict(result)
    if doubt := describe_unused_budget(result):
        yield doubt


def select_steps(result: SingleImageResult, every: int) -> Iterator[tuple[int, float]]:
    """Select the losses to show.

    Args:
        result: The result.
        every: Distance of the shown steps.

    Yields:
        (step, loss); the last step is always among them.
    """
    for step, loss in enumerate(result.losses):
        if step % every == 0 or step == len(result.losses) - 1:
            yield step, loss


def describe_verdict(result: SingleImageResult) -> str:
    """State whether the attack succeeded.

    Args:
        result: The result.

    Returns:
        One sentence.
    """
    aim = f"as {result.target}" if result.target else "as another class"
    taken = "is taken" if result.record["fooled"] else "is not taken"
    return f"{Path(result.name).name} {taken} {aim}"


def describe_unused_budget(result: SingleImageResult) -> str:
    """Warn that a failed attack is no evidence if it used less than half of its budget.

    Args:
        result: The result.

    Returns:
        One sentence, or "" if there is no such doubt.
    """
    entry = result.attack
    if entry.norm not in BALLS:  # a level is no distance
        return ""
    eps, moved = entry.eps[0], result.record[entry.norm]
    searched = entry.attack.budget == "minimum" or entry.norm == "l0"
    tried = result.record["attacked"] and not result.record["fooled"] and eps.value > 0
    if not tried or searched or moved >= USED_SHARE * eps.value:
        return ""
    others = [] if entry.name == ONE_IMAGE else [f"--attack {ONE_IMAGE}"]
    names = {field.name for field in dataclasses.fields(entry.params)}
    others += [f"a larger --param {name}" for name in ("lr", "alpha", "steps") if name in names]
    return (
        f"no evidence of robustness: the attack moved the image by {moved:.3g} of the {eps.text} "
        f"({numbers.NORM_NAMES[entry.norm]}) that it was allowed; try {' or '.join(others[:3])}"
    )


def write_page(result: SingleImageResult, every: int, command: str, folder: Path) -> Path:
    """Write the result as NAME-attack.md beside the figure.

    Args:
        result: The result.
        every: Show the loss of every so many steps.
        command: The command to print.
        folder: Folder to write to.

    Returns:
        Path of the page.
    """
    entry = result.attack
    settings = (
        f"{entry.label}, {numbers.format_norm(entry.norm)} eps {entry.eps[0].text}, {entry.goal}"
    )
    source = "the data set's" if result.known else "the model's own prediction of the clean image"
    likeliest = [
        [
            str(k + 1),
            *_share(result.before, k),
            *_share(result.after, k),
            *_share(result.read_back, k),
        ]
        for k in range(len(result.before.top))
    ]
    heads = [f"{when}{what}" for when in ("before", "after", "after, 8 bits read back")
             for what in ("", ", probability")]  # fmt: skip
    true = [f"{answer.true:.4g}" for answer in (result.before, result.after, result.read_back)]
    doubt = describe_unused_budget(result)
    trace = [[str(step), f"{loss:.6g}"] for step, loss in select_steps(result, every)]
    context = {
        "command": command,
        "image": Path(result.name).name,
        "attack": entry.label,
        "model": result.model,
        "settings": settings,
        "verdict": describe_verdict(result),
        "label": result.label,
        "label_source": source,
        "doubt": doubt and doubt[0].upper() + doubt[1:],
        "magnification": f"{result.magnified:g}",
        "figure": markdown.MarkdownText(os.path.relpath(result.figure, folder)),
        "likeliest": View("", ["rank", *heads], likeliest),
        "label_probability": View(
            "", ["probability of the label", "before", "after", "8 bits"], [["", *true]]
        ),
        "sizes": View(
            "",
            [numbers.NORM_NAMES[name] for name in SIZES],
            [[format_number(result.record[name], 6) for name in SIZES]],
        ),
        "trace": View("", ["step", f"loss ascended ({_loss(result)})"], trace) if trace else None,
    }
    path = result.figure.with_suffix(".md")
    return write_atomic(path, templates.render_markdown("single_image.md", context))


def _loss(result: SingleImageResult) -> str:
    """Without a target, leaving the label is all that is left of "label-and-target"."""
    name = str(result.attack.params.loss)
    return "cross-entropy" if name == "label-and-target" and not result.target else name


def _share(answer: Prediction, place: int) -> tuple[str, str]:
    name, share = answer.top[place]
    return name, f"{share:.4f}"
