"""What is said of an exception: one safe line, whatever the exception does when it is asked."""

import pytest

from bench.core.errors import LONGEST, describe, first_line, location


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("asked once too often")


class Leaves(BaseException):
    def __str__(self) -> str:
        raise SystemExit(3)


class ForgedError(Exception):
    """Says a text whose class answers with something else, and denies where it was raised."""

    __traceback__ = property(lambda self: None)  # type: ignore[assignment]

    def __str__(self) -> str:
        class Text(str):
            __slots__ = ()

            def splitlines(self, keepends: bool = False) -> list[str]:
                raise RuntimeError("no lines")

        return Text("as it is")


NOT_TEXT = type("NotText", (Exception,), {"__str__": lambda self: 3})
COLOURED = type("a\x1b[31m", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "line", "described"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n\n  three"), "three", "ValueError: three"),
        (ValueError(), "ValueError", "ValueError"),
        (MuteError(), "MuteError", "MuteError"),
        (Leaves(), "Leaves", "Leaves"),
        (NOT_TEXT(), "NotText", "NotText"),
        (ForgedError(), "as it is", "ForgedError: as it is"),
        (COLOURED("\x1b[2J\ud800"), "\\x1b[2J\\ud800", "a\\x1b[31m: \\x1b[2J\\ud800"),
        (GeneratorExit(), "GeneratorExit", "GeneratorExit"),
        (
            FileNotFoundError(2, "No such file", "a.pt"),
            "No such file: a.pt",
            "FileNotFoundError: No such file: a.pt",
        ),
        (OSError(28, "No space left"), "No space left", "OSError: No space left"),
        (OSError("a truncated file"), "a truncated file", "OSError: a truncated file"),
    ],
)
def test_an_exception_is_described_in_one_safe_line(
    error: BaseException, line: str, described: str
) -> None:
    assert first_line(error) == line
    assert describe(error) == described


def test_a_message_of_megabytes_is_cut() -> None:
    text = describe(RuntimeError("x" * 10_000_000))
    assert len(text) < LONGEST + 50
    assert text.endswith("x...")


def test_what_an_exception_says_may_be_interrupted() -> None:
    class SlowError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_line(SlowError())


@pytest.mark.parametrize("kind", [ValueError, ForgedError])
def test_the_place_where_it_was_raised_is_known_of_any_exception(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        raise kind
    assert location(caught.value).startswith("test_errors.py:")
    assert location(ValueError()) == ""
