"""A run read back: its tables are computed on access, and its columns are declared once."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench.analysis import columns, explanations, results_from_csv, tables
from bench.analysis.results import read_results
from bench.analysis.snapshot import take_snapshot
from bench.core.errors import RecordError
from bench.storage import schema
from bench.storage.reader import read_records

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "results" / "quickstart"
HEADER = "| column | meaning |"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(QUICKSTART, tmp_path / "run")


def test_a_damaged_file_stops_only_the_tables_that_need_it(folder: Path) -> None:
    (folder / explanations.FILE).write_text("{")
    image = folder / "records" / "x-0123456789abcdef.images"
    image.write_bytes(b"{")
    found = read_results(folder)
    assert take_snapshot(found) == take_snapshot(read_results(QUICKSTART))
    with pytest.raises(RecordError, match=explanations.FILE):
        _ = found.explanations
    with pytest.raises(RecordError, match=re.escape(image.name)):
        _ = found.crosschecks


def test_a_table_is_computed_once() -> None:
    found = read_results(QUICKSTART)
    assert found.table is found.table
    assert found.comparisons is found.comparisons


def test_a_copy_with_another_table_leaves_the_results_as_they_were() -> None:
    found = read_results(QUICKSTART)
    empty = found.replace(table=found.table[:0])
    assert (len(empty.table), len(empty.plan)) == (0, len(found.plan))
    assert len(found.table) == len(found.plan)
    with pytest.raises(TypeError, match="no attribute 'tabel'"):
        found.replace(tabel=found.table)


def test_every_column_is_declared_once_with_its_meaning() -> None:
    for declared in (
        schema.RECORD_COLUMNS,
        (*columns.MAIN, *columns.ADDITIONAL, *columns.OPTIONAL),
    ):
        names = [column.name for column in declared]
        assert len(set(names)) == len(names)
        assert all(column.meaning.endswith(".") for column in declared)
    assert list(read_records(QUICKSTART).frame.columns) == list(schema.COLUMNS)
    table = read_results(QUICKSTART).table
    assert list(table.columns) == [*tables.COLUMNS, *tables.ADDITIONAL_COLUMNS]
    counts = [name for name in table.columns if table[name].dtype == pd.Int64Dtype()]
    assert counts == list(columns.select_names("count"))


def test_the_documentation_lists_every_column_with_its_declared_meaning() -> None:
    declared = [
        {column.name: column.meaning for column in schema.RECORD_COLUMNS},
        {name: column.meaning for name, column in columns.BY_NAME.items()},
    ]
    text = (ROOT / "bench" / "storage" / "README.md").read_text(encoding="utf-8")
    listed = [
        dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table.split("\n\n")[0], re.M))
        for table in text.split(HEADER)[1:]
    ]
    assert listed == declared


def test_the_declared_columns_load_neither_pandas_nor_torch() -> None:
    code = (
        "import sys, json, importlib.util as u\n"
        f"spec = u.spec_from_file_location('columns', {columns.__file__!r})\n"
        "module = u.module_from_spec(spec)\n"
        "sys.modules['columns'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(json.dumps([name for name in ('pandas', 'torch') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_count_that_only_some_cells_have_is_a_whole_number_when_it_is_read_again() -> None:
    table = pd.DataFrame({"model": ["a", "b"], "victim_query_budget": [4.0, float("nan")]})
    cast = results_from_csv.cast_columns(table.assign(median_victim_queries=[1.5, float("nan")]))
    assert cast["victim_query_budget"].astype(object).tolist() == [4, pd.NA]
    assert str(cast["victim_query_budget"].dtype) == "Int64"
    assert cast["median_victim_queries"].dtype == float
    assert "nonfinite_examples" not in cast
