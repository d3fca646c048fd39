"""Read `certify`: what a suite wants certified, by bounds of the model or by smoothing it."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le, Lt

from bench.core.contracts.parameters import Length
from bench.core.contracts.types import BallNorm, BoundMethod, CertificationMethod, Norm
from bench.core.validation import Validator
from bench.suite.checks import format_radius, read_radii
from bench.suite.schema import CertificateEntry, Eps, SmoothingSettings

MAX_DRAWS = 10**7
_Draws = Annotated[int, Ge(1), Le(MAX_DRAWS)]


@dataclasses.dataclass
class BoundTable:
    """An entry of `certify` for bound propagation, at every eps of the attacks in its norm."""

    method: BoundMethod
    norm: BallNorm = "linf"


@dataclasses.dataclass
class SmoothingTable:
    """An entry of `certify` for randomised smoothing.

    Defaults are those of Cohen et al. 2019, section 4, with a tenth of its draws.
    """

    method: CertificationMethod
    sigma: Annotated[Length, Gt(0)]
    n0: _Draws = 100
    n: _Draws = 10_000
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.001
    radii: list[float | str] = dataclasses.field(
        default_factory=lambda: [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    )

    def __post_init__(self) -> None:
        if not self.sigma < math.inf:
            raise ValueError(f"expected a finite sigma, got {self.sigma}")
        least = math.floor(math.log(self.alpha) / math.log(0.5)) + 1
        if self.n < least:
            raise ValueError(
                f"expected n of at least {least}: with fewer draws nothing is certified at alpha "
                f"{self.alpha:g}, even if all are of one class; got {self.n}"
            )


def read_certificates(
    check: Validator, raw: Any, attacked: Collection[tuple[Norm, float]] | None = None
) -> tuple[CertificateEntry, ...]:
    """Read the value of `certify`.

    Args:
        check: Collects the mistakes.
        raw: True or false, or a list of names of methods and tables.
        attacked: Norm and eps of the attacks, whose eps bounds are computed at; None if attacks
            have mistakes of their own.

    Returns:
        The entries without mistakes, each once; for true, every method of bound propagation.
    """
    if isinstance(raw, bool):
        raw = [*get_args(BoundMethod)] if raw else []
    if not isinstance(raw, list):
        check.say("certify", f"expected true, false or a list of methods, got {raw!r}")
        return ()
    entries = dict.fromkeys(_read_entries(check, raw))
    sigmas = [each.smoothing.sigma for each in entries if each.smoothing is not None]
    for sigma in dict.fromkeys(sigmas):
        if sigmas.count(sigma) > 1:
            check.say("certify", f"expected each sigma once, got {sigma:g} again")
    bounded = dict.fromkeys(entry.norm for entry in entries if entry.smoothing is None)
    for norm in bounded if attacked is not None else ():
        if not any(name == norm and eps > 0 for name, eps in attacked or ()):
            known = ", ".join(dict.fromkeys(name for name, _ in attacked or ()))
            expected = f"expected an attack in {norm} at an eps above 0, since bounds are computed"
            check.say("certify", f"{expected} at the eps of the attacks; got attacks in {known}")
    return tuple(entries)


def _read_entries(check: Validator, raw: list[Any]) -> Iterator[CertificateEntry]:
    for index, entry in enumerate(raw):
        key = f"certify[{index}]"
        if not isinstance(entry, dict):
            method = check.value(CertificationMethod, entry, key)
            if method == "smoothing":
                example = '{ method = "smoothing", sigma = 0.25 }'
                check.say(key, f"expected a table with sigma, such as {example}, got 'smoothing'")
            elif method is not None:
                yield CertificateEntry(method=method)
        elif entry.get("method") == "smoothing":
            yield from _read_smoothing(check, entry, key)
        else:
            table: BoundTable | None = check.fill(BoundTable, entry, key)
            if table is not None:
                yield CertificateEntry(method=table.method, norm=table.norm)


def _read_smoothing(
    check: Validator, raw: Mapping[str, Any], key: str
) -> Iterator[CertificateEntry]:
    table: SmoothingTable | None = check.fill(SmoothingTable, raw, key)
    if table is None:
        return
    radii = []
    for at, written, value in read_radii(check, table.radii, f"{key}.radii"):
        if not 0 <= value < math.inf:
            check.say(at, f"expected a radius of at least 0, got {written}")
        radii.append(Eps(value, format_radius(written)))
    yield CertificateEntry(
        method="smoothing",
        norm="l2",
        smoothing=SmoothingSettings(sigma=table.sigma, n0=table.n0, n=table.n, alpha=table.alpha),
        radii=tuple(sorted(radii, key=lambda radius: radius.value)),
    )
