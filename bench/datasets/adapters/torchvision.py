"""Load any classification data set of torchvision by its class: `torchvision:Food101`.

Files are in torchvision's layout in the data folder; nothing is downloaded unless the params say
`download = true`. `split` of the suite is the class's `split`, or its `train`. Further params go to
the class; lists become tuples. EMNIST's choice of classes is `subset`, such as "letters". Images of
unequal size need `size` (and `resize`): the short side is resized to `resize`, then the middle
square of `size` pixels is cut.
Source: https://docs.pytorch.org/vision/stable/datasets.html
"""

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError, first_line, nearest, suggest_params
from bench.datasets import vision
from bench.datasets.as_data import convert_dataset
from bench.datasets.examples import ExampleReader

LIBRARY = "torchvision"
PASSED = ("root", "train", "split", "transform", "target_transform", "transforms", "download")
"""Parameters of a class that a suite states otherwise, or not at all."""


def adapt(name: str) -> Dataset:
    """Return a data set of the library.

    Args:
        name: Name of its class in `torchvision.datasets`.

    Returns:
        The record; nothing is read yet.

    Raises:
        SuiteError: There is no such class.
    """
    from torchvision import datasets  # slow to import

    known = [each for each in datasets.__all__ if _is_data_set(getattr(datasets, each, None))]
    if name not in known:
        raise SuiteError(f"data '{LIBRARY}:{name}' is unknown; {nearest(name, known)}")
    return Dataset(
        summary=f"torchvision's {name}", source=f"torchvision.datasets.{name}",
        load=partial(_load, name),
    )  # fmt: skip


def _is_data_set(kind: Any) -> bool:
    from torchvision import datasets

    return isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)


def _load(
    name: str,
    split: str = "test",
    limit: int | None = None,
    *,
    data_dir: Path,
    size: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
    download: bool = False,
    subset: str | None = None,
    **params: Any,
) -> Data:
    """Construct the class and read its examples."""
    from torchvision import datasets

    where = f"data {LIBRARY}:{name}"
    known = inspect.signature(getattr(datasets, name)).parameters
    if "size" in known:  # FakeData counts its images so
        params |= {} if size is None else {"size": size}
        size = None
    for key in params:
        if key not in known or key in PASSED:
            names = [each for each in known if each not in PASSED]
            raise SuiteError(f"{where}: params: '{key}' is unknown; {nearest(key, names)}")
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in params.items()
    }
    if "root" in known:
        arguments["root"] = str(data_dir)
    if "train" in known:
        if split not in ("train", "test"):
            raise SuiteError(f"{where}: split '{split}' is unknown; expected 'train' or 'test'")
        arguments["train"] = split == "train"
    elif name == "EMNIST":  # its `split` is a choice of classes
        arguments["split"], arguments["train"] = subset or "balanced", split == "train"
    elif "split" in known:
        arguments["split"] = split
    elif split != "test":
        raise SuiteError(f"{where}: it has no splits, got split '{split}'; take the key out")
    may_fetch = download and not os.environ.get("BENCH_OFFLINE")
    if "download" in known:
        arguments["download"] = may_fetch
    try:
        dataset = vision.make_dataset(name, arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        if isinstance(error, ValueError | TypeError):  # an argument, such as a split
            raise SuiteError(f"{where}: {first_line(error)}") from error
        fetch = f"say {suggest_params('download = true')}, or "
        if download or "download" not in known:
            fetch = ""
        raise MissingDataError(
            f"{where}: its files cannot be read from {data_dir} ({first_line(error)}); {fetch}put "
            "them there as torchvision arranges them, or name their folder by --data-dir"
        ) from error
    reader = ExampleReader(where=where, channels=channels, size=size, resize=resize)
    data = convert_dataset(f"{LIBRARY}:{name}", dataset, reader, limit)
    return vision.describe_source(data, f"torchvision.datasets.{name}{_describe_size(reader)}")


def _describe_size(reader: ExampleReader) -> str:
    if reader.size is None:
        return ""
    return f", short side to {reader.resize or reader.size}, middle {reader.size} x {reader.size}"
