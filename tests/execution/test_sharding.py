"""A run divided into shards that know nothing of each other, and merged again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.analysis import results
from bench.cli import cli
from bench.core.errors import RecordError, SuiteError
from bench.evaluation import chunk_sizes
from bench.evaluation.certification import store
from bench.execution import merge, runner, sharding
from bench.execution.options import RunOptions
from bench.storage import fingerprint, reader, records
from bench.storage.reader import read_file_pieces, read_records
from bench.suite import reader as suite_reader

SUITE = """
schema = 1
name = "d"
seed = 3
certify = ["ibp"]
[data]
name = "digits"
limit = 60
[[models]]
name = "softmax"
weights = "random"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.02, 0.05]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.05]
params = { steps = 3 }
"""
"""60 images in five chunks of examples, two attacks: ten work units, fifteen pieces."""


@pytest.fixture(scope="module", autouse=True)
def _short_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 12)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("suite") / "d.toml"
    file.write_text(SUITE, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody divided."""
    out = tmp_path_factory.mktemp("whole")
    run(path, out)
    return out


@pytest.fixture(scope="module")
def halves(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds both shards of the run, and nothing else."""
    out = tmp_path_factory.mktemp("halves")
    run(path, out, "1/2")
    run(path, out, "2/2")
    return out


def run(path: Path, out: Path, text: str = "1/1", limit: int | None = None) -> None:
    shard = sharding.parse_shard(text)
    options = RunOptions(device="cpu", batch_size=16, shard=shard, limit=limit)
    runner.run_suite(suite_reader.read_suite(str(path)), shard.folder(out), options)


def hash_records(folder: Path) -> str:
    return fingerprint.records_hash(read_records(folder).frame)


def bounds(folder: Path) -> list[list[object]]:
    frames = [frame for _, frame in store.read_certificates(folder)]
    return sorted(
        row for frame in frames for row in frame.drop(columns="margin").to_numpy().tolist()
    )


def counts(folder: Path) -> list[list[object]]:
    table = results.read_results(folder).table
    return table[["attack", "eps", "status", "n", "robust_correct", "fooled"]].to_numpy().tolist()


@pytest.mark.parametrize("of", [2, 5])
def test_merged_shards_are_the_run_that_nobody_divided(
    path: Path, whole: Path, halves: Path, tmp_path: Path, of: int
) -> None:
    if of > 2:
        for number in range(1, of + 1):
            run(path, tmp_path, f"{number}/{of}")
    merged = merge.merge_runs([tmp_path if of > 2 else halves], tmp_path)
    assert len(merged.folders) == of
    assert merged.missing == []
    assert hash_records(tmp_path) == hash_records(whole)
    assert counts(tmp_path) == counts(whole)
    assert bounds(tmp_path) == bounds(whole)


@pytest.mark.parametrize(("tasks", "cut", "of"), [(1, 7, 3), (4, 2, 5), (3, 1, 3), (1, 1, 1)])
def test_every_work_unit_is_done_by_one_shard_and_each_has_about_as_many(
    tasks: int, cut: int, of: int
) -> None:
    done = [
        [
            (t, s)
            for t in range(tasks)
            for s in range(cut)
            if sharding.Shard(i + 1, of).contains(t, s)
        ]
        for i in range(of)
    ]
    assert sorted(part for each in done for part in each) == [
        (t, s) for t in range(tasks) for s in range(cut)
    ]
    assert max(map(len, done)) - min(map(len, done)) <= min(tasks, cut)


def test_each_shard_has_its_folder_and_every_session_is_recorded(
    halves: Path, tmp_path: Path
) -> None:
    assert [folder.name for folder in sharding.list_shard_folders(halves)] == [
        "shard-1-of-2",
        "shard-2-of-2",
    ]
    merge.merge_runs([halves], tmp_path)
    document = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    started = [session["started"] for session in document["sessions"]]
    assert len(started) == 2
    assert started == sorted(started)
    assert document["probes"].keys() == {"softmax"}


def test_the_merged_table_adds_up_the_seconds_of_the_shards(halves: Path, tmp_path: Path) -> None:
    merge.merge_runs([halves], tmp_path)
    spent = sum(
        piece.seconds
        for folder in sharding.list_shard_folders(halves)
        for piece in reader.read_pieces(folder)
    )
    assert results.read_results(tmp_path).table["seconds"].sum() == pytest.approx(spent)


def test_what_is_missing_is_named_and_a_run_makes_it(
    path: Path, halves: Path, whole: Path, tmp_path: Path
) -> None:
    merged = merge.merge_runs([halves / "shard-1-of-2"], tmp_path)
    assert 0 < merged.pieces < merged.wanted == 15
    assert len(merged.missing) == 15 - merged.pieces
    assert "softmax · fgsm at eps 0.02, examples 12 to 23" in merged.missing
    assert set(results.read_results(tmp_path).table["status"]) == {"missing"}
    run(path, tmp_path)
    assert hash_records(tmp_path) == hash_records(whole)


def test_merging_again_what_is_merged_changes_no_file(halves: Path, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()}

    merge.merge_runs([halves], tmp_path)
    before = files()
    merge.merge_runs([halves, halves / "shard-1-of-2"], tmp_path)
    assert files() == before


def test_the_same_examples_run_twice_must_have_had_the_same_outcome(
    path: Path, whole: Path, halves: Path, tmp_path: Path
) -> None:
    merge.merge_runs([whole, halves], tmp_path / "both")
    assert hash_records(tmp_path / "both") == hash_records(whole)

    run(path, tmp_path / "other")
    (file, *_) = sorted((tmp_path / "other" / "records").glob("softmax-pgd-*-0000000-*.parquet"))
    stored = read_records(tmp_path / "other")
    (piece,) = read_file_pieces(file)
    frame = stored.frame[(stored.frame["cell"] == piece.cell) & (stored.frame["example"] < 12)]
    file.unlink()
    records.write_records(
        tmp_path / "other", "softmax-pgd", frame.assign(forwards=frame["forwards"] + 1), [piece], {}
    )
    with pytest.raises(RecordError, match=r"different outcomes of cell \w+, examples 0 to 11"):
        merge.merge_runs([whole, tmp_path / "other"], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_folders_of_other_data_another_seed_or_another_model_are_refused_by_name(
    path: Path, halves: Path, tmp_path: Path
) -> None:
    run(path, tmp_path / "fewer", limit=50)
    with pytest.raises(SuiteError, match="number of examples is 60 in the first and 50 in the"):
        merge.merge_runs([halves, tmp_path / "fewer"], tmp_path / "out")
    for old, new, sentence in (
        ("seed = 3", "seed = 4", "the seed is 3 in the first and 4"),
        ('"softmax"\nweights = "random"', '"lenet"\nweights = "digits"', "fingerprint of softmax"),
        ("steps = 3", "steps = 2", "the identity of softmax · pgd in linf"),
    ):
        other = tmp_path / "other.toml"
        other.write_text(SUITE.replace(old, new), encoding="utf-8")
        run(other, tmp_path / sentence[-9:], "1/9")
        with pytest.raises(SuiteError, match=sentence):
            merge.merge_runs([halves, tmp_path / sentence[-9:]], tmp_path / "out")


def test_every_folder_without_a_run_is_named_even_where_others_or_the_output_have_one(
    halves: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge.merge_runs([halves], out)
    for given in ([tmp_path / "typo"], [halves, tmp_path / "typo"]):
        with pytest.raises(SuiteError, match=r"^\S+typo: expected the folder of a run, or of its"):
            merge.merge_runs(given, out)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SuiteError, match="expected I/N with I from 1 to N"):
        sharding.parse_shard(text)


def test_the_command_line_runs_shards_and_joins_them(path: Path, tmp_path: Path) -> None:
    out = str(tmp_path)
    words = ["run", str(path), "--out", out, "--device", "cpu", "--limit", "24"]
    first = CliRunner().invoke(cli, [*words, "--shard", "1/2"], standalone_mode=False)
    assert first.return_value == 0
    assert f"when all are: bench merge {out} -o {out}" in first.stdout
    half = CliRunner().invoke(cli, ["merge", out, "-o", out], standalone_mode=False)
    assert half.return_value == 1
    assert "missing: softmax · pgd at eps 0.05, examples 0 to 11" in half.stderr
    assert (
        CliRunner().invoke(cli, [*words, "--shard", "2/2"], standalone_mode=False).return_value == 0
    )
    both = CliRunner().invoke(cli, ["merge", out, "-o", out], standalone_mode=False)
    assert both.return_value == 0
    assert "merged 3 folders: 6 of 6 pieces" in both.stdout
