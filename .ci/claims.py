"""Set the figures of the source documents beside ours, in results/README.md.

    python .ci/claims.py [--write]

Every figure of ours is read from the stored tables of results/ and the cards of the shipped
weights. --write replaces the section between the two marks; without it the exit code is 1 if the
section is not what the stored files give.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.workflows.training.page import format_rate

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = RESULTS / "README.md"
MARKS = ("<!-- claims: written by .ci/claims.py -->", "<!-- end of claims -->")

Row = dict[str, str]


class Claim(NamedTuple):
    """A figure that a source document states, ours, and what explains the difference."""

    claim: str
    theirs: str
    ours: Callable[[], str]
    folder: str
    """Page of our figure, relative to results/."""
    reason: str


def find_cell(folder: str, model: str, attack: str, eps: float) -> Row:
    """Find the row of one cell in the table of a folder.

    Args:
        folder: Of results/.
        model: Label.
        attack: Label.
        eps: As in the suite.

    Returns:
        Column -> text.

    Raises:
        LookupError: There is not exactly one such cell.
    """
    rows = [
        row
        for row in _read_table(folder)
        if (row["model"], row["attack"], float(row["eps"] or "nan")) == (model, attack, eps)
    ]
    if len(rows) != 1:
        raise LookupError(f"results/{folder}: {len(rows)} cells are {model} · {attack} · {eps}")
    return rows[0]


@cache
def _read_table(folder: str) -> list[Row]:
    with (RESULTS / folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def robust(folder: str, model: str, attack: str, eps: float) -> Callable[[], str]:
    """Robust accuracy of a cell."""

    def read() -> str:
        row = find_cell(folder, model, attack, eps)
        return format_rate(int(row["robust_correct"]), int(row["n"]))

    return read


def error(folder: str, model: str, attack: str, eps: float) -> Callable[[], str]:
    """Error rate of a cell, and the mean confidence of the examples that it fooled."""

    def read() -> str:
        row = find_cell(folder, model, attack, eps)
        n = int(row["n"])
        made = format_rate(n - int(row["robust_correct"]), n)
        return f"{made}, {100 * float(row['mean_confidence_fooled']):.1f} %"

    return read


def curve(folder: str, model: str, attack: str, eps: tuple[float, ...]) -> Callable[[], str]:
    """Robust accuracy at several eps, without intervals."""

    def read() -> str:
        rows = [find_cell(folder, model, attack, each) for each in eps]
        return " ".join(f"{int(r['robust_correct']) / int(r['n']):.4f}"[1:] for r in rows)

    return read


def noise(attack: str) -> Callable[[], str]:
    """Successes, norms and cross-entropy of a row of regularised_noise, whatever its distance."""

    def read() -> str:
        row = find_cell("regularised_noise", "dropout CNN", attack, 28)
        l1, l2, loss = (
            float(row[key]) for key in ("mean_l1", "mean_l2", "mean_target_cross_entropy")
        )
        return f"{row['fooled']} of {row['n']}; L1 {l1:.1f}, L2 {l2:.2f}, loss {loss:.1g}"

    return read


def trained(weights: str, part: str) -> Callable[[], str]:
    """Accuracy on the card of shipped weights; `part` is train, validation or test."""

    def read() -> str:
        card = json.loads((ROOT / f"bench/models/weights/{weights}.json").read_text("utf-8"))
        return format_rate(card[f"{part}_correct"], card[f"{part}_n"])

    return read


EPS = (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ADVERSARIAL = "maxout, adversarial"
WIDE = "maxout 1600, adversarial"
CNN = "trained against PGD"
OTHER_NET = "our weights, of the same architecture and recipe: another seed"
SECTIONS: dict[str, list[Claim]] = {
    "LeNet: training, and FGSM over eps": [
        Claim(
            "test accuracy after 200 epochs",
            "99.04 %",
            trained("lenet-mnist", "test"),
            "training/lenet-mnist.md",
            "another seed; 5,000 images choose the epoch and are not trained on",
        ),
        Claim(
            "training accuracy",
            "99.99 %",
            trained("lenet-mnist", "train"),
            "training/lenet-mnist.md",
            "counted during the epoch that was kept",
        ),
        Claim(
            "accuracy under FGSM, eps 0, .05, ... .3",
            ".9904 .9690 .9079 .7557 .5029 .3029 .1596",
            curve("fgsm", "LeNet", "FGSM", EPS),
            "fgsm/report.md",
            f"{OTHER_NET}; every outcome equals that of torchattacks on the same weights",
        ),
        Claim(
            "the same, the older net of PyTorch's tutorial",
            ".9810 .9426 .8510 .6826 .4301 .2082 .0869",
            curve("fgsm", "LeNet", "FGSM", EPS),
            "fgsm/report.md",
            "a smaller net, trained without normalised pixels",
        ),
        Claim(
            "the same, with a loss that float32 does not round to 0",
            "—",
            curve("fgsm", "LeNet", "FGSM, margin loss", EPS),
            "fgsm/report.md",
            "from eps .15 on, cross-entropy has lost the gradient of many images",
        ),
    ],
    "Dropout CNN: training, and noise towards class 9 - d": [
        Claim(
            "validation accuracy",
            "99.33 %",
            trained("dropout_cnn-mnist", "validation"),
            "training/dropout_cnn-mnist.md",
            "the best of five seeds, all on that page",
        ),
        Claim(
            "L1 penalty: images of 16 that reach the target; the smallest L1 norm",
            "15",
            noise("L1 penalty"),
            "regularised_noise/report.md",
            "the source does not say which images; its order of norms is ours",
        ),
        Claim(
            "L2 penalty: the smallest L2 norm",
            "16",
            noise("L2 penalty"),
            "regularised_noise/report.md",
            "as above",
        ),
        Claim(
            "no penalty: both norms are the largest",
            "16; loss 2e-5",
            noise("no penalty"),
            "regularised_noise/report.md",
            "the loss depends on the number of steps, which the source does not state",
        ),
    ],
    "Goodfellow et al. 2015, MNIST, FGSM at L-inf 0.25: error, mean confidence of the fooled": [
        Claim(
            "softmax regression",
            "99.9 %, 79.3 %",
            error("transfer", "softmax", "FGSM from softmax", 0.25),
            "transfer/report.md",
            "another training, of a length that the source does not state; its confidence is that "
            "of all errors, as in the rows below",
        ),
        Claim(
            "maxout 240",
            "89.4 %, 97.6 %",
            error("transfer", "maxout", "FGSM from maxout", 0.25),
            "transfer/report.md",
            "another training; the source's net is not published",
        ),
        Claim(
            "maxout 1600 trained on FGSM",
            "17.9 %, 81.4 %",
            error("transfer_wide", WIDE, f"FGSM from {WIDE}", 0.25),
            "transfer_wide/report.md",
            "theirs: early stopping on attacked images, then training again on all 60,000; "
            "ours: 12 epochs",
        ),
        Claim(
            "examples of the original net on the trained one",
            "19.6 %, —",
            error("transfer_wide", WIDE, "FGSM from maxout", 0.25),
            "transfer_wide/report.md",
            "in the source and here these fool more than its own examples do: training on FGSM "
            "hides the gradient",
        ),
        Claim(
            "examples of the trained net on the original one",
            "40.9 %, —",
            error("transfer_wide", "maxout", f"FGSM from {WIDE}", 0.25),
            "transfer_wide/report.md",
            "the two nets of the row above",
        ),
        Claim(
            "maxout 240 trained on FGSM",
            "—",
            error("transfer", ADVERSARIAL, f"FGSM from {ADVERSARIAL}", 0.25),
            "transfer/report.md",
            "the source reports the wide net only",
        ),
    ],
    "MNIST challenge (Madry et al. 2018), L-inf 0.3: robust accuracy of their secret net and of "
    "our smaller CNN, trained against PGD-10": [
        Claim(
            "FGSM",
            "96.36 %",
            robust("robust", CNN, "FGSM", 0.3),
            "robust/report.md",
            "another net, trained for 24 epochs; first 1,000 images",
        ),
        Claim(
            "PGD-100",
            "92.52 %",
            robust("robust", CNN, "PGD-100, 10 restarts, margin", 0.3),
            "robust/report.md",
            "ours has ten restarts and the margin loss",
        ),
        Claim(
            "PGD-100, 50 restarts",
            "89.62 %",
            robust("robust", CNN, "PGD-100, 50 restarts", 0.3),
            "robust/report.md",
            "as the first",
        ),
        Claim(
            "AutoAttack (RobustBench's authors, the challenge's public net)",
            "88.50 %",
            robust("strong", "strided CNN, PGD-trained", "AutoAttack", 0.3),
            "strong/report.md",
            "another net; first 200 images",
        ),
    ],
    "One photograph (Kolter and Madry 2018), raw gradient at L-inf 2/255": [
        Claim(
            "pig.jpg on ResNet50: hog .996 becomes wombat .9999; airliner .893",
            "as stated",
            lambda: "china.jpg on EfficientNet-Lite2: palace .298, bell cote .988; airliner .9946",
            "imagenet_lite/README.md",
            "torchvision's weights could not be downloaded here; with them the option is "
            "`--model resnet50`",
        ),
    ],
    "RobustBench, ImageNet, L-inf 4/255": [
        Claim(
            "Standard_R50 0.00 %, Salman2020Do_R50 34.96 %",
            "as stated",
            lambda: "not run",
            "../bench/models/README.md",
            "needs a download, and a GPU for the second; `bench run imagenet` and "
            "`robustbench:NAME` run them",
        ),
    ],
}


def write_section() -> str:
    """Write the section that stands between the marks.

    Returns:
        Markdown: one table for each source document.
    """
    parts = [_write_table(title, claims) for title, claims in SECTIONS.items()]
    return "\n\n".join(parts)


def _write_table(title: str, claims: list[Claim]) -> str:
    lines = [
        f"**{title}**",
        "",
        "| claim | source | ours | what explains the difference |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {each.claim} | {each.theirs} | [{each.ours()}]({each.folder}) | {each.reason} |"
        for each in claims
    ]
    return "\n".join(lines)


def replace_section(page: str) -> str:
    """Replace what stands between the marks of a page.

    Args:
        page: Text of results/README.md.

    Returns:
        The page as the stored files give it.
    """
    begin, end = MARKS
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{write_section()}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Check the section, or write it.

    Args:
        arguments: Of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description="Set published figures beside ours.")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    page = PAGE.read_text("utf-8")
    current = replace_section(page)
    if options.write:
        PAGE.write_text(current, "utf-8")
    elif current != page:
        print("results/README.md: the section of claims is stale; run .ci/claims.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
