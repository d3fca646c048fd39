"""Load models of RobustBench by name: `robustbench:Carmon2019Unlabeled`.

`params` say `dataset` ("cifar10", "cifar100", "imagenet") and `threat_model` ("Linf", "L2",
"corruptions"). Each model has its own weights, so that an entry names none. A file that is there
already, in `model_dir`, in ./models (RobustBench's default) or in bench's data folder, is read
without network; an absent one is downloaded into the latter unless BENCH_OFFLINE is set. Pickles
that need more than tensors are refused. The accuracies that RobustBench publishes are in
model_info of its repository; where that folder is found, they are shown beside the measured ones.
Source: Croce et al. 2021, https://arxiv.org/abs/2010.09670,
https://github.com/RobustBench/robustbench
"""

import base64
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

from torch import nn

from bench.core import files, optional
from bench.core.contracts.model import Model, PublishedFigure
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError, first_line, nearest
from bench.core.validation import parse_fraction
from bench.core.web_page import refuse_web_page

LIBRARY = "robustbench"
INSTALL = "pip install git+https://github.com/RobustBench/robustbench"
REPOSITORY = "https://github.com/RobustBench/robustbench"
DRIVE = "https://drive.google.com/uc?id="
NORMS: Mapping[str, Norm] = {"Linf": "linf", "L2": "l2"}
NEEDS = {
    "autoattack": "git+https://github.com/fra31/auto-attack",
    "pkg_resources": '"setuptools<81"',
}
"""Modules that RobustBench imports and its metadata does not bring (1.1.1 names pyautoattack, and
imports autoattack) -> what to install."""
AUTOATTACK = ("autoattack", "torchattacks:AutoAttack", "pyautoattack:standard")
"""Attacks of which RobustBench's robust accuracy is a measurement."""

# ------------------------------------------------------------------------------------- the library


def adapt(name: str) -> Model:
    """Return a model of the library.

    Args:
        name: Name in RobustBench, such as "Carmon2019Unlabeled".

    Returns:
        The model's record.

    Raises:
        SuiteError: The library is not installed or is only torchattacks' copy, or has no such
            model.
    """
    if reason := find_missing_reason():
        raise SuiteError(f"model '{LIBRARY}:{name}': {reason}")
    known = list_names()
    if name not in known:
        raise SuiteError(f"model '{LIBRARY}:{name}' is unknown; {nearest(name, known)}")
    return Model(
        summary=f"RobustBench's {name}",
        source=f"RobustBench, {REPOSITORY}",
        build=partial(_build, name),
        shape=None,  # these two depend on the data set, a param
        classes=None,
        figures=partial(read_figures, name),
    )


def list_names() -> list[str]:
    """List the models of the library.

    Returns:
        Names of all data sets and threat models, sorted; empty if the library is not installed.
    """
    if find_missing_reason():
        return []
    zoo = _import_zoo()
    return sorted(
        {name for threats in zoo.values() for names in threats.values() for name in names}
    )


def find_missing_reason() -> str:
    """Return the sentence that says why the real RobustBench cannot be used.

    torchattacks installs a copy of RobustBench's package, without its architectures for new
    models, its dependencies or its metadata. By the metadata the two are told apart; where both
    were installed, by the hash that RobustBench's has of its own file.

    Returns:
        The sentence; empty if it can be used.
    """
    try:
        distribution = metadata.distribution(LIBRARY)
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(LIBRARY)
        if spec is None or not spec.origin:
            return f"library '{LIBRARY}' is not installed: {INSTALL}"
        return (
            f"library '{LIBRARY}' is not installed; {Path(spec.origin).parent} is an incomplete "
            f"copy that torchattacks brings: {INSTALL}"
        )
    for file in distribution.files or ():
        if file.as_posix() == f"{LIBRARY}/utils.py" and file.hash is not None:
            content = Path(str(file.locate())).read_bytes()
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return (
                    f"library '{LIBRARY}' {distribution.version} was overwritten by another "
                    "package, torchattacks as a rule: pip install --force-reinstall --no-deps "
                    + INSTALL.removeprefix("pip install ")
                )
    for module, wanted in (
        (f"{LIBRARY}.utils", "load_model"),
        (f"{LIBRARY}.model_zoo", "model_dicts"),
    ):
        try:
            found = optional.import_library(module)
        except ImportError as error:
            _forget_modules()
            need = NEEDS.get(error.name or "", error.name or "")
            why = f"could not be imported ({first_line(error)})"
            return (
                f"library '{LIBRARY}' {distribution.version} {why}: pip install {need or LIBRARY}"
            )
        if not hasattr(found, wanted):
            return f"library '{LIBRARY}' {distribution.version} has no {module}.{wanted}: {INSTALL}"
    return ""


def _forget_modules() -> None:
    """Forget what a failed import left, so that the next one fails or succeeds as a whole."""
    for name in [name for name in sys.modules if name.partition(".")[0] == LIBRARY]:
        del sys.modules[name]


def _import_zoo() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the library's models by data set, threat model and name."""
    dictionaries = optional.import_library(f"{LIBRARY}.model_zoo").model_dicts
    return {
        dataset.value: {threat.value: dict(models) for threat, models in threats.items()}
        for dataset, threats in dictionaries.items()
    }


# --------------------------------------------------------------------------------------- the model


class WeightsFile(NamedTuple):
    """One file of a model's weights."""

    path: Path
    drive_id: str
    """Google Drive's id, under which RobustBench publishes it."""


def _build(
    name: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    model_dir: str | None = None,
) -> nn.Module:
    """Build a model with its weights."""
    where = f"model '{LIBRARY}:{name}'"
    zoo = _import_zoo()
    for key, given, known in (
        ("dataset", dataset, zoo),
        ("threat_model", threat_model, zoo.get(dataset, {})),
    ):
        if given not in known:
            raise SuiteError(f"{where}: {key} '{given}' is unknown; {nearest(given, known)}")
    if name not in zoo[dataset][threat_model]:
        others = [
            f"{data}, {threat}"
            for data, threats in zoo.items() for threat, names in threats.items() if name in names
        ]  # fmt: skip
        raise SuiteError(
            f"{where}: expected dataset and threat_model {' or '.join(others)}, got {dataset}, "
            f"{threat_model}"
        )
    entry = zoo[dataset][threat_model][name]
    folder, wanted = _place_files(name, entry, dataset, threat_model, model_dir)
    _check_files(where, wanted)
    load_model = optional.import_library(f"{LIBRARY}.utils").load_model
    # Whatever the library asks of torch.load, nothing in a downloaded pickle is executed.
    safely = patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})
    try:
        with safely, optional.silence(LIBRARY):
            model: nn.Module = load_model(
                name, model_dir=str(folder), dataset=dataset, threat_model=threat_model
            )
    except Exception as error:  # the library's downloads and constructors raise anything
        _refuse_pages(where, wanted)
        what = _describe_files(wanted) or "the weights that timm names for it into its cache"
        raise SuiteError(
            f"{where} could not be loaded ({type(error).__name__}: {first_line(error)}); put {what}"
        ) from error
    return model


def _place_files(
    name: str, entry: Mapping[str, Any], dataset: str, threat_model: str, model_dir: str | None
) -> tuple[Path, list[WeightsFile]]:
    """Find the folder that has the files of a model, or that is to have them.

    Returns:
        The folder, as `load_model` takes it, and the files, none for a model of timm's hub.
    """
    ids = entry.get("gdrive_id")
    ours = files.data_folder(None) / LIBRARY
    folders = [Path(model_dir)] if model_dir else [Path("models"), ours]
    placed = []
    for folder in folders:
        file = folder / dataset / threat_model / f"{name}.pt"
        if isinstance(ids, list):
            parts = [WeightsFile(Path(f"{file}_m{at}.pt"), each) for at, each in enumerate(ids)]
        else:
            parts = [WeightsFile(file, ids)] if ids else []
        placed.append((folder, parts))
        if parts and all(part.path.is_file() for part in parts):
            return placed[-1]
    return placed[-1]


def _check_files(where: str, wanted: Sequence[WeightsFile]) -> None:
    """Raise SuiteError for web pages, and for absent files where nothing may be downloaded."""
    _refuse_pages(where, wanted)
    absent = [file for file in wanted if not file.path.is_file()]
    if absent and os.environ.get("BENCH_OFFLINE"):
        raise SuiteError(
            f"{where}: weights are absent and downloads are off, BENCH_OFFLINE is set; put "
            f"{_describe_files(absent)}"
        )


def _refuse_pages(where: str, wanted: Sequence[WeightsFile]) -> None:
    for file in wanted:
        refuse_web_page(where, file.path, f"{DRIVE}{file.drive_id}")


def _describe_files(wanted: Sequence[WeightsFile]) -> str:
    """Say which download belongs where."""
    return ", ".join(f"{DRIVE}{file.drive_id} at {file.path.absolute()}" for file in wanted)


# ------------------------------------------------------------------------------------- its figures


def read_figures(
    name: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    model_dir: str | None = None,
) -> list[PublishedFigure]:
    """Read the accuracies that RobustBench publishes of a model.

    Args:
        name: Name in RobustBench.
        dataset: Its data set.
        threat_model: Its threat model.
        model_dir: Folder of weights, one of the params of a model, which has no figures.

    Returns:
        Clean accuracy, robust accuracy under AutoAttack and, where there is one, under the
        strongest attack that others reported; empty without the repository's folder model_info,
        and for corruptions.
    """
    del model_dir
    found = next(_find_information(name, dataset, threat_model), None)
    if found is None or threat_model not in NORMS:
        return []
    try:
        about = json.loads(found.read_text(encoding="utf-8"))
        eps = parse_fraction(about["eps"])
    except (OSError, ValueError, KeyError, TypeError):  # some entries have no eps
        return []
    figures = []
    for key, figure, source, attacks in _COLUMNS:
        try:
            value = float(about[key]) / 100
        except (KeyError, TypeError, ValueError):  # absent, or empty
            continue
        figures.append(
            PublishedFigure(
                attacks=attacks,
                norm=NORMS[threat_model],
                eps=eps,
                figure=figure,
                value=value,
                source=source,
                note="on all images of its benchmark",
            )
        )
    return figures


_COLUMNS: tuple[
    tuple[str, Literal["clean_accuracy", "robust_accuracy"], str, tuple[str, ...]], ...
] = (
    ("clean_acc", "clean_accuracy", "RobustBench, without attack", ()),
    ("autoattack_acc", "robust_accuracy", "RobustBench, AutoAttack", AUTOATTACK),
    ("external", "robust_accuracy", "RobustBench, strongest reported attack", AUTOATTACK),
)


def _find_information(name: str, dataset: str, threat_model: str) -> Iterator[Path]:
    """Yield the model's file of figures in a clone of the repository, and in the data folder."""
    spec = importlib.util.find_spec(LIBRARY)
    package = [Path(spec.origin).parent] if spec and spec.origin else []
    for folder in (*(each.parent for each in package), *package, files.data_folder(None) / LIBRARY):
        path = folder / "model_info" / dataset / threat_model / f"{name}.json"
        if path.is_file():
            yield path
