"""Preflight's findings: each seen on a net that has the fault, none on a net that has not."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.core import files
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets.in_memory import make_data
from bench.evaluation import loading
from bench.models.preflight import checks, preprocessing
from bench.models.preflight.findings import FINDINGS
from bench.models.preprocessing import MNIST_MEAN, MNIST_STD, Normalise
from bench.models.published_weights import WEIGHTS
from bench.suite import reader
from bench.suite.schema import DataEntry, ModelEntry

CPU = torch.device("cpu")
Change = Callable[[Tensor], Tensor]


class Shown(nn.Module):
    """A net that changes its images, or its logits, on the way."""

    def __init__(self, net: nn.Module, before: Change | None = None, after: Change | None = None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


@pytest.fixture
def data(digits: tuple[Tensor, Tensor]) -> Data:
    return make_data("digits", *digits, tuple("0123456789"))


def names(model: nn.Module, data: Data, *allow: str) -> list[str]:
    """The names of what is found, read off the end of each sentence."""
    findings = checks.preflight("net", model.eval(), data, CPU, allow=allow).findings
    return [text.rpartition("(")[2].partition(")")[0].partition(",")[0] for text in findings]


def labelled(data: Data, labels: Tensor) -> Data:
    images = data.read(0, data.n)
    return make_data("shifted", images, labels, ())


# -------------------------------------------------------------------- what accuracy gives away


def picky(x: Tensor) -> Tensor:
    """Pixels that are on if they are between 0.5 and 1.3: what a shift or a scale breaks."""
    return torch.sigmoid(40 * (x - 0.5)) * torch.sigmoid(40 * (1.3 - x))


MEANT: dict[str, tuple[Change, str]] = {
    "pixels up to 255": (lambda x: x / 255, "255 * x"),
    "pixels in [-1, 1]": (lambda x: picky((x + 1) / 2), "2 * x - 1"),
}


@pytest.mark.parametrize("case", MEANT)
def test_a_net_made_for_another_range_of_pixels_is_found(
    lenet: nn.Module, data: Data, case: str
) -> None:
    change, remedy = MEANT[case]
    (finding,) = checks.preflight("net", Shown(lenet, change).eval(), data, CPU).findings
    assert remedy in finding
    assert finding.endswith("(input-range)")


@pytest.mark.parametrize("times", [0, 1, 2])
def test_normalisation_is_right_once_and_found_where_it_is_done_twice_or_not_at_all(
    lenet: nn.Module, data: Data, times: int
) -> None:
    (mean,), (std,) = MNIST_MEAN, MNIST_STD
    net = Shown(lenet, lambda x: picky(x * std + mean))  # made for normalised images
    layers = [Normalise(MNIST_MEAN, MNIST_STD) for _ in range(times)]
    assert names(nn.Sequential(*layers, net), data) == ([] if times == 1 else ["normalisation"])


def test_channels_in_the_wrong_order_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 3
    x = 0.2 * torch.rand(64, 3, 4, 4, generator=generator)
    x[torch.arange(64), y] += 0.5

    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 9 * x.mean((2, 3))

    data = make_data("colours", x, y, ())
    assert names(Means(), data) == []
    assert names(Shown(Means(), lambda x: x.flip(1)), data) == ["channel-order"]


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_off_by_one_are_found(lenet: nn.Module, data: Data, shift: int) -> None:
    assert data.labels is not None
    kept = (data.labels + shift >= 0).nonzero()[:, 0]
    wider = Shown(lenet, after=lambda z: nn.functional.pad(z, (0, 1), value=-99.0))
    images = data.read(0, data.n)[kept]
    shifted = make_data("shifted", images, data.labels[kept] + shift, ())
    assert names(wider, shifted) == ["labels-off-by-one"]
    assert names(lenet, data) == []


def test_a_net_that_knows_nothing_is_near_chance_and_one_that_knows_half_is_not(
    lenet: nn.Module, data: Data
) -> None:
    assert data.labels is not None
    turned = data.labels[torch.randperm(data.n, generator=torch.Generator().manual_seed(1))]
    assert names(lenet, labelled(data, turned)) == ["near-chance"]
    half = torch.where(torch.arange(data.n) % 4 < 2, data.labels, turned)
    assert names(lenet, labelled(data, half)) == []


@pytest.mark.parametrize("label", [0, 3])
def test_images_of_one_class_are_evidence_of_nothing(
    lenet: nn.Module, data: Data, label: int
) -> None:
    """A net that always answers 1 is right about every label of 0 that is shifted by one."""
    always = Shown(lenet, after=lambda z: z * 0 + 5.0 * nn.functional.one_hot(torch.tensor(1), 10))
    one_class = labelled(data, torch.full((data.n,), label))
    assert set(names(always, one_class)) == {"zero-gradient"}


def test_a_few_images_are_evidence_of_nothing(lenet: nn.Module, data: Data) -> None:
    few = make_data("few", data.read(0, 15), torch.zeros(15, dtype=torch.int64), ())
    assert names(lenet, few) == []


def test_unrelated_guesses_are_suspected_of_a_shift_no_more_often_than_promised() -> None:
    generator = torch.Generator().manual_seed(0)
    y, pred = torch.randint(10, (2, 2000, 32), generator=generator)
    result = sum(preprocessing.is_improvement(p, t, p, t + 1) for p, t in zip(pred, y, strict=True))
    assert result <= 1


def test_a_net_that_refuses_other_pixels_is_asked_without_harm(
    lenet: nn.Module, data: Data
) -> None:
    assert data.labels is not None

    def strict(x: Tensor) -> Tensor:
        if x.min() < 0 or x.max() > 1:
            raise ValueError("outside the box")
        return x

    assert names(Shown(lenet, strict), labelled(data, data.labels.flip(0))) == ["near-chance"]


def test_a_sound_net_pays_one_pass_more_for_the_suspicions(lenet: nn.Module, data: Data) -> None:
    rows: list[int] = []
    counting = Shown(lenet, before=lambda x: (rows.append(len(x)), x)[1])
    assert not [*preprocessing.find_wrong_preprocessing("", counting.eval(), data, CPU)]
    assert rows == [32]


SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("file", SHIPPED)
def test_no_shipped_net_is_suspected_of_anything(file: str) -> None:
    name, _, weights = file.partition("-")
    of = "digits" if weights.startswith("digits") else "mnist"
    try:
        data = loading.load_data(
            DataEntry(name=of, limit=200), Path(), files.data_folder(None), None
        )
    except SuiteError as error:
        pytest.skip(str(error))
    entry = ModelEntry(name=name, label=file, weights=weights)
    assert loading.load_model(entry, Path(), 0, data, CPU).findings == ()


# ----------------------------------------------------------------------- modes and other images


class Stubborn(nn.Dropout):
    """Dropout that evaluation mode does not reach."""

    def train(self, mode: bool = True) -> "Stubborn":
        del mode
        self.training = True
        return self


def test_batch_statistics_are_named_with_their_layer(lenet: nn.Module, data: Data) -> None:
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    result = " ".join(checks.preflight("net", nn.Sequential(norm, lenet), data, CPU).findings)
    assert "(0 takes the batch's statistics)" in result
    assert "batch-dependent" in result


def test_a_layer_that_stays_in_training_mode_is_named(lenet: nn.Module, data: Data) -> None:
    assert names(nn.Sequential(lenet, Stubborn(0.0)), data) == ["training-mode"]
    assert names(nn.Sequential(lenet, Stubborn(0.5)), data) == ["training-mode", "random"]


def test_a_net_that_needs_a_batch_is_refused_in_one_sentence(lenet: nn.Module, data: Data) -> None:
    def paired(z: Tensor) -> Tensor:
        if len(z) < 2:
            raise ValueError("Expected more than 1 value per channel")
        return z

    with pytest.raises(SuiteError, match="does not take an image alone: Expected more than 1"):
        checks.preflight("net", Shown(lenet, after=paired), data, CPU)


def test_an_answer_that_depends_on_the_place_in_the_batch_is_found(
    lenet: nn.Module, data: Data
) -> None:
    """Alone, an image is first, and so answered as the first of a batch is."""
    place = Shown(lenet, after=lambda z: z + torch.arange(len(z))[:, None] * torch.eye(10)[0])
    assert names(place, data) == ["batch-dependent"]


def test_more_classes_than_the_data_has_are_reported(lenet: nn.Module, data: Data) -> None:
    wider = Shown(lenet, after=lambda z: nn.functional.pad(z, (0, 1), value=-9.0))
    assert names(wider, data) == ["classes"]


def test_a_net_in_inference_mode_has_no_gradient_and_is_reported(
    lenet: nn.Module, data: Data
) -> None:
    """What leaves inference mode cannot be differentiated."""
    for parameter in lenet.parameters():
        parameter.requires_grad_(False)

    class Served(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return lenet(x.detach())  # type: ignore[no-any-return]

    assert names(Served(), data) == ["zero-gradient"]


def test_a_gradient_that_is_nan_in_some_pixels_is_found_beside_finite_ones(
    lenet: nn.Module, data: Data
) -> None:
    """The slope of the root where a pixel is 0 is 0 times infinity; elsewhere all is well."""
    root = Shown(lenet, before=lambda x: (x * (x > 0)).sqrt())
    assert names(root, data) == ["non-finite-gradient"]
    (finding,) = checks.preflight("net", root, data, CPU).findings
    assert "net' has a gradient with NaN or infinite entries on 16 of 16 clean images" in finding


# --------------------------------------------------------------------------- allowed by the suite


ALLOWED: dict[str, Change] = {
    "probabilities": lambda z: z.softmax(1),
    "not-float32": lambda z: z.half(),
    "not-finite": lambda z: torch.where(torch.arange(len(z))[:, None] == 3, torch.nan, z),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_refused_says_how_to_allow_it_and_is_noted_where_it_is_allowed(
    lenet: nn.Module, data: Data, name: str
) -> None:
    model = Shown(lenet, after=ALLOWED[name])
    with pytest.raises(SuiteError) as caught:
        checks.preflight("net", model, data, CPU)
    assert str(caught.value).endswith(f'; or, if that is meant, allow = ["{name}"] in its entry')
    findings = checks.preflight("net", model, data, CPU, allow=[name]).findings
    assert [text for text in findings if text.endswith(f"({name}, allowed by the suite)")]


def test_a_net_in_half_precision_that_casts_by_itself_can_be_allowed(
    lenet: nn.Module, data: Data
) -> None:
    half = Shown(copy.deepcopy(lenet).bfloat16(), lambda x: x.bfloat16(), lambda z: z.float())
    with pytest.raises(SuiteError, match=r"expected float32 parameters.*10 of 10 in bfloat16"):
        checks.preflight("net", half, data, CPU)
    assert names(half, data, "not-float32") == ["not-float32"]


def written(folder: Path, allow: str) -> Path:
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 40\n[[models]]\nname = "lenet"\n'
        f'weights = "digits"\nallow = {allow}\n[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0]'
    )
    (folder / "s.toml").write_text(text, encoding="utf-8")
    return folder / "s.toml"


def test_a_suite_allows_findings_by_name(tmp_path: Path) -> None:
    (entry,) = reader.read_suite(str(written(tmp_path, '["probabilities", "random"]'))).models
    assert entry.allow == ["probabilities", "random"]


def test_an_unknown_finding_is_reported_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        reader.read_suite(str(written(tmp_path, '["probabilitys"]')))
    (problem,) = caught.value.problems
    assert "models[0].allow: preflight finds nothing called 'probabilitys'" in problem
    assert "did you mean 'probabilities'?" in problem


def test_every_name_that_is_known_is_found_somewhere_here() -> None:
    here = Path(__file__).parents[1]
    paths = (
        "models/test_preflight.py", "evaluation/test_loading.py",
        "evaluation/test_models_that_write.py", "models/test_libraries.py",
        "models/test_as_written.py", "evaluation/test_detectors.py",
    )  # fmt: skip
    text = "".join((here / each).read_text(encoding="utf-8") for each in paths)
    assert [name for name in FINDINGS if name not in text] == []


def test_a_net_that_answers_otherwise_where_a_gradient_is_asked_for_is_found(
    lenet: nn.Module, data: Data
) -> None:
    def rounded(x: Tensor) -> Tensor:
        return torch.round(3 * x) / 3 + 0 * x if torch.is_grad_enabled() else x

    assert "gradient-mode" in names(Shown(lenet, rounded), data)
    assert names(Shown(lenet, lambda x: x.round() if not torch.is_grad_enabled() else x), data) == [
        "gradient-mode"
    ]
