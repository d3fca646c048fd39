"""bench measures how robust image classifiers are to adversarial examples.

`evaluate` measures one model under one attack; `benchmark` runs several models and attacks as a
suite does; `run` executes a suite as `bench run` does. All names that an attack, a model or a data
set of a user's own needs are exported here; no deeper path is public.

The way of a number, from top to bottom, through the packages:

    cli, contract_tests       the command line; tests for packages that offer extensions
    pytest_plugin, workflows  the pytest fixture; gate, leaderboard, explain, training, speed, ...
    api                       Python functions
    reporting                 tables, plots, reports, web pages
    analysis, execution       records to tables and comparisons; a plan to a finished run
    evaluation                a chunk of examples to records: craft, judge, verify
    storage                   records and manifest on disk
    suite                     a TOML file to a checked plan of cells
    models                    architectures, weights, preflight, fingerprints
    attacks, datasets         one file each
    engine                    the loop of all attack rules, norms, projections, losses
    core                      contracts of extensions, registry, random numbers, errors

A package imports those below it only; those of one line do not import each other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Evaluation, SuiteResults, evaluate, run
    from bench.core.contracts.attack import (
        Attack,
        EnsembleAttack,
        ExternalAttack,
        IterativeAttack,
        Part,
    )
    from bench.core.contracts.dataset import Data, Dataset
    from bench.core.contracts.learner import Learner, Losses, TrainingBatch
    from bench.core.contracts.model import Model
    from bench.core.contracts.parameters import Alpha, Count, Length, step_size
    from bench.core.contracts.rule import AttackBatch, Rule, RuleParams, StepInput, TargetChoice
    from bench.core.contracts.threat import TransformedBatch
    from bench.core.contracts.types import Access, Goal, Loss, Norm, Precision, Shape, Threat
    from bench.core.errors import ContractError, RecordError, RobustnessWarning, SuiteError
    from bench.core.rng import Noise
    from bench.workflows.benchmark import Benchmark, benchmark

__all__ = [
    "Access", "Alpha", "Attack", "AttackBatch", "Benchmark", "ContractError", "Count", "Data",
    "Dataset",
    "EnsembleAttack", "Evaluation", "ExternalAttack", "Goal", "IterativeAttack", "Learner",
    "Length", "Loss", "Losses", "Model", "Noise", "Norm", "Part", "Precision", "RecordError",
    "RobustnessWarning", "Rule", "RuleParams", "Shape", "StepInput", "SuiteError", "SuiteResults",
    "TargetChoice",
    "Threat", "TrainingBatch", "TransformedBatch", "benchmark", "evaluate", "run", "step_size",
]  # fmt: skip

_HOMES = {
    "bench.api": ("Evaluation", "SuiteResults", "evaluate", "run"),
    "bench.core.contracts.attack": (
        "Attack", "EnsembleAttack", "ExternalAttack", "IterativeAttack", "Part",
    ),
    "bench.core.contracts.dataset": ("Data", "Dataset"),
    "bench.core.contracts.learner": ("Learner", "Losses", "TrainingBatch"),
    "bench.core.contracts.model": ("Model",),
    "bench.core.contracts.parameters": ("Alpha", "Count", "Length", "step_size"),
    "bench.core.contracts.rule": ("AttackBatch", "Rule", "RuleParams", "StepInput", "TargetChoice"),
    "bench.core.contracts.threat": ("TransformedBatch",),
    "bench.core.contracts.types": (
        "Access", "Goal", "Loss", "Norm", "Precision", "Shape", "Threat",
    ),
    "bench.core.errors": ("ContractError", "RecordError", "RobustnessWarning", "SuiteError"),
    "bench.core.rng": ("Noise",),
    "bench.workflows.benchmark": ("Benchmark", "benchmark"),
}  # fmt: skip
"""Module -> public names that it defines."""


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that `bench --help` does not wait for torch.

    Raises:
        AttributeError: There is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    home = next(module for module, names in _HOMES.items() if name in names)
    return getattr(import_module(home), name)
