"""The oldest versions that bench allows are those that `tox -e lowest` tests."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWEST = ROOT / ".ci" / "lowest.txt"
_BOUND = re.compile(r"([\w.-]+?)(?:\[\w+\])?(>=|==)([\d.]+)")


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version, without the zeros that say nothing.

    >>> release("3.10.0")
    (3, 10)
    """
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def pinned() -> dict[str, tuple[int, ...]]:
    lines = LOWEST.read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): release(version) for name, version in pins}


EXTRAS = PROJECT["optional-dependencies"]
TESTED = [
    line
    for lines in (
        PROJECT["dependencies"], *(EXTRAS[name] for name in ("torchattacks", "benchmark", "test"))
    )
    for line in lines
    if not line.startswith(PROJECT["name"])
]  # fmt: skip
"""What `pip install .[test]` brings, the extras within that extra included."""


def test_the_oldest_version_that_is_allowed_is_the_one_that_is_tested() -> None:
    pins, different = pinned(), []
    for line in TESTED:
        bound = _BOUND.fullmatch(line)
        assert bound is not None, f"{line}: expected NAME>=VERSION"
        if pins[bound[1].lower()] != release(bound[3]):
            different.append(line)
    assert different == []


def test_the_tests_bring_the_two_extras_that_bench_itself_does_without() -> None:
    names = [_BOUND.fullmatch(line)[1] for line in PROJECT["dependencies"]]  # type: ignore[index]
    assert not {"torchattacks", "pytest-benchmark"} & set(names)
    assert f"{PROJECT['name']}[torchattacks,benchmark]" in EXTRAS["test"]


def test_every_python_that_is_claimed_has_an_environment_of_tox() -> None:
    claimed = {
        match[1].replace(".", "")
        for text in PROJECT["classifiers"]
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text))
    }
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    listed = re.search(r"^env_list = (.*)$", tox, flags=re.MULTILINE)
    assert listed is not None
    assert claimed == {name[2:] for name in listed[1].split(", ") if re.fullmatch(r"py3\d+", name)}
    assert PROJECT["requires-python"] == f">=3.{min(int(each[1:]) for each in claimed)}"
