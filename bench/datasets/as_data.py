"""Make a checked `Data` of what a user has: a name, arrays, a data set or a loader.

Suites, `bench.evaluate` and the pytest plugin use this one function. The same images and labels
have the same fingerprint and so the same records in any of these forms:

- the name of a data set, as a suite has it: `cifar10`, `torchvision:Food101`, `data.npz`;
- images and labels: tensors, arrays of NumPy, or one of each; `bench.datasets.arrays` lists the
  layouts, `bench.datasets.inputs` the types;
- a map-style data set of PyTorch, torchvision or Hugging Face, or a list of (image, label);
- a `DataLoader`, whose order, batches and labels are taken as it delivers them;
- a `Data`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from bench.core import files, registry, rng
from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import SuiteError
from bench.core.foreign import call_factory
from bench.datasets import arrays, inputs, streamed
from bench.datasets.examples import ExampleReader
from bench.datasets.in_memory import make_data

FORMS = (
    "(images, labels) as tensors or arrays, a map-style data set, a DataLoader, a Data, or the "
    "name of a data set"
)


def as_data(
    source: Any,
    labels: Any = None,
    *,
    name: str = "given",
    limit: int | None = None,
    layout: arrays.Layout | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Convert what a user has to checked images and labels.

    Args:
        source: One of the forms that the module lists; images (n, c, h, w), (n, h, w, c) or
            (n, h, w) together with `labels`.
        labels: Integer labels (n,), where `source` is images alone.
        name: Name in tables and messages.
        limit: Most examples; all if None.
        layout: Order of the axes of images; recognised if None.
        classes: Names of the classes in index order; the data set's own if None.

    Returns:
        Images in [0, 1] with labels. The fingerprint is a hash of all of them, except for a `Data`,
        which has one already.

    Raises:
        SuiteError: The form is unknown, or images or labels are not accepted.
    """
    where = f"data {name}"
    if limit is not None and limit < 1:
        raise SuiteError(f"{where}: limit: expected at least 1, got {limit}")
    if isinstance(source, str | Path):
        load = find_loader(str(source), Path())
        offered = {"split": "test", "limit": limit, "data_dir": files.data_folder(None)}
        return as_data(call_loader(str(source), load, offered, {}), name=str(source), limit=limit)
    if labels is None and _is_pair(source):
        source, labels = source
    data = call_factory(
        where, lambda: _convert(where, name, source, labels, limit, layout, classes)
    )
    limited = inputs.limit_data(data, limit)
    checked: Data = call_factory(where, lambda: inputs.check_data(name, limited))
    return checked


def find_loader(name: str, base: Path) -> Callable[..., Any]:
    """Find the function that loads the data set of a name.

    Args:
        name: As in a suite.
        base: Folder that file names start from.

    Returns:
        The function of its record, or the user's factory.

    Raises:
        SuiteError: There is no such data set.
    """
    found = registry.find("datasets", name, base)
    load: Callable[..., Any] = found.load if isinstance(found, Dataset) else found
    return load


def call_loader(
    name: str,
    load: Callable[..., Any],
    offered: Mapping[str, Any],
    params: Mapping[str, Any],
) -> Any:
    """Load a data set with those arguments that its function has parameters for.

    Args:
        name: As in a suite.
        load: Result of `find_loader`.
        offered: Split, limit and folder of data sets.
        params: The user's; they come before what is offered.

    Returns:
        What the function returns.

    Raises:
        SuiteError: It raised.
    """
    parameters = inspect.signature(load).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters}
        offered = {key: value for key, value in offered.items() if key in names}
    return call_factory(f"data {name}", lambda: load(**{**offered, **params}))


def _convert(
    where: str,
    name: str,
    source: Any,
    labels: Any,
    limit: int | None,
    layout: arrays.Layout | None,
    classes: Sequence[str] | None,
) -> Data:
    """Convert a source that is no name."""
    if labels is not None:
        return convert_arrays(where, name, source, labels, limit, layout, classes)
    if isinstance(source, Data):
        return source
    if isinstance(source, torch_data.DataLoader):
        return convert_loader(where, name, source, limit, classes)
    if isinstance(source, torch_data.IterableDataset):
        return convert_loader(where, name, torch_data.DataLoader(source), limit, classes)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not _is_array(source):
        reader = ExampleReader(where=where)
        return convert_dataset(name, source, reader, limit, classes)
    hint = "; give the labels as well" if _is_array(source) else ""
    raise SuiteError(f"{where}: expected {FORMS}, got {type(source).__name__}{hint}")


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _is_pair(source: Any) -> bool:
    """Return whether a source is (images, labels) and no data set of two examples."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    if isinstance(source, tuple) and not isinstance(source[0], tuple | list):
        return True
    return all(_is_array(each) for each in source)


# ------------------------------------------------------------------------------------ arrays


def convert_arrays(
    where: str,
    name: str,
    images: Any,
    labels: Any,
    limit: int | None = None,
    layout: arrays.Layout | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Make a data set of arrays.

    Args:
        where: Start of error messages.
        name: Name in tables.
        images: (n, c, h, w), (n, h, w, c) or (n, h, w); a memory map stays on the disk if it is
            larger than `streamed.RESIDENT`.
        labels: (n,).
        limit: Most examples; all if None.
        layout: Order of the axes; recognised if None.
        classes: Names of the classes in index order; unknown if None.

    Returns:
        The data set.

    Raises:
        SuiteError: Images or labels are not accepted.
    """
    for what, values in (("images", images), ("labels", labels)):
        if not _is_array(values) and not isinstance(values, tuple | list):
            raise SuiteError(
                f"{where}: expected {what} in a tensor or an array, got {type(values).__name__}"
            )
    y = arrays.to_tensor(where, labels)
    names = tuple(classes or ())
    if not isinstance(images, np.memmap):
        images = arrays.to_tensor(where, images)
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or y.dim() != 1 or len(y) != shape[0]:
        inputs.check_shapes(where, arrays.to_tensor(where, images), y)
    axes = arrays.find_axes(where, shape, layout)
    n = len(y) if limit is None else min(limit, len(y))
    y = y[:n]
    if isinstance(images, np.memmap) and images.nbytes > streamed.RESIDENT:
        mapped = images

        def read(first: int, last: int) -> streamed.Block:
            block = arrays.to_tensor(where, np.array(mapped[first:last]))
            return arrays.arrange(block, axes), y[first:last]

        data = streamed.stream_data(name, n, read, names)
    else:
        x = arrays.to_tensor(where, images)[:n]
        data = make_data(name, arrays.arrange(x, axes), y, names)
    if not axes.text:
        return data
    return dataclasses.replace(data, mapping={**data.mapping, "layout": axes.text})


# ------------------------------------------------------------------------------ data sets, loaders


def convert_dataset(
    name: str,
    dataset: Any,
    reader: ExampleReader,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Make a data set of a map-style data set of another library.

    Args:
        name: Name in tables.
        dataset: Has a length and examples by index.
        reader: Converts its examples.
        limit: Most examples; all if None.
        classes: Names of the classes in index order; those that it has if None.

    Returns:
        The data set, in the order of the indices.

    Raises:
        SuiteError: Examples are not accepted.
    """
    n = len(dataset) if limit is None else min(limit, len(dataset))
    if n < 1:
        raise SuiteError(f"data {name}: expected at least one example, got none")
    if reader.channels is None:  # all images as the first
        channels = len(reader.read_image(reader.split_example(dataset[0])[0]))
        reader = dataclasses.replace(reader, channels=channels if channels in (1, 3) else None)

    def read(first: int, last: int) -> streamed.Block:
        return reader.read_examples([dataset[index] for index in range(first, last)])

    return streamed.stream_data(name, n, read, _class_names(dataset, classes))


def convert_loader(
    where: str,
    name: str,
    loader: "torch_data.DataLoader[Any]",
    limit: int | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Make a data set of the batches of a loader, which are all held in memory.

    Args:
        where: Start of error messages.
        name: Name in tables.
        loader: Its batches are (images, labels), or mappings with both. A shuffled one is read with
            a fixed seed, unless it has a generator.
        limit: Most examples; all if None.
        classes: Names of the classes in index order; those of its data set if None.

    Returns:
        The data set, whose mapping says if its order or its images are random.

    Raises:
        SuiteError: Batches are not accepted.
    """
    reader = ExampleReader(where=where)

    def blocks() -> Iterator[streamed.Block]:
        seen = 0
        for batch in loader:
            images, labels = reader.split_example(batch)
            x, y = arrays.to_tensor(where, images), arrays.to_tensor(where, labels)
            if loader.batch_size is None and loader.batch_sampler is None and y.dim() == 0:
                x, y = x.unsqueeze(0), y.unsqueeze(0)  # a loader of single examples
            if x.dim() in (3, 4) and len(x) == len(y):
                x = arrays.arrange(x, arrays.find_axes(where, tuple(x.shape), None))
            rows = slice(None if limit is None else limit - seen)
            inputs.check_shapes(where, x, y)
            yield x[rows], y[rows].to(torch.int64)
            seen += len(x)
            if limit is not None and seen >= limit:
                return

    with rng.seed_global("data loader"):
        data = streamed.collect_data(name, blocks(), _class_names(loader.dataset, classes))
    mapping = dict(data.mapping)
    if not isinstance(loader.sampler, torch_data.SequentialSampler):
        mapping["order"] = "as the loader's sampler chose it, once"
    if _augments(loader):
        mapping["images"] = "random, such as by augmentation, as the loader drew them once"
    return dataclasses.replace(data, mapping=mapping)


def _augments(loader: "torch_data.DataLoader[Any]") -> bool:
    """Return whether the data set of a loader has other examples each time they are read."""
    if loader.batch_sampler is None or isinstance(loader.dataset, torch_data.IterableDataset):
        return False  # which can be read only once, or in an unknown way
    with rng.seed_global("data loader"):
        rows = list(next(iter(loader.batch_sampler)))[: inputs.N_PROBED]

    def read(time: str) -> Any:
        with rng.seed_global("data loader", time):
            return loader.collate_fn([loader.dataset[row] for row in rows])

    reader = ExampleReader(where="data loader")
    first, second = (
        arrays.to_tensor(reader.where, reader.split_example(read(time))[0])
        for time in ("first", "second")
    )
    return not torch.equal(first, second)


def _class_names(dataset: Any, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes that a data set of torchvision or Hugging Face states."""
    if given is not None:
        return tuple(given)
    found = getattr(dataset, "classes", None)
    if isinstance(found, tuple | list):
        # torchvision's ImageNet has a tuple of synonyms for each class
        return tuple(each if isinstance(each, str) else str(each[0]) for each in found)
    return ()
