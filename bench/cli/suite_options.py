"""Options that mean a suite: `--model`, `--data`, `--attack` and `--eps` in place of a file.

With a suite, `--model` puts models in place of the suite's.
"""

import contextlib
import functools
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bench.core.errors import SuiteError

if TYPE_CHECKING:
    from bench.suite.composer import SuiteRequest
    from bench.suite.schema import Suite

OPTIONS = (
    click.option(
        "--model", "models", multiple=True, metavar="NAME",
        help="In place of SUITE, or of its models: a name of `bench list models`, file.py:NAME, "
        "...; repeatable.",
    ),
    click.option(
        "--weights", multiple=True, metavar="NAME|FILE",
        help="Weights of each --model, in their order; \"\" for a model that needs none.",
    ),
    click.option("--trust", is_flag=True, help="Read a model's file although that can run code."),
    click.option(
        "--data", metavar="NAME", help="A name of `bench list datasets`, file.py:NAME or a file."
    ),
    click.option(
        "--attack", "attacks", multiple=True, metavar="NAME",
        help="A name of `bench list attacks`, library:NAME or file.py:NAME; repeatable.",
    ),
    click.option(
        "--eps", multiple=True, metavar="EPS", help="Radii such as 8/255 or 0.1,0.2; repeatable."
    ),
    click.option("--norm", help="linf, l2, l1, l0, or a threat without a norm [linf]."),
    click.option(
        "--param", "params", multiple=True, metavar="KEY=VALUE",
        help="Parameter of what has it; or model.KEY, data.KEY, attack.KEY, NAME.KEY.",
    ),
)  # fmt: skip


class SuiteOptions(NamedTuple):
    """The suite that the user chose: a file, or options in its place."""

    suite: str | None
    models: tuple[str, ...]
    weights: tuple[str, ...]
    trust: bool
    data: str | None
    attacks: tuple[str, ...]
    eps: tuple[str, ...]
    norm: str | None
    params: tuple[str, ...]

    def read(self, limit: int | None) -> "Suite":
        """Read the suite, or compose it from the options, with paths from the working folder.

        Args:
            limit: Most examples, which a composed suite states.

        Returns:
            The checked suite.

        Raises:
            SuiteError: The suite or the options have mistakes.
        """
        from bench.suite import reader

        request = self.request_suite(limit)
        if request is None:
            assert self.suite is not None
            return reader.read_suite(self.suite)
        return reader.parse_suite(_compose(request, Path()), "command line", Path())

    def run_name(self, limit: int | None, suite_name: str) -> str:
        """Name the folder of the run, where none is given.

        Args:
            limit: Most examples.
            suite_name: Name of the suite.

        Returns:
            The suite's name; with models in place of its own, a name that says so.
        """
        from bench.suite import composer

        request = self.request_suite(limit)
        if request is None or request.suite is None:
            return suite_name
        return composer.name_request(request, suite_name)

    @contextlib.contextmanager
    def store(self, whole: Path, folder: Path, limit: int | None, fresh: bool) -> Iterator["Suite"]:
        """Store the suite that the options mean in the run's folder, and read it from there.

        If the run is refused, nothing that the command wrote remains, and the sentences name files
        as they were typed.

        Args:
            whole: Folder of the whole run, which the suite is stored in.
            folder: Folder of the run, or of its shard.
            limit: Most examples.
            fresh: Whether the run that the folder holds is discarded.

        Yields:
            The checked suite; that of a file if one is named.

        Raises:
            SuiteError: The folder holds the run of other options or cannot be written, or the block
                refused the run.
        """
        from bench.execution import manifest_builder, refusal
        from bench.suite import catalog, composer, reader

        with refusal.undo_refused_run(folder, whole / composer.FILE):
            request = self.request_suite(limit)
            if request is None:
                assert self.suite is not None
                checked, path = reader.read_suite(self.suite), catalog.find_suite(self.suite)
                composer.check_folder(whole, checked.text, fresh, path)
                yield checked
                return
            text = _compose(request, whole)
            earlier = manifest_builder.read_earlier_manifest(whole).get("suite", {}).get("text", "")
            stored = composer.write_suite(whole, text, earlier, fresh)
            try:
                yield reader.read_suite(str(stored))
            except SuiteError as error:
                sentences = (composer.restore_paths(p, request, whole) for p in error.problems)
                raise SuiteError(*sentences) from error

    def request_suite(self, limit: int | None) -> "SuiteRequest | None":
        """Collect what the options ask for.

        Args:
            limit: Most examples.

        Returns:
            The request; None if a suite is named instead.

        Raises:
            SuiteError: There are both, neither, or too few of the options.
        """
        given = {f"--{name}": getattr(self, key) for name, key in _NAMES.items()}
        used = [name for name, value in given.items() if value]
        if self.suite is not None:
            return self._replace_models(self.suite, used) if used else None
        if not used:
            raise SuiteError(
                "expected SUITE, or --model, --data, --attack and --eps in its place, got neither; "
                "`bench list suites` names those that are shipped, `bench init` writes one"
            )
        missing = [each for each in ("--model", "--data", "--attack", "--eps") if not given[each]]
        if missing:
            raise SuiteError(
                f"{used[0]}: expected {', '.join(missing)} as well, since they stand for a suite"
            )
        return self._collect(limit)

    def _replace_models(self, suite: str, used: Sequence[str]) -> "SuiteRequest":
        """Collect the models that take the place of a suite's."""
        from bench.suite import catalog, composer, reader

        other = [name for name in used if name not in _OF_MODELS]
        if other:
            raise SuiteError(
                f"{suite} and {other[0]}: expected a suite or options in its place, got both; "
                f"leave one of them out (with a suite, only {', '.join(_OF_MODELS)} may be given: "
                "its data and attacks on other models)"
            )
        if not self.models:
            raise SuiteError(f"{suite} and {used[0]}: expected --model as well, got none")
        return composer.SuiteRequest(
            models=self.models,
            weights=self._pair_weights(reader.read_suite(suite).data.name),
            params=tuple(composer.Param(*pair) for pair in parse_params(self.params).items()),
            trust=self.trust,
            suite=catalog.find_suite(suite),
        )

    def _collect(self, limit: int | None) -> "SuiteRequest":
        from bench.suite import composer

        assert self.data is not None
        return composer.SuiteRequest(
            models=self.models,
            weights=self._pair_weights(self.data),
            data=self.data,
            attacks=self.attacks,
            norm=self.norm or "linf",
            eps=tuple(
                text.strip() for each in self.eps for text in each.split(",") if text.strip()
            ),
            params=tuple(composer.Param(*pair) for pair in parse_params(self.params).items()),
            limit=limit,
            trust=self.trust,
        )

    def _pair_weights(self, data: str) -> "tuple[str | None, ...]":
        """Pair weights with models; a shipped model without any gets those of the data set."""
        from bench.evaluation import loading

        n_weights, n_models = len(self.weights), len(self.models)
        if n_weights not in (0, n_models):
            raise SuiteError(
                f"--weights: expected one for each of the {n_models} --model or none at all, got "
                f'{n_weights}; write --weights "" for a model that needs none'
            )
        return tuple(
            given or _choose_weights(model, data, loading.choose_weights)
            for model, given in zip(self.models, self.weights or ("",) * n_models, strict=True)
        )


_NAMES = {
    "model": "models", "weights": "weights", "trust": "trust", "data": "data",
    "attack": "attacks", "eps": "eps", "norm": "norm", "param": "params",
}  # fmt: skip
"""Option -> field of SuiteOptions."""
_OF_MODELS = ("--model", "--weights", "--trust", "--param")
"""What may be given with a suite."""


def _compose(request: "SuiteRequest", base: Path) -> str:
    """Compose the text of the suite that the options mean, to be stored in `base`."""
    from bench.suite import composer, own_models

    if request.suite is not None:
        return own_models.replace_models(request, base)
    return composer.compose_suite(request, base)


def _choose_weights(model: str, data: str, choose: Callable[[str, str], str | None]) -> str | None:
    """Choose weights; None also for an unknown model, which the suite's check names."""
    try:
        return choose(model, data)
    except SuiteError:
        return None


def suite_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add SUITE and the options in its place to a verb.

    Args:
        verb: Takes the parsed options as the keyword argument `chosen`.

    Returns:
        The verb with argument and options.
    """

    @functools.wraps(verb)
    def gathered(**given: Any) -> Any:
        chosen = SuiteOptions(**{name: given.pop(name) for name in SuiteOptions._fields})
        return verb(chosen=chosen, **given)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return click.argument("suite", required=False)(gathered)


def parse_params(given: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE pairs, whose values are read as TOML; what is no TOML value is text.

    Args:
        given: The pairs as typed.

    Returns:
        Key -> value.

    Raises:
        SuiteError: A pair has no equals sign, or a key is given twice.
    """
    params: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SuiteError(f"--param {pair}: expected KEY=VALUE")
        if key in params:
            raise SuiteError(f"--param {key}: expected it once, got it twice")
        try:
            params[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            params[key] = value
    return params
