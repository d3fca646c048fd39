"""Name and explain the symptoms that an attack has failed rather than the defence held.

A symptom changes no number. It says that a robust accuracy may be a worthless upper bound, on which
examples that was observed, and what to try. The six indicators of Pintor et al. 2022 and the flags
of AutoAttack's documentation are among them, under `source`.
Source: Pintor et al. 2022, https://arxiv.org/abs/2106.09947; Croce and Hein 2020, flags_doc.md of
https://github.com/fra31/auto-attack; Carlini et al. 2019, https://arxiv.org/abs/1902.06705
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

COLUMNS = (
    "name", "model", "attack", "norm", "eps", "count", "n", "evidence", "examples", "threshold",
    "meaning", "remedy", "source",
)  # fmt: skip


class Symptom(NamedTuple):
    """A symptom as such: what it means and what to do about it."""

    name: str
    meaning: str
    remedy: str
    source: str


NO_GRADIENT = Symptom(
    "zero or non-finite gradient",
    "The loss has no usable gradient there, so a gradient attack stays where it is or moves "
    "blindly.",
    "Replace what cannot be differentiated by something near it on the way back (BPDA), or attack "
    "by scores alone.",
    "Pintor et al. 2022, indicator 1 (unavailable gradients); AutoAttack flag: zero gradient",
)
SATURATED_LOSS = Symptom(
    "saturated loss",
    "Cross-entropy rounds to 0 in float32 and loses its gradient; the margin of the same logits "
    "does not.",
    "Attack with a loss on logits that does not saturate: margin or dlr.",
    "margin and cross-entropy have the same gradient direction; Carlini and Wagner 2017, "
    "section 5; AutoAttack flag: zero gradient",
)
WRONG_GRADIENT = Symptom(
    "gradient is not the model's",
    "What the model returns as its gradient is not the slope of its own output, measured by finite "
    "differences, so a gradient attack is led elsewhere.",
    "Find what replaces the gradient (a custom backward, a detach, a straight-through estimator); "
    "attack by scores, or a differentiable stand-in by transfer.",
    "Athalye et al. 2018, section 3.1 (shattered and stochastic gradients); Carlini et al. 2019, "
    "section 5",
)
UNSTABLE_PREDICTIONS = Symptom(
    "unstable predictions",
    "The model answers the same image differently from one time to the next, so one look misleads "
    "an attack and one prediction decides nothing.",
    "Average gradients over several samples (EOT) and judge by repeated predictions.",
    "Pintor et al. 2022, indicator 2 (unstable predictions); AutoAttack flag: randomized defense",
)
SILENT_SUCCESS = Symptom(
    "silent success",
    "The attack passed an image that fools the model and returned another that does not.",
    'Keep the first success: stop = "first-success".',
    "Pintor et al. 2022, indicator 3 (silent success)",
)
INCOMPLETE_OPTIMISATION = Symptom(
    "incomplete optimisation",
    "The attack had not arrived when its steps were over: going on in the same way breaks more.",
    "Give it more steps, or longer ones.",
    "Pintor et al. 2022, indicator 4 (incomplete optimisation)",
)
FLAT_LOSS = Symptom(
    "loss does not rise",
    "The loss that the attack ascends is no larger after its last step than before its first.",
    "Try another step size or loss, several restarts, and gradients averaged over samples.",
    "Carlini et al. 2019, section 5; Pintor et al. 2022, indicator 4 (incomplete optimisation)",
)
TRANSFER_FAILURE = Symptom(
    "transfer failure",
    "The images fool the model they were crafted on and not this one, and no attack that sees this "
    "one was run beside it: the number tells how alike the two are.",
    "Attack the model itself, or a substitute nearer to it.",
    "Pintor et al. 2022, indicator 5 (transfer failure)",
)
UNCONSTRAINED_FAILURE = Symptom(
    "unconstrained attack fails",
    "An L-inf ball of radius 1 holds every image, those of other classes among them, and yet the "
    "attack does not reach them.",
    "Look for what hides the gradient before any smaller eps is believed.",
    "Pintor et al. 2022, indicator 6 (unconstrained attack failure); Athalye et al. 2018",
)
MORE_STEPS_WORSE = Symptom(
    "more steps do worse",
    "The same attack with more steps breaks fewer of the same examples.",
    "Try other step sizes and keep the first success; then look for a masked gradient.",
    "more steps must not do worse; Carlini et al. 2019, section 5",
)
MORE_RESTARTS_WORSE = Symptom(
    "more restarts do worse",
    "The same attack with more restarts breaks fewer of the same examples.",
    "Keep an example as broken once any restart broke it.",
    "more restarts must not do worse; Carlini et al. 2019, section 5",
)
UNUSED_BUDGET = Symptom(
    "budget not used",
    "The attack failed on images that it moved by less than half of what it was allowed, so their "
    "robustness at this eps was not tested: no evidence of robustness.",
    "Give it longer or more steps, or use an attack that reaches the edge of the ball, such as "
    "pgd.",
    "a fixed budget is there to be used; Carlini et al. 2019, section 5",
)
BEATEN_SEARCH = Symptom(
    "search beaten inside its distance",
    "Another run found an adversarial image nearer than the least distance that this search "
    "reports, so its distances are too large.",
    "Give the search more steps or restarts, or take the nearest image that any attack found.",
    "a least distance is no larger than any that was found; Carlini et al. 2019, section 5",
)
LARGER_EPS_WORSE = Symptom(
    "larger eps does worse",
    "The larger ball holds the smaller one, and yet the attack finds less in it.",
    "Let the step size grow with eps and give it more steps, or take what a smaller eps found: "
    'sweep = "nested".',
    "the larger ball holds the smaller; Carlini et al. 2019, section 5; Athalye et al. 2018, "
    "section 3.1",
)
BLACK_BOX_STRONGER = Symptom(
    "black box stronger than white box",
    "An attack that sees less than the gradient finds what no white-box attack finds: a sign of "
    "gradient masking.",
    "Spend more on the black-box attack, and adapt the white-box one to the defence.",
    "AutoAttack flag: Square Attack improves the evaluation; Athalye et al. 2018, section 3.1",
)
ONE_STEP_STRONGER = Symptom(
    "one step stronger than many",
    "One gradient breaks more than the iterated attack, so the iterates are led astray.",
    "Try other step sizes, losses and restarts; then look for a masked gradient.",
    "many steps must not do worse than one; Athalye et al. 2018, section 3.1",
)
NOISE_AS_STRONG = Symptom(
    "noise as strong as the gradient",
    "A random image of the ball breaks as much: the gradient is of no help.",
    "Look for zero, saturated or random gradients; try a loss on logits and attacks by scores.",
    "a gradient must do better than noise of the same size; Athalye et al. 2018, section 3.1",
)
LOST_SUCCESS = Symptom(
    "success lost on re-prediction",
    "The attack saw the model fooled, and asked again the model is not.",
    "Judge by repeated predictions, and ask whether answers depend on the batch.",
    "Pintor et al. 2022, indicator 2 (unstable predictions)",
)
LOST_BY_ROUNDING = Symptom(
    "success lost on 8-bit rounding",
    "The images fool the model only between the values that an image file can hold.",
    "Read the column robust_accuracy_8bit, or attack on the grid of 8-bit values.",
    "Carlini et al. 2019, section 4.10",
)
BATCH_DEPENDENCE = Symptom(
    "answers depend on the batch",
    "The model answers an image differently beside other images, so a success may be lost between "
    "batch sizes.",
    "Find what mixes the rows, such as batch statistics, or state the batch size with the number.",
    "Carlini et al. 2019, section 5",
)
INFERENCE_OPTIMISATION = Symptom(
    "optimisation at inference time",
    "The model computes gradients while it predicts: it changes its input or itself before it "
    "answers.",
    "Attack the whole computation, differentiated through, with an attack made for this defence.",
    "AutoAttack flag: optimization at inference time; Croce et al. 2022, "
    "https://arxiv.org/abs/2202.13711",
)
PROBABILITY_OUTPUT = Symptom(
    "probabilities instead of logits",
    "The model answers after a softmax, which flattens every gradient.",
    "Return what goes into the softmax.",
    "AutoAttack flag: softmax output is given",
)

SYMPTOMS = {
    kind.name: kind
    for kind in (
        NO_GRADIENT, SATURATED_LOSS, WRONG_GRADIENT, UNSTABLE_PREDICTIONS, SILENT_SUCCESS,
        INCOMPLETE_OPTIMISATION, FLAT_LOSS, TRANSFER_FAILURE, UNCONSTRAINED_FAILURE,
        MORE_STEPS_WORSE, MORE_RESTARTS_WORSE, UNUSED_BUDGET, BEATEN_SEARCH, LARGER_EPS_WORSE,
        BLACK_BOX_STRONGER, ONE_STEP_STRONGER, NOISE_AS_STRONG, LOST_SUCCESS, LOST_BY_ROUNDING,
        BATCH_DEPENDENCE, INFERENCE_OPTIMISATION, PROBABILITY_OUTPUT,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObservedSymptom:
    """A symptom on one model under one attack, with the examples that show it."""

    name: str
    model: str
    attack: str
    """Label of the attack in doubt; "" where every gradient attack is."""
    norm: str
    eps: float
    """NaN where it does not depend on eps."""
    count: int
    n: int
    """Examples that could have shown it."""
    evidence: str
    """What was observed, in one sentence."""
    examples: tuple[int, ...]
    """Ids of the `count` examples, all of them."""
    threshold: str
    """The condition that made it a symptom."""

    @property
    def sentence(self) -> str:
        """What was observed, what it means and what to do, in one paragraph."""
        under = f" under {self.attack}" if self.attack else ""
        where = f", {self.norm} eps {self.eps:g}" if self.eps == self.eps else ""
        return (
            f"model '{self.model}'{under}{where}: {self.name} ({self.count} of {self.n}): "
            f"{self.evidence}. {self.meaning} {self.remedy}"
        )

    @property
    def meaning(self) -> str:
        """What it means, from SYMPTOMS."""
        return SYMPTOMS[self.name].meaning

    @property
    def remedy(self) -> str:
        """What to do about it, from SYMPTOMS."""
        return SYMPTOMS[self.name].remedy

    @property
    def source(self) -> str:
        """Where it is described, from SYMPTOMS."""
        return SYMPTOMS[self.name].source


def to_frame(observed: Iterable[ObservedSymptom]) -> pd.DataFrame:
    """Arrange symptoms as the table audit.csv.

    Args:
        observed: Observed symptoms.

    Returns:
        One row per symptom, columns COLUMNS; ids are separated by spaces.
    """
    rows = [[getattr(symptom, column) for column in COLUMNS] for symptom in observed]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["examples"] = [" ".join(map(str, ids)) for ids in table["examples"]]
    return table


def to_json(symptom: ObservedSymptom) -> dict[str, Any]:
    """Convert a symptom to plain values for JSON.

    Args:
        symptom: An observed symptom.

    Returns:
        Its fields; an eps that is NaN, which JSON lacks, is None.
    """
    fields = dataclasses.asdict(symptom)
    return {**fields, "eps": None if symptom.eps != symptom.eps else symptom.eps}


def from_json(fields: Mapping[str, Any]) -> ObservedSymptom:
    """Read a symptom that `to_json` converted.

    Args:
        fields: Plain values.

    Returns:
        The symptom.

    Raises:
        KeyError: Its name is none of SYMPTOMS.
        TypeError: A field is missing.
    """
    SYMPTOMS[fields["name"]]
    eps = float("nan") if fields["eps"] is None else fields["eps"]
    return ObservedSymptom(**{**fields, "eps": eps, "examples": tuple(fields["examples"])})
