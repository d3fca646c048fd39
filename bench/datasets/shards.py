"""Read tar shards in the format of WebDataset: `shards/{000..009}.tar`.

A sample is the neighbouring members of a shard that share a name up to its first dot: 0001.jpg and
0001.cls. Shards are read where they are; only their index (offset and length of each member) is
held in memory, so that the data may be larger than memory or lie on several disks
(`{/disk1,/disk2}/shard-{000..499}.tar`). Order: shards as the pattern lists them, samples as they
are stored. Braces hold a range of numbers or a list; several are combined as in a shell.

Source: https://github.com/webdataset/webdataset (format); read by the standard library, because the
package reads in sequence and an attack needs any slice
"""

import dataclasses
import io
import itertools
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.core.contracts.dataset import Data
from bench.core.errors import MissingDataError, SuiteError, first_line, suggest_params
from bench.datasets import image_files, streamed
from bench.datasets.examples import ExampleReader

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "npy")
LABELS = ("cls", "label", "label.txt", "cls.txt")
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)


class Member(NamedTuple):
    """One file in a shard."""

    shard: Path
    offset: int
    size: int
    kind: str
    """Its name behind the first dot."""


class Sample(NamedTuple):
    """The files of one example."""

    image: Member
    label: Member


def load(
    path: Path,
    limit: int | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Load the first samples of shards.

    Args:
        path: A shard, or a pattern of shards.
        limit: Most samples; None for all.
        image: Suffix of the images; the first of IMAGES that samples have if None.
        label: Suffix of the labels, integers as text; the first of LABELS if None.
        size: Side of the middle square after resizing; None leaves images as they are.
        resize: Length of the short side before the square is cut; `size` if None.
        channels: 3 (colour) or 1 (grey); as the first image if None.
        classes: Names of the classes in index order.

    Returns:
        The data set.

    Raises:
        SuiteError: A shard is damaged, or samples have no image or label.
        MissingDataError: A shard is missing.
    """
    where = f"data {path.name}"
    shards = [Path(name) for name in expand_braces(str(path))]
    absent = [shard for shard in shards if not shard.is_file()]
    if absent:
        raise MissingDataError(f"{where}: shard {absent[0]} not found; {len(absent)} are missing")
    reader = ExampleReader(where=where, channels=channels, size=size, resize=resize)
    samples = list(itertools.islice(_list_samples(where, shards, image, label), limit))
    if not samples:
        raise SuiteError(f"{where}: expected at least one sample, got none")
    if reader.channels is None:
        n_channels = len(reader.read_image(_read_image(where, samples[0].image)))
        reader = dataclasses.replace(reader, channels=n_channels if n_channels in (1, 3) else None)

    def read(first: int, last: int) -> streamed.Block:
        return reader.read_examples(
            [
                (_read_image(where, each.image), _read_label(where, each.label))
                for each in samples[first:last]
            ]
        )

    data = streamed.stream_data(path.stem, len(samples), read, tuple(classes or ()))
    text = f"{len(samples)} of {len(shards)} shards, .{samples[0].image.kind} and "
    mapping = {**data.mapping, "samples": text + f".{samples[0].label.kind}"}
    return dataclasses.replace(data, mapping=mapping)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand the braces of a pattern.

    >>> list(expand_braces("{a,b}-{08..10}.tar"))[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']

    Args:
        pattern: Text with ranges of numbers or lists in braces.

    Yields:
        Texts, the last brace varying fastest.
    """
    match = _BRACE.search(pattern)
    if match is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(match.group(1))
    if numbers:
        first, last = numbers.groups()
        values = [str(k).zfill(len(first)) for k in range(int(first), int(last) + 1)]
    else:
        values = match.group(1).split(",")
    for value in values:
        yield from expand_braces(pattern[: match.start()] + value + pattern[match.end() :])


def _list_samples(
    where: str, shards: Sequence[Path], image: str | None, label: str | None
) -> Iterator[Sample]:
    """Read the index of all shards."""
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:  # compressed archives have no random access
                members = [each for each in archive if each.isfile()]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SuiteError(
                f"{where}: {shard} is no tar file without compression: {first_line(error)}"
            ) from error
        for key, group in itertools.groupby(members, lambda each: _split(each.name)[0]):
            kinds = {
                kind: Member(shard, each.offset_data, each.size, kind)
                for each in group
                for kind in [_split(each.name)[1]]
            }
            chosen = [_choose(kinds, image, IMAGES), _choose(kinds, label, LABELS)]
            if chosen[0] is None or chosen[1] is None:
                what = "image" if chosen[0] is None else "label"
                raise SuiteError(
                    f"{where}: sample {key} of {shard} has no {what}; its members end in "
                    f"{', '.join(kinds)}; name one by {suggest_params(f'{what} = ...')}"
                )
            yield Sample(chosen[0], chosen[1])


def _split(name: str) -> tuple[str, str]:
    """Split the name of a member at the first dot behind its folder."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return folder + slash + stem, kind.lower()


def _choose(kinds: dict[str, Member], given: str | None, usual: Sequence[str]) -> Member | None:
    wanted = (given,) if given is not None else usual
    return next((kinds[kind] for kind in wanted if kind in kinds), None)


def _read_member(member: Member) -> bytes:
    with member.shard.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _read_image(where: str, member: Member) -> Any:
    content = io.BytesIO(_read_member(member))
    try:
        if member.kind.endswith("npy"):
            return np.load(content, allow_pickle=False)
        return Image.open(content, formats=image_files.FORMATS)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise SuiteError(
            f"{where}: the .{member.kind} at byte {member.offset} of {member.shard} is no readable "
            "image"
        ) from error


def _read_label(where: str, member: Member) -> int:
    text = _read_member(member)
    try:
        return int(text)
    except ValueError as error:
        raise SuiteError(
            f"{where}: expected a whole number as label at byte {member.offset} of {member.shard}, "
            f"got {text[:20]!r}"
        ) from error
