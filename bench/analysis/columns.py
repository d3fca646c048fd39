"""Columns of table.csv: the only declaration of their names, types, formats and meanings.

It imports neither pandas nor torch, so that the command line may read it on start.
"""

from typing import Literal, NamedTuple


class TableColumn(NamedTuple):
    """One column of table.csv."""

    name: str
    type: Literal["text", "count", "number"]
    """A count or number may be missing; a text is then empty."""
    meaning: str
    format: Literal["", "eps", "rate", "percent", "seconds", "factor"] = ""
    """How pages show it. "rate": a share of `n`, with the count in `count_column`."""
    count_column: str = ""
    """Column with the count behind a rate."""
    tracked: bool = False
    """Logged to experiment trackers."""


MAIN = (
    TableColumn("suite", "text", "Name of the suite."),
    TableColumn("model", "text", "Label of the model."),
    TableColumn("dataset", "text", "Name of the data set."),
    TableColumn("attack", "text", "Label of the attack."),
    TableColumn("implementation", "text", "bench, or the library that the attack is from."),
    TableColumn("norm", "text", "Norm of the threat model: linf, l2, l1 or l0, or the name of a "
                "family of images."),
    TableColumn("eps", "number", "Radius of the threat model, for images in [0, 1]; level of a "
                "family.", "eps"),
    TableColumn("goal", "text", "untargeted or targeted."),
    TableColumn("status", "text", "ok, skipped, failed or missing (not finished)."),
    TableColumn("reason", "text", "Why the cell has no result, or no success rate."),
    TableColumn("n", "count", "Examples.", tracked=True),
    TableColumn("clean_correct", "count", "Examples classified correctly without attack.",
                tracked=True),
    TableColumn("robust_correct", "count", "Examples classified correctly without and under "
                "attack.", tracked=True),
    TableColumn("clean_accuracy", "number", "clean_correct / n.", "rate", "clean_correct", True),
    TableColumn("robust_accuracy", "number", "robust_correct / n.", "rate", "robust_correct",
                True),
    TableColumn("robust_low", "number", "Lower end of its 95 % Wilson interval.", "percent",
                tracked=True),
    TableColumn("robust_high", "number", "Upper end of its 95 % Wilson interval.", "percent",
                tracked=True),
    TableColumn("attack_success_rate", "number", "fooled / eligible.", "percent", tracked=True),
    TableColumn("success_low", "number", "Lower end of its 95 % Wilson interval.", "percent",
                tracked=True),
    TableColumn("success_high", "number", "Upper end of its 95 % Wilson interval.", "percent",
                tracked=True),
    TableColumn("robust_accuracy_8bit", "number", "robust_correct_8bit / n.", "percent"),
    TableColumn("violations", "count", "Returned images that break the threat model; each counts "
                "as a failed attack.", tracked=True),
    TableColumn("mean_confidence_fooled", "number", "Mean softmax probability of the predicted "
                "class over fooled examples.", "percent"),
    TableColumn("mean_linf", "number", "Mean L-inf norm of the perturbation over fooled "
                "examples."),
    TableColumn("mean_l2", "number", "Mean L2 norm of the perturbation over fooled examples."),
    TableColumn("mean_l1", "number", "Mean L1 norm of the perturbation over fooled examples."),
    TableColumn("mean_l0", "number", "Mean number of changed pixel values over fooled examples."),
    TableColumn("forwards_per_example", "number", "Forward passes per attacked example."),
    TableColumn("backwards_per_example", "number", "Backward passes per attacked example."),
    TableColumn("seconds", "number", "Wall-clock time of crafting.", "seconds"),
    TableColumn("examples_per_second", "number", "attacked / seconds."),
    TableColumn("floor_ratio", "number", "seconds over the time of a bare loop of the same number "
                "of passes, measured in the same run; empty where none was timed.", "factor"),
    TableColumn("device", "text", "Device that the attack ran on."),
)  # fmt: skip
"""The first columns of every table of cells, in this order."""
ADDITIONAL = (
    TableColumn("eps_text", "text", "eps as the suite spells it, such as 8/255."),
    TableColumn("target", "text", "Target class of a targeted attack, as the suite spells it."),
    TableColumn("stop", "text", "first-success, or never: every step is made."),
    TableColumn("attacked", "count", "Examples that the attack was run on."),
    TableColumn("eligible", "count", "Examples classified correctly without attack; targeted: "
                "whose label is not the target, either."),
    TableColumn("fooled", "count", "Eligible examples that the attack succeeded on."),
    TableColumn("robust_correct_8bit", "count", "As robust_correct, for images rounded to 8 bits "
                "per channel."),
    TableColumn("verify_seconds", "number", "Time of verifying the returned images.", "seconds"),
    TableColumn("rows_per_pass", "count", "Images in one pass."),
    TableColumn("caveats", "text", "What a reader must know of the cell."),
    TableColumn("threat_model", "text", "What the attacker knows of the model."),
    TableColumn("source", "text", "Model that the images were crafted on; empty: the model "
                "itself."),
    TableColumn("family", "text", "Name of the attack without the value of a varied parameter."),
    TableColumn("varied", "text", "Parameter that a sweep varies; empty if none."),
    TableColumn("value", "number", "Its value."),
    TableColumn("seed", "count", "Seed of the attack, where the suite gives several."),
    TableColumn("mean_target_cross_entropy", "number", "Mean of -ln p(target) over fooled "
                "examples of a targeted attack."),
    TableColumn("precision", "text", "Arithmetic of the gradients: float32, tf32 or bfloat16."),
    TableColumn("samples", "count", "Gradients averaged in one step, for a random model."),
    TableColumn("predictions", "count", "Predictions of one image that vote, for a random model."),
    TableColumn("unstable", "count", "Examples whose predictions were not unanimous."),
    TableColumn("parts", "text", "For each attack of an ensemble, the examples that it broke after "
                "those before it had failed."),
    TableColumn("cell", "text", "Identity of the cell."),
)  # fmt: skip
"""Further columns of every table of cells."""
VICTIM_QUERIES = (
    TableColumn("victim_query_budget", "count", "Most queries of the model that the attack on a "
                "source could make for one example."),
    TableColumn("median_victim_queries", "number", "Median queries of the model until an example "
                "fell, over the fooled examples."),
    TableColumn("median_victim_queries_low", "number", "Lower end of its 95 % interval; missing "
                "with fewer than six fooled examples."),
    TableColumn("median_victim_queries_high", "number", "Upper end of its 95 % interval; missing "
                "with fewer than six fooled examples."),
    TableColumn("max_victim_queries", "count", "Most queries of the model that were made for one "
                "attacked example."),
)  # fmt: skip
"""Columns of a table with attacks on a source that may query the judged model."""
NONFINITE = (
    TableColumn("nonfinite_gradients", "count", "Gradients with entries that were not finite and "
                "counted as 0."),
    TableColumn("nonfinite_examples", "count", "Examples that had such a gradient."),
)  # fmt: skip
"""Columns of a table in which there were any."""
CERTIFIED = (
    TableColumn("certified", "count", "Examples that a certificate proves robust at this eps: "
                "not attacked, and counted as robust; missing where all are attacked."),
)  # fmt: skip
"""Columns of a table with attacks that leave certified examples out."""
OPTIONAL = (*VICTIM_QUERIES, *NONFINITE, *CERTIFIED)
"""Columns that only some tables have, after all others."""
BY_NAME = {column.name: column for column in (*MAIN, *ADDITIONAL, *OPTIONAL)}


def select_names(
    kind: Literal["text", "count", "number"], columns: tuple[TableColumn, ...] = MAIN + ADDITIONAL
) -> tuple[str, ...]:
    """Select the columns of one type.

    Args:
        kind: The type.
        columns: Declarations to select from.

    Returns:
        Names, in the order of the table.

    >>> select_names("count", NONFINITE)
    ('nonfinite_gradients', 'nonfinite_examples')
    """
    return tuple(column.name for column in columns if column.type == kind)
