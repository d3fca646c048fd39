"""State what a reader must know of a planned cell: caveats, threat model, why it is skipped."""

from collections.abc import Iterator

from bench.core.contracts.adaptation import Adaptation
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.types import ACCESS_RANK, Sweep
from bench.engine.functional.losses import min_classes
from bench.suite.identity import ModelFacts
from bench.suite.schema import AttackEntry

THREAT_MODELS = {
    "gradient": "white-box",
    "scores": "black-box, score-based",
    "labels": "black-box, decision-based",
    "nothing": "no query",
}
"""What an attack needs -> threat model."""
NEED_NAMES = {"gradient": "gradients", "scores": "scores", "labels": "labels"}
"""What an attack needs -> plural for sentences."""


def list_caveats(
    entry: AttackEntry, eps: float, sweep: Sweep, facts: ModelFacts, crafting: ModelFacts
) -> tuple[str, ...]:
    """List what a reader must know of the numbers of a cell.

    Args:
        entry: The attack's entry.
        eps: Radius of the cell.
        sweep: How successes pass from one eps to the next.
        facts: Facts of the judged model.
        crafting: Facts of the model that the examples are crafted on.

    Returns:
        A sentence each: of the attack, then of the models.
    """
    return (
        *_attack_caveats(entry, eps, sweep),
        *_kernel_caveats(entry, eps, crafting),
        *_detector_caveats(entry, eps, facts, crafting),
        *_random_caveats(entry, eps, facts, crafting),
    )


def name_threat_model(model: str, entry: AttackEntry) -> str:
    """Name what the attacker sees of the judged model.

    Args:
        model: Label of the judged model.
        entry: The attack's entry.

    Returns:
        One of THREAT_MODELS, or that of a transfer attack, or of one on several models of which
        the judged one is a member. A budget of queries of the victim is named.
    """
    if entry.ensemble and model in entry.ensemble.models:
        return "white-box, one of the sources"
    if entry.source not in (None, model):
        more = f" with at most {entry.victim_queries} label queries"
        return "black-box, transfer" + (more if entry.victim_queries else "")
    return THREAT_MODELS[entry.attack.needs]


def find_skip_reason(entry: AttackEntry, judged: ModelFacts, facts: ModelFacts) -> str:
    """Find why a pairing of model and attack is impossible.

    Args:
        entry: The attack's entry.
        judged: Facts of the judged model.
        facts: Facts of the model that the examples are crafted on.

    Returns:
        The reason; "" if it is possible.
    """
    attack, loss = entry.attack, getattr(entry.params, "loss", "")
    if attack.unavailable:
        return attack.unavailable
    if entry.victim_queries and judged.random:
        return (
            "the model answers at random: one answer to a query does not show whether an image "
            "fools it"
        )
    if ACCESS_RANK[attack.needs] > ACCESS_RANK[facts.access]:
        return f"the attack needs {NEED_NAMES[attack.needs]}, the model shows {facts.access} alone"
    if None not in (judged.classes, facts.classes) and judged.classes != facts.classes:
        return f"the source has {facts.classes} classes, the model has {judged.classes}"
    if facts.classes is not None and facts.classes < attack.min_classes:
        return (
            f"the attack needs at least {attack.min_classes} classes, the model has {facts.classes}"
        )
    if facts.classes is not None and facts.classes < (least := min_classes(loss, entry.goal)):
        return f"loss '{loss}' needs at least {least} classes, the model has {facts.classes}"
    if entry.adaptation is not None and facts.modules is not None:
        missing = [name for name in entry.adaptation.modules if name not in facts.modules]
        if missing:
            return f"the model has no module '{missing[0]}', which the attack is adapted to"
    if facts.shape is not None and attack.channels and facts.shape[0] not in attack.channels:
        wanted = " or ".join(map(str, attack.channels))
        return f"the attack needs {wanted} channels, the images have {facts.shape[0]}"
    return ""


def _attack_caveats(entry: AttackEntry, eps: float, sweep: Sweep) -> tuple[str, ...]:
    """Return what a reader must know of the attack at one eps."""
    if eps == 0:
        return ()
    own = tuple(entry.attack.caveats(entry.params, entry.norm, eps))
    if entry.adaptation is not None:
        own = (*own, *_adaptation_caveats(entry.adaptation))
    if entry.victim_queries:
        own = (*own, _victim_caveat(entry.victim_queries))
    if entry.precision != "float32":
        where = " (in float32 on a device without it)" if entry.precision == "tf32" else ""
        own = (*own, f"Gradients in {entry.precision}{where}: may be weaker than in float32.")
    external = isinstance(entry.attack, ExternalAttack)
    if sweep == "nested" and external and entry.attack.budget == "fixed":
        return (*own, "The sweep is independent: only the engine's own attacks inherit successes.")
    return own


def _kernel_caveats(entry: AttackEntry, eps: float, crafting: ModelFacts) -> Iterator[str]:
    """Yield what a reader must know of a kernel that is larger than the images."""
    kernel = 0 if entry.transforms is None else entry.transforms.translation
    if eps > 0 and crafting.shape is not None and kernel > min(crafting.shape[1:]):
        height, width = crafting.shape[1:]
        yield (
            f"The kernel of `translation` has {kernel} pixels a side, the images have "
            f"{height}x{width}: gradients are averaged over the whole image."
        )


def _victim_caveat(budget: int) -> str:
    """Return what an attack on a source asks the victim."""
    images = "one image" if budget == 1 else f"{budget} images"
    return (
        f"The attacker shows the evaluated model {images} of an example at most, gets its class "
        "alone as the answer, and stops at the first success."
    )


def _adaptation_caveats(adaptation: Adaptation) -> Iterator[str]:
    """Yield what is of the user's own in an adaptive attack."""
    for module, stand_in in adaptation.backward:
        yield f"Adaptive: the gradient of module '{module}' is that of {stand_in.name}."
    if adaptation.loss is not None:
        features = f", of the outputs of {', '.join(adaptation.features)}"
        more = features if adaptation.features else ""
        yield f"Adaptive: the loss is {adaptation.loss.name}{more}."


def _detector_caveats(
    entry: AttackEntry, eps: float, facts: ModelFacts, crafting: ModelFacts
) -> Iterator[str]:
    """Yield what a reader must know where the judged model rejects images."""
    if eps == 0 or facts.detector is None:
        return
    spares = facts.detector.rejected == "robust"
    if spares:
        yield "An adversarial image that the detector rejects counts as robust."
    else:
        yield "An adversarial image that the detector rejects counts as an error."
    external = isinstance(entry.attack, ExternalAttack) and not entry.attack.spares_rejected
    if spares and (external or crafting != facts):
        yield (
            "The attack does not know the detector of the evaluated model: one that evades it, "
            "too, may break more."
        )


def _random_caveats(
    entry: AttackEntry, eps: float, facts: ModelFacts, crafting: ModelFacts
) -> tuple[str, ...]:
    """Return what a reader must know where the judged or the source model is random."""
    caveats = []
    if facts.predictions > 1:
        caveats.append(
            f"A verdict is the class that most of {facts.predictions} predictions give, the "
            "smaller class on a tie."
        )
    elif facts.random:
        caveats.append("The model answers at random, and a verdict is a single prediction.")
    if facts.random or crafting.random:
        caveats.append("What the model draws depends on the batch, so results depend on its rows.")
    if crafting.random and entry.attack.budget == "minimum" and eps > 0:
        caveats.append(
            "The nearest image that fooled the model in one look lies where its answers vary from "
            "draw to draw, and seldom fools it again: an attack of fixed budget breaks more."
        )
    if crafting.random and not isinstance(entry.attack, ExternalAttack) and eps > 0:
        if entry.attack.budget == "fixed":
            caveats.append("Every eps gets every step: one lucky draw is no success.")
        if entry.samples == 1:
            caveats.append(
                "A step follows a single draw of the model; `samples` averages over more."
            )
    return tuple(caveats)
