"""Load image data sets of the Hugging Face hub or a folder: `huggingface:uoft-cs/cifar10`.

The name is OWNER/NAME on the hub, or the path of a folder as `datasets.load_dataset` reads it
(parquet, or images in class folders), also below the data folder. Code in a repository is never
run. The hub is asked only if the params say `download = true`; otherwise its cache (HF_HOME) is
read. Columns of images and labels are found by their types, then by their names, or are named by
the params `image` and `label`; `config` and `revision` choose a version.
Source: Lhoest et al. 2021, https://github.com/huggingface/datasets
"""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.core import optional
from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError, first_line, nearest, suggest_params
from bench.datasets import vision
from bench.datasets.as_data import convert_dataset
from bench.datasets.examples import IMAGE_KEYS, LABEL_KEYS, ExampleReader

LIBRARY = "datasets"


def adapt(name: str) -> Dataset:
    """Return a data set of the hub.

    Args:
        name: OWNER/NAME, or the path of a folder.

    Returns:
        The record; nothing is read yet.

    Raises:
        SuiteError: The library is not installed.
    """
    if reason := optional.missing_reason(LIBRARY, LIBRARY):
        raise SuiteError(f"data 'huggingface:{name}': {reason}")
    return Dataset(summary=f"the data set {name}", source=name, load=partial(_load, name))


def _load(
    name: str,
    split: str = "test",
    limit: int | None = None,
    *,
    data_dir: Path,
    image: str | None = None,
    label: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    size: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
    download: bool = False,
) -> Data:
    """Load a split and read its examples."""
    where = f"data huggingface:{name}"
    dataset = _fetch(where, name, split, data_dir, config, revision, download)
    image = image or _find_column(where, "image", dataset.features)
    label = label or _find_column(where, "label", dataset.features)
    for what, column in (("image", image), ("label", label)):
        if column not in dataset.features:
            raise SuiteError(
                f"{where}: {what}: there is no column '{column}'; "
                f"{nearest(column, dataset.features)}"
            )
    reader = ExampleReader(
        where=where, image_key=image, label_key=label, channels=channels, size=size, resize=resize
    )
    classes = tuple(getattr(dataset.features[label], "names", None) or ())
    examples = dataset.select_columns([image, label])
    if type(dataset.features[image]).__name__ != "Image":
        examples = examples.with_format("numpy")
    data = convert_dataset(f"huggingface:{name}", examples, reader, limit, classes)
    return vision.describe_source(data, f"columns {image} and {label} of {name}")


def _fetch(
    where: str,
    name: str,
    split: str,
    data_dir: Path,
    config: str | None,
    revision: str | None,
    download: bool,
) -> Any:
    """Load a split with the library."""
    folder = next((path for path in (Path(name), data_dir / name) if path.is_dir()), None)
    online = download and not os.environ.get("BENCH_OFFLINE")
    library = optional.import_library(LIBRARY)
    bars = library.utils.logging.is_progress_bar_enabled()
    library.disable_progress_bars()
    try:
        with optional.silence(LIBRARY, "huggingface_hub"), _network(online or folder is not None):
            return library.load_dataset(str(folder or name), config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        if "split" in str(error) or "config" in str(error).lower():
            raise SuiteError(f"{where}: {first_line(error)}") from error
        place = str(folder) if folder else "the hub's cache (HF_HOME) or into a folder of that name"
        fetch = f", or let it be fetched by {suggest_params('download = true')}"
        raise MissingDataError(
            f"{where}: cannot be read ({first_line(error)}); put its files into {place}"
            f"{'' if folder or download else fetch}"
        ) from error
    finally:
        if bars:
            library.enable_progress_bars()


@contextlib.contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Let the library use the network, or its cache alone."""
    config = optional.import_library(f"{LIBRARY}.config")
    constants = optional.import_library("huggingface_hub.constants")
    places = [(config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, key) for module, key in places]
    for module, key in places:
        if not allowed:
            setattr(module, key, True)
    try:
        yield
    finally:
        for (module, key), value in zip(places, before, strict=True):
            setattr(module, key, value)


def _find_column(where: str, what: str, features: Any) -> str:
    """Find the column of images or labels by its type, else by its name."""
    kind, usual = ("Image", IMAGE_KEYS) if what == "image" else ("ClassLabel", LABEL_KEYS)
    typed = [str(key) for key, feature in features.items() if type(feature).__name__ == kind]
    if len(typed) == 1:
        return typed[0]
    named = [key for key in usual if key in (typed or features)]
    if named and not (typed and len(named) > 1):
        return named[0]
    which = "several columns may be" if typed else "no column is called as usual for"
    raise SuiteError(
        f"{where}: {which} the {what}; name it by {suggest_params(f'{what} = ...')}; columns: "
        f"{', '.join(typed or features)}"
    )
