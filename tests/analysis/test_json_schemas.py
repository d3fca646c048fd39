"""The JSON Schemas that bench prints, held against what a run writes."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from bench.analysis import columns, json_schemas
from bench.cli import cli
from bench.reporting.formats import exports
from bench.storage import schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with the extra test")
QUICKSTART = Path(__file__).parents[2] / "results" / "quickstart"


def printed(kind: str) -> Any:
    """The schema that `bench schema KIND` prints, found valid itself."""
    found = json.loads(CliRunner().invoke(cli, ["schema", kind], standalone_mode=False).stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def errors(kind: str, document: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(printed(kind)).iter_errors(document)
    return [error.message for error in found]


@pytest.fixture(scope="module")
def table() -> Any:
    """The published table as table.json holds it."""
    return json.loads(exports.to_json(pd.read_csv(QUICKSTART / "table.csv")))


def test_a_table_fits_its_schema_and_a_changed_one_does_not(table: Any) -> None:
    assert len(table["rows"]) == 56
    assert errors("table", table) == []
    assert errors("table", {**table, "schema": 2})
    assert errors("table", {**table, "rows": [{**table["rows"][0], "n": 1.5}]})
    without = {name: value for name, value in table["rows"][0].items() if name != "eps"}
    assert errors("table", {**table, "rows": [without]}) == ["'eps' is a required property"]


def test_a_table_in_json_has_the_numbers_of_the_csv(table: Any) -> None:
    frame = pd.read_csv(QUICKSTART / "table.csv")
    for row, line in zip(table["rows"], frame.to_dict("records"), strict=True):
        assert row["robust_correct"] == line["robust_correct"]
        assert row["robust_accuracy"] == line["robust_accuracy"]
        missing = isinstance(line["mean_l2"], float) and math.isnan(line["mean_l2"])
        assert row["mean_l2"] == (None if missing else line["mean_l2"])


def test_a_number_that_is_not_finite_is_null() -> None:
    frame = pd.DataFrame(
        {"eps": [0.1, float("inf")], "n": [3, float("nan")], "reason": ["=1", None]}
    )
    first, second = json.loads(exports.to_json(frame))["rows"]
    assert first == {"eps": 0.1, "n": 3, "reason": "=1"}
    assert second == {"eps": None, "n": None, "reason": ""}


def test_the_published_records_fit_their_schema() -> None:
    path = min((QUICKSTART / "records").glob("*.parquet"))
    rows = pd.read_parquet(path).head(3).to_json(orient="records")
    for row in json.loads(rows):
        assert errors("records", row) == []
        assert errors("records", {**row, "fooled": 1}) == ["1 is not of type 'boolean'"]


def test_every_published_manifest_fits_its_schema() -> None:
    paths = sorted(QUICKSTART.parent.glob("*/provenance.json"))
    validator = jsonschema.Draft202012Validator(printed("provenance"))
    documents = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    assert len(documents) > 5
    assert {path: next(validator.iter_errors(each), None) for path, each in documents.items()} == (
        dict.fromkeys(paths)
    )
    assert errors("provenance", {**documents[paths[0]], "sessions": []})


def test_a_schema_has_every_column_with_its_meaning() -> None:
    rows = json_schemas.build_table_schema()["properties"]["rows"]["items"]["properties"]
    assert {name: each["description"] for name, each in rows.items()} == {
        name: column.meaning for name, column in columns.BY_NAME.items()
    }
    assert list(json_schemas.build_records_schema()["properties"]) == list(schema.COLUMNS)
