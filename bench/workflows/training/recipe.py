"""Recipes of `bench train`: the model or attack, data, optimiser and schedule of one training run.

Recipes are TOML files. The shipped ones are in `recipes/`; a file's name is its recipe's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Gt, Interval

from bench.core import registry
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, parse_toml, read_text
from bench.suite.schema import ModelEntry

FOLDER = Path(__file__).parent / "recipes"
Percent = Annotated[float, Interval(ge=0, le=100)]
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """A registered component by name, with its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Adversarial training: examples are attacked at every step, with the current parameters.

    The loss is share * CE(clean) + (1 - share) * CE(attacked); share = 0.5 with FGSM is Goodfellow
    et al. 2015, section 6; share = 0 with PGD is Madry et al. 2018, equation 2.1.
    """

    attack: str
    """A registered attack, or the user's own."""
    eps: float
    norm: Norm = "linf"
    params: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.5
    warmup: int = 0
    """Epochs over which eps grows to its full value; a network that starts at a large eps may keep
    predicting one class. Validation images are always attacked at the full eps."""

    def __post_init__(self) -> None:
        if not self.eps > 0 or not 0 <= self.share < 1 or self.warmup < 0:
            raise ValueError("expected eps above 0, share in [0, 1) and warmup at least 0")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Certified training on the worst logits that interval bounds allow in an L-inf ball.

    The loss is share * CE(clean) + (1 - share) * CE(worst), Gowal et al. 2018, equation 12.
    """

    eps: float
    """At the end of the training."""
    judged: float
    """Radius at which validation and test images are certified; a network trained at a larger eps
    certifies more images (Gowal et al. 2018, section 4)."""
    share: float = 0.5
    """At the end of the training; 1 at its beginning."""
    warmup: int = 0
    """Epochs of plain training."""
    ramp: int = 0
    """Epochs after the warm-up in which eps grows from 0 and the share falls, at every step."""

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.judged > 0 and 0 <= self.share <= 1):
            raise ValueError("expected eps and judged above 0 and share in [0, 1]")
        if min(self.warmup, self.ramp) < 0:
            raise ValueError("expected warmup and ramp at least 0")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Results that the recipe's source reports, in percent, shown with the measured ones."""

    source: str
    train_accuracy: Percent | None = None
    validation_accuracy: Percent | None = None
    test_accuracy: Percent | None = None
    per_class: Sequence[Percent] = ()
    """Test accuracy of each class, in the classes' order."""
    adversarial_error: Percent | None = None
    """Error rate on attacked test images; shown only under adversarial training."""
    adversarial_confidence: Percent | None = None
    """Mean confidence of those errors."""
    seconds_per_epoch: str = ""
    """In the source's words, such as "9 to 20"."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of a model. Its repr omits the fields that do not affect the trained weights."""

    schema: Literal[1]
    name: str = ""
    """Stem of the file's name; not a key of the file."""
    title: str = field(repr=False)
    source: str = field(repr=False)
    weights: str = field(repr=False)
    """Name under which the weights are published: models/weights/MODEL-WEIGHTS.safetensors."""
    seed: int
    seeds: Count = field(default=1, repr=False)
    """Number of runs, with seeds seed, seed + 1, ...; the best on the validation images is
    published, and all are reported."""
    epochs: Count
    patience: Count | None = None
    """Stop after this many epochs without a better validation result; None: never."""
    batch_size: Count
    validation: Count
    """Number of training images held out; the test set is not used before the end."""
    store: Literal["float32", "float16"] = field(default="float32", repr=False)
    """Precision of the published weights; test figures are measured with the stored weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products while training (autocast); validation and test use float32."""
    model: ComponentSpec
    data: ComponentSpec
    optimiser: ComponentSpec
    """A class of torch.optim."""
    schedule: ComponentSpec | None = None
    """A class of torch.optim.lr_scheduler, stepped once per epoch."""
    adversarial: Adversary | None = None
    certified: Certificate | None = None
    published: Published | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class LearnedAttackSpec:
    """The attack to be trained, and its threat model."""

    name: str
    """A registered attack, or the user's own."""
    eps: Annotated[float, Gt(0)]
    norm: Norm = "linf"
    params: Any = field(default_factory=dict)
    """Training parameters; once read, the attack's dataclass with its defaults filled in."""

    @property
    def attack(self) -> Attack:
        """The registered attack."""
        found: Attack = registry.find("attacks", self.name)
        return found

    @property
    def threat(self) -> Threat:
        """Norm and eps of the attack."""
        return Threat(norm=self.norm, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class AttackRecipe:
    """Training of an attack. Its repr omits the fields that do not affect the trained weights."""

    schema: Literal[1]
    name: str = ""
    """Stem of the file's name; not a key of the file."""
    title: str = field(repr=False)
    source: str = field(repr=False)
    weights: str = field(repr=False)
    """Name under which the weights are published: attacks/weights/ATTACK-WEIGHTS.safetensors."""
    seed: int
    epochs: Count
    batch_size: Count
    validation: Count
    """Number of training images held out; the test set is not used before the end."""
    limit: Count | None = None
    """Number of training images used, of those not held out; None: all."""
    attack: LearnedAttackSpec
    model: ModelEntry
    """The target model with its weights, which stay fixed."""
    data: ComponentSpec
    optimiser: ComponentSpec
    """A class of torch.optim; one instance for each network."""


def list_recipes() -> list[str]:
    """List the names of the shipped recipes.

    Returns:
        Names, sorted.
    """
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe_file(name: str) -> Path:
    """Locate a recipe; the file need not exist.

    Args:
        name: Name of a shipped recipe, or a path.

    Returns:
        The path.
    """
    return FOLDER / f"{name}.toml" if name in list_recipes() else Path(name)


def detect_recipe_kind(name: str) -> Literal["model", "attack"]:
    """Determine what a recipe trains.

    Args:
        name: Name of a shipped recipe, or a path.

    Returns:
        The kind; "model" if there is no such file, which `read_recipe` then reports.

    Raises:
        SuiteError: The file is not valid TOML.
    """
    path = find_recipe_file(name)
    trains_attack = path.exists() and "attack" in parse_toml(read_text(path, "a recipe"), str(path))
    return "attack" if trains_attack else "model"


def read_recipe(name: str) -> Recipe:
    """Read the recipe of a model.

    Args:
        name: Name of a shipped recipe, or the path of a TOML file.

    Returns:
        The recipe.

    Raises:
        SuiteError: The recipe is unknown or invalid; the message lists every mistake.
    """
    tables = {
        **dict.fromkeys(("model", "data", "optimiser", "schedule"), ComponentSpec),
        "adversarial": Adversary, "certified": Certificate, "published": Published,
    }  # fmt: skip
    path, check, raw = _read_tables(name, tables)
    if "adversarial" in raw and "certified" in raw:
        check.say("certified", "a recipe trains against attacks or for bounds, not both")
    return replace(_fill(check, Recipe, raw), name=path.stem)


def read_attack_recipe(name: str) -> AttackRecipe:
    """Read the recipe of an attack.

    Args:
        name: Name of a shipped recipe, or the path of a TOML file.

    Returns:
        The recipe, with all training parameters of the attack filled in.

    Raises:
        SuiteError: The recipe is unknown or invalid; the message lists every mistake.
    """
    tables = {
        "attack": LearnedAttackSpec, "model": ModelEntry, "data": ComponentSpec,
        "optimiser": ComponentSpec,
    }  # fmt: skip
    path, check, raw = _read_tables(name, tables)
    recipe = _fill(check, AttackRecipe, raw)
    attack = _fill_attack_params(recipe.attack, check)
    check.stop_if_wrong()
    model = replace(recipe.model, label=recipe.model.label or recipe.model.name)
    return replace(recipe, name=path.stem, attack=attack, model=model)


def _read_tables(name: str, tables: Mapping[str, type]) -> tuple[Path, Validator, dict[str, Any]]:
    """Read a recipe's TOML and convert its tables to their dataclasses."""
    path = find_recipe_file(name)
    if not path.exists():
        raise SuiteError(f"recipe '{name}' is unknown; {nearest(name, list_recipes())}")
    check = Validator(str(path))
    raw = parse_toml(read_text(path, "a recipe"), str(path))
    for key, kind in tables.items():
        if isinstance(raw.get(key), dict):
            raw[key] = check.fill(kind, raw[key], key)
    if "name" in raw:
        check.say("name", "a recipe is called by its file's name; leave it out")
    return path, check, raw


def _fill(check: Validator, kind: type[R], raw: dict[str, Any]) -> R:
    recipe: R | None = check.fill(kind, raw, "")
    check.stop_if_wrong()
    assert recipe is not None
    return recipe


def _fill_attack_params(spec: LearnedAttackSpec, check: Validator) -> LearnedAttackSpec:
    """Convert the params to the attack's own dataclass; report an attack that cannot be trained."""
    attack = spec.attack
    if getattr(attack, "learn", None) is None:  # a user's object may be no attack at all
        check.say("attack.name", f"attack '{spec.name}' has nothing to learn")
        return spec
    if spec.norm not in attack.norms:
        known = ", ".join(attack.norms)
        check.say("attack.norm", f"expected one of {known}, got {spec.norm!r}")
    assert attack.learn is not None
    return replace(spec, params=check.fill(attack.learn.params, spec.params, "attack.params"))
