"""Read data sets through torchvision's classes, from files in its own layout.

Files are downloaded only if a suite asks for it by `params = { download = true }`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.contracts.dataset import Data
from bench.core.errors import MissingDataError, SuiteError, first_line, suggest_params
from bench.datasets.as_data import convert_arrays


@dataclass(frozen=True, kw_only=True)
class VisionSet:
    """A data set of torchvision that bench knows by name."""

    name: str
    kind: str
    """Name of torchvision's class."""
    files: Mapping[str, Sequence[str]]
    """Split -> files in the data folder that the class needs."""
    classes: tuple[str, ...]
    archive: str
    """Where the files come from."""
    by_split: bool = False
    """Whether the class has `split` in place of `train`."""

    def list_files(self, split: str, data_dir: Path) -> list[Path]:
        """List the files of a split.

        Args:
            split: A key of `files`; others have none.
            data_dir: Folder of data sets.

        Returns:
            Paths, whether the files exist or not.
        """
        return [data_dir / name for name in self.files.get(split, ())]

    def load(
        self,
        split: str = "test",
        limit: int | None = None,
        *,
        data_dir: Path,
        download: bool = False,
    ) -> Data:
        """Load the first images of a split.

        Args:
            split: A key of `files`.
            limit: Most images; None for all.
            data_dir: Folder of data sets.
            download: Let torchvision fetch missing files.

        Returns:
            Images in the order of torchvision, with labels.

        Raises:
            SuiteError: The split is unknown, or a file is damaged.
            MissingDataError: A file is missing.
        """
        where = f"data {self.name}"
        if split not in self.files:
            known = " or ".join(f"'{each}'" for each in self.files)
            raise SuiteError(f"{where}: split '{split}' is unknown; expected {known}")
        arguments: dict[str, Any] = {"root": str(data_dir), "download": False}
        arguments |= {"split": split} if self.by_split else {"train": split == "train"}
        paths = self.list_files(split, data_dir)
        absent = [path for path in paths if not path.is_file()]
        if absent and download:
            arguments["download"] = not os.environ.get("BENCH_OFFLINE")
        elif absent:
            raise self._missing(absent, data_dir, "")
        try:
            dataset = make_dataset(self.kind, arguments)
        except (RuntimeError, OSError, ValueError) as error:
            if absent:
                raise self._missing(absent, data_dir, first_line(error)) from error
            raise SuiteError(
                f"{where}: a file of {', '.join(str(path) for path in paths)} is damaged or "
                f"another than the published one ({first_line(error)}); fetch {self.archive} again"
            ) from error
        labels = dataset.labels if self.kind == "SVHN" else dataset.targets
        # All at once: image by image took four times as long on 10,000 images of CIFAR-10.
        return convert_arrays(where, self.name, dataset.data, labels, limit, None, self.classes)

    def _missing(self, absent: Sequence[Path], data_dir: Path, why: str) -> MissingDataError:
        """Return the error that says which file is missing, where it belongs and how to get it."""
        if os.environ.get("BENCH_OFFLINE") and why:
            why = "downloads are off, BENCH_OFFLINE is set"
        names = ", ".join(str(path.relative_to(data_dir)) for path in absent[:2])
        names += f" and {len(absent) - 2} more files" if len(absent) > 2 else ""
        return MissingDataError(
            f"data {self.name}: {names} not found in {data_dir}"
            + (f" and not downloaded ({why})" if why else "")
            + f"; unpack {self.archive} there, or name the folder by --data-dir or BENCH_DATA_DIR"
            + (
                ""
                if why
                else f", or let torchvision fetch it by {suggest_params('download = true')}"
            )
        )


def make_dataset(kind: str, arguments: Mapping[str, Any]) -> Any:
    """Construct a data set of torchvision without what it prints.

    Args:
        kind: Name of its class.
        arguments: Of its constructor.

    Returns:
        The data set.

    Raises:
        Exception: What the constructor raises.
    """
    from torchvision import datasets  # slow to import

    from bench.core import optional

    with optional.silence("torchvision"):
        return getattr(datasets, kind)(**arguments)


def describe_source(data: Data, text: str) -> Data:
    """Say in the mapping of a data set where it is from.

    Args:
        data: The data set.
        text: Description.

    Returns:
        The data set with that description.
    """
    return dataclasses.replace(data, mapping={**data.mapping, "source": text})
