"""A recipe is data: model, data, optimiser and schedule of one training run, read from TOML.

The recipes lie beside this file, one TOML each; the file name is the name for `bench train`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, parse_toml, read_text

FOLDER = Path(__file__).parent / "recipes"
Percent = Annotated[float, Interval(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """A thing by name, with its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Train on examples attacked afresh at every step, beside the clean ones.

    The loss is share * CE(clean) + (1 - share) * CE(attacked); share = 0.5 with FGSM is Goodfellow
    et al. 2015, section 6; share = 0 with PGD is Madry et al. 2018, equation 2.1.
    """

    attack: str
    """A name of bench/attacks, or code outside."""
    eps: float
    norm: Norm = "linf"
    params: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.5
    warmup: int = 0
    """Epochs over which eps grows to its full value; a net that starts at a large one may never
    leave the constant answer. The validation images are always attacked at the full one."""

    def __post_init__(self) -> None:
        if not self.eps > 0 or not 0 <= self.share < 1 or self.warmup < 0:
            raise ValueError("expected eps above 0, share in [0, 1) and warmup at least 0")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Train on the worst logits that interval bounds allow in an L-inf ball, beside the clean ones.

    The loss is share * CE(clean) + (1 - share) * CE(worst), Gowal et al. 2018, equation 12.
    """

    eps: float
    """At the end of the training."""
    judged: float
    """Radius at which validation and test images are certified; a net trained at a larger one
    keeps more (Gowal et al. 2018, section 4)."""
    share: float = 0.5
    """At the end of the training; 1 at its beginning."""
    warmup: int = 0
    """Epochs of plain training."""
    ramp: int = 0
    """Epochs thereafter in which eps grows from 0 and the share falls, step by step."""

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.judged > 0 and 0 <= self.share <= 1):
            raise ValueError("expected eps and judged above 0 and share in [0, 1]")
        if min(self.warmup, self.ramp) < 0:
            raise ValueError("expected warmup and ramp at least 0")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the recipe's source reports, in percent, laid beside what was measured."""

    source: str
    train_accuracy: Percent | None = None
    validation_accuracy: Percent | None = None
    test_accuracy: Percent | None = None
    per_class: Sequence[Percent] = ()
    """Test accuracy of each class, in the classes' order."""
    adversarial_error: Percent | None = None
    """Error rate on attacked test images; laid out only where the recipe trains against attacks,
    for only there is it measured."""
    adversarial_confidence: Percent | None = None
    """Mean confidence of those errors."""
    seconds_per_epoch: str = ""
    """As the source says it: "9 to 20"."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Its repr leaves out what the course of the training does not depend on."""

    schema: Literal[1]
    name: str = ""
    """The file's name; it stands in no file."""
    title: str = field(repr=False)
    source: str = field(repr=False)
    weights: str = field(repr=False)
    """Name under which the weights are published: models/weights/MODEL-WEIGHTS.safetensors."""
    seed: int
    seeds: Count = field(default=1, repr=False)
    """Runs, with the seeds seed, seed + 1, ...; the one with the best validation is published,
    and all of them are reported."""
    epochs: Count
    patience: Count | None = None
    """Stop after so many epochs without a better validation; None: never."""
    batch_size: Count
    validation: Count
    """Training images held out; the test set is never looked at before the end."""
    store: Literal["float32", "float16"] = field(default="float32", repr=False)
    """Precision of the published weights; accuracy is measured with the weights as stored."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products while training (autocast); validation and test are in float32."""
    model: ComponentSpec
    data: ComponentSpec
    optimiser: ComponentSpec
    """A class of torch.optim."""
    schedule: ComponentSpec | None = None
    """A class of torch.optim.lr_scheduler, stepped once per epoch."""
    adversarial: Adversary | None = None
    certified: Certificate | None = None
    published: Published | None = field(default=None, repr=False)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def path_of(name: str) -> Path:
    """Where the recipe `name` lies: a bare name among the shipped ones, or a path."""
    return FOLDER / f"{name}.toml" if name in names() else Path(name)


def kind(name: str) -> Literal["model", "attack"]:
    """What the recipe trains; "model" where there is none, so that `read` tells of it."""
    path = path_of(name)
    trains_attack = path.exists() and "attack" in parse_toml(read_text(path, "a recipe"), str(path))
    return "attack" if trains_attack else "model"


def read(name: str) -> Recipe:
    """The recipe `name`: a bare name, or the path of a TOML file.

    Raises: SuiteError with every mistake of the file.
    """
    path = path_of(name)
    if not path.exists():
        raise SuiteError(f"recipe '{name}' is unknown; {nearest(name, names())}")
    check = Validator(str(path))
    raw = parse_toml(read_text(path, "a recipe"), str(path))
    parts = dict.fromkeys(("model", "data", "optimiser", "schedule"), ComponentSpec)
    tables = {"adversarial": Adversary, "certified": Certificate, "published": Published}
    for key, kind in {**parts, **tables}.items():
        if isinstance(raw.get(key), dict):
            raw[key] = check.fill(kind, raw[key], key)
    if "name" in raw:
        check.say("name", "a recipe is called by its file's name; leave it out")
    if "adversarial" in raw and "certified" in raw:
        check.say("certified", "a recipe trains against attacks or for bounds, not both")
    recipe: Recipe | None = check.fill(Recipe, raw, "")
    check.stop_if_wrong()
    assert recipe is not None
    return replace(recipe, name=path.stem)
