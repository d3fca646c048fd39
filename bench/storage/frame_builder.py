"""FrameBuilder that come file by file, laid into one frame at their places: no row is ever held
twice.

A million rows take some 95 MB so; joining and sorting them took five times as much.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

_CODE = np.int32


class FrameBuilder:
    """A frame of `n` rows to be, of columns whose types the first table tells."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._values: dict[str, npt.NDArray[Any]] = {}
        self._codes: dict[str, dict[str, int]] = {}
        """Column of texts -> text -> what stands for it."""

    def lay(self, table: pa.Table, places: list[tuple[int, int, int]]) -> None:
        """Put rows of the table, whose texts are dictionaries, at their places: (first row of the
        table, first row of the frame, how many) of each stretch."""
        for name in table.column_names:
            values = self._numbers(name, table[name])
            if name not in self._values:
                self._values[name] = np.zeros(self.n, values.dtype)
            into = self._values[name]
            if into.dtype != values.dtype:  # of files of two ages, one holds a wider type
                into = self._values[name] = into.astype(np.promote_types(into.dtype, values.dtype))
            for source, to, count in places:
                into[to : to + count] = values[source : source + count]

    def frame(self) -> pd.DataFrame:
        """All rows that were laid; a text column is a categorical."""
        columns: dict[str, Any] = {}
        for name in list(self._values):
            values = self._values.pop(name)
            known = self._codes.get(name)
            columns[name] = values if known is None else _categorical(values, known)
        return pd.DataFrame(columns, copy=False)

    def _numbers(self, name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        """The values of a column, a text replaced by its number."""
        if not pa.types.is_dictionary(column.type):
            return np.asarray(column.to_numpy())
        known = self._codes.setdefault(name, {})
        found = [np.zeros(0, _CODE)]
        for chunk in column.chunks:  # each has a dictionary of its own
            texts = chunk.dictionary.to_pylist()
            numbers = np.array([known.setdefault(text, len(known)) for text in texts], _CODE)
            found.append(numbers[chunk.indices.to_numpy(zero_copy_only=False)])
        return np.concatenate(found)


def _categorical(values: npt.NDArray[Any], known: dict[str, int]) -> "pd.Categorical[Any]":
    """Texts whose numbers are known, sorted: the same whichever file came first."""
    texts = sorted(known)
    ranks = np.zeros(len(texts), _CODE)
    for rank, text in enumerate(texts):
        ranks[known[text]] = rank
    return pd.Categorical.from_codes(ranks[values], pd.Index(texts, dtype=str))
