"""Report the attack on one image: lines for the terminal, and a page."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from bench.attacks.common import ONE_IMAGE
from bench.core.files import write_atomic
from bench.evaluation.audit.checks import USED_SHARE
from bench.reporting import templates
from bench.reporting.formats import markdown, numbers
from bench.reporting.formats.numbers import format_number
from bench.reporting.report.views import View
from bench.workflows.single_image.attack import Prediction, SingleImageResult

SIZES = ("linf", "l2", "l1", "l0")


def format_lines(told: SingleImageResult, every: int) -> Iterator[str]:
    """Format the result for the terminal.

    Args:
        told: The result.
        every: Show the loss of every so many steps.

    Yields:
        Lines: losses, likeliest classes before and after, norms, the outcome.
    """
    yield from (f"note: {note}" for note in told.notes)
    for step, loss in select_steps(told, every):
        yield f"step {step:4d}   loss {loss:.6g}"
    for when, answer in (("before", told.before), ("after", told.after)):
        likeliest = ", ".join(f"{name} {share:.4f}" for name, share in answer.top)
        yield f"{when}: {likeliest}; {told.label} (the label) {answer.true:.4g}"
    sizes = ", ".join(f"{name} {told.record[name]:.6g}" for name in SIZES)
    yield f"change: {sizes}; shown {told.magnified:g} times in {told.figure}"
    name, share = told.read_back.top[0]
    yield f"read back from {told.png}: {name} {share:.4f}"
    if told.record["violation"]:
        yield f"violation: {told.record['violation']}"
    yield describe_verdict(told)
    if doubt := describe_unused_budget(told):
        yield doubt


def select_steps(told: SingleImageResult, every: int) -> Iterator[tuple[int, float]]:
    """Select the losses to show.

    Args:
        told: The result.
        every: Distance of the shown steps.

    Yields:
        (step, loss); the last step is always among them.
    """
    for step, loss in enumerate(told.losses):
        if step % every == 0 or step == len(told.losses) - 1:
            yield step, loss


def describe_verdict(told: SingleImageResult) -> str:
    """State whether the attack succeeded.

    Args:
        told: The result.

    Returns:
        One sentence.
    """
    aim = f"as {told.target}" if told.target else "as another class"
    return f"{Path(told.name).name} {'is taken' if told.record['fooled'] else 'is not taken'} {aim}"


def describe_unused_budget(told: SingleImageResult) -> str:
    """Warn that a failed attack is no evidence if it used less than half of its budget.

    Args:
        told: The result.

    Returns:
        One sentence, or "" if there is no such doubt.
    """
    entry = told.attack
    eps, moved = entry.eps[0], told.record[entry.norm]
    searched = entry.attack.budget == "minimum" or entry.norm == "l0"
    tried = told.record["attacked"] and not told.record["fooled"] and eps.value > 0
    if not tried or searched or moved >= USED_SHARE * eps.value:
        return ""
    others = [] if entry.name == ONE_IMAGE else [f"--attack {ONE_IMAGE}"]
    names = {field.name for field in dataclasses.fields(entry.params)}
    others += [f"a larger --param {name}" for name in ("lr", "alpha", "steps") if name in names]
    return (
        f"no evidence of robustness: the attack moved the image by {moved:.3g} of the {eps.text} "
        f"({numbers.NORM_NAMES[entry.norm]}) that it was allowed; try {' or '.join(others[:3])}"
    )


def write_page(told: SingleImageResult, every: int, command: str, folder: Path) -> Path:
    """Write the result as NAME-attack.md beside the figure.

    Args:
        told: The result.
        every: Show the loss of every so many steps.
        command: The command to print.
        folder: Folder to write to.

    Returns:
        Path of the page.
    """
    entry = told.attack
    settings = (
        f"{entry.label}, {numbers.NORM_NAMES[entry.norm]} eps {entry.eps[0].text}, {entry.goal}"
    )
    source = "the data set's" if told.known else "the model's own prediction of the clean image"
    likeliest = [
        [str(k + 1), *_share(told.before, k), *_share(told.after, k), *_share(told.read_back, k)]
        for k in range(len(told.before.top))
    ]
    heads = [f"{when}{what}" for when in ("before", "after", "after, 8 bits read back")
             for what in ("", ", probability")]  # fmt: skip
    true = [f"{answer.true:.4g}" for answer in (told.before, told.after, told.read_back)]
    doubt = describe_unused_budget(told)
    trace = [[str(step), f"{loss:.6g}"] for step, loss in select_steps(told, every)]
    context = {
        "command": command,
        "image": Path(told.name).name,
        "attack": entry.label,
        "model": told.model,
        "settings": settings,
        "verdict": describe_verdict(told),
        "label": told.label,
        "label_source": source,
        "doubt": doubt and doubt[0].upper() + doubt[1:],
        "magnification": f"{told.magnified:g}",
        "figure": markdown.MarkdownText(os.path.relpath(told.figure, folder)),
        "likeliest": View("", ["rank", *heads], likeliest),
        "label_probability": View(
            "", ["probability of the label", "before", "after", "8 bits"], [["", *true]]
        ),
        "sizes": View(
            "",
            [numbers.NORM_NAMES[name] for name in SIZES],
            [[format_number(told.record[name], 6) for name in SIZES]],
        ),
        "trace": View("", ["step", f"loss ascended ({_loss(told)})"], trace) if trace else None,
    }
    path = told.figure.with_suffix(".md")
    return write_atomic(path, templates.render_markdown("single_image.md", context))


def _loss(told: SingleImageResult) -> str:
    """Without a target, leaving the label is all that is left of "label-and-target"."""
    name = str(told.attack.params.loss)
    return "cross-entropy" if name == "label-and-target" and not told.target else name


def _share(answer: Prediction, place: int) -> tuple[str, str]:
    name, share = answer.top[place]
    return name, f"{share:.4f}"
