"""A recipe that trains an attack against one fixed model, read from TOML as a model's recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt

from bench.core import registry
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, parse_toml, read_text
from bench.suite.schema import ModelEntry
from bench.workflows.training.recipe import ComponentSpec, names, path_of


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """What is to learn, and at which radius."""

    name: str
    """A name of bench/attacks, or code outside."""
    eps: Annotated[float, Gt(0)]
    norm: Norm = "linf"
    params: Any = field(default_factory=dict)
    """Of its training; once read, the attack's own dataclass with its defaults written out."""

    @property
    def attack(self) -> Attack:
        found: Attack = registry.find("attacks", self.name)
        return found

    @property
    def threat(self) -> Threat:
        return Threat(norm=self.norm, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class AttackRecipe:
    """One training run. Its repr leaves out what the course of the training does not depend on."""

    schema: Literal[1]
    name: str = ""
    """The file's name; it stands in no file."""
    title: str = field(repr=False)
    source: str = field(repr=False)
    weights: str = field(repr=False)
    """Name under which the weights are published: attacks/weights/ATTACK-WEIGHTS.safetensors."""
    seed: int
    epochs: Count
    batch_size: Count
    validation: Count
    """Training images held out; the test set is never looked at before the end."""
    limit: Count | None = None
    """Training images used, of those that are not held out; None: all."""
    attack: Attacker
    model: ModelEntry
    """The target, with its weights; it never changes."""
    data: ComponentSpec
    optimiser: ComponentSpec
    """A class of torch.optim; every network has one of its own."""


def read(name: str) -> AttackRecipe:
    """The recipe `name`: a bare name, or the path of a TOML file.

    Raises: SuiteError with every mistake of the file.
    """
    path = path_of(name)
    if not path.exists():
        raise SuiteError(f"recipe '{name}' is unknown; {nearest(name, names())}")
    check = Validator(str(path))
    raw = parse_toml(read_text(path, "a recipe"), str(path))
    parts: Mapping[str, type] = {
        "attack": Attacker, "model": ModelEntry, "data": ComponentSpec, "optimiser": ComponentSpec,
    }  # fmt: skip
    for key, kind in parts.items():
        if isinstance(raw.get(key), dict):
            raw[key] = check.fill(kind, raw[key], key)
    if "name" in raw:
        check.say("name", "a recipe is called by its file's name; leave it out")
    recipe: AttackRecipe | None = check.fill(AttackRecipe, raw, "")
    check.stop_if_wrong()
    assert recipe is not None
    attack = _checked(recipe.attack, check)
    check.stop_if_wrong()
    model = replace(recipe.model, label=recipe.model.label or recipe.model.name)
    return replace(recipe, name=path.stem, attack=attack, model=model)


def _checked(attacker: Attacker, check: Validator) -> Attacker:
    """With params that are the attack's own; what cannot be is told."""
    found = attacker.attack
    if getattr(found, "learn", None) is None:  # code outside may be no attack at all
        check.say("attack.name", f"attack '{attacker.name}' has nothing to learn")
        return attacker
    if attacker.norm not in found.norms:
        known = ", ".join(found.norms)
        check.say("attack.norm", f"expected one of {known}, got {attacker.norm!r}")
    assert found.learn is not None
    params = check.fill(found.learn.params, attacker.params, "attack.params")
    return replace(attacker, params=params)
