"""bench measures how robust image classifiers really are.

suite -> plan -> cells -> runner -> records -> tables -> report / plots

  suite        TOML: which models meet which attacks on which data, read into entries; checking,
               how any file of a user's is checked key by key (printable, no text that a terminal
               would obey); published, figures of others; thresholds, how much worse a later run
               may be
  plan         suite -> cells, each one number to be defended, with identity, cost, skip reason;
               planned, the plan as it is shown, kept from one showing to the next
  loading      names -> data, devices, models with their weights (checkpoint) that are found fit
               to be attacked (preflight): what is wrong by name (fitness), what the clean accuracy
               gives away (suspicions); models that only answer (queries); programs/, models in
               files of torch.export and TorchScript, read where they are trusted
  runner       cells -> records: what is missing is run, what is finished is kept, in
  parts          shards of tasks, done one after another; shares, a run divided among several;
                 merge, their folders joined; spread, one divided among workers of Ray; decisions,
                 why it is done so, and logs, a run told to machines
  isolation    a run in a process of its own, watched from this one: isolated, what is done there;
               stages, what it says that it is about to do; pulse, its signs of life
  session      one shard of examples of one attack on one model becomes records (feed brings the
               images), by
  measure        what a record is made from: craft, what an attack returns; judge, what the model
                 itself says of it; and every promise checked
  engine           the loop of every attack rule, over (example, eps, restart) items in one batch;
                   graphs, a turn of it recorded for a GPU
  ensemble         attacks made of attacks, each on what still stands
  copies           what is attacked in a model's place, probed against it; exchange, its layers
                   exchanged for cheaper ones; agreement, whether two nets say the same
  geometry         norms, balls, boxes; hyperplane, the nearest point of a plane inside a box;
                   losses, what is ascended; logits, how they are read; rng, noise keyed by
                   example
  certify          lower bounds of a net's margins, which no attack can pass: IBP and CROWN over
                   the layers of a chain; certified, a suite's certificates, kept as data
  guard            a model's state, which comes back as it was; heap, memory kept; determinism, the
                 same bits again
  meter            passes counted, the floor timed
  records      per-example records on disk, whose columns are checked as they are read; laid, rows
               of many files in one frame; kept, the images of a run, read as they are looked at;
               adversarials, all of them, where that is asked for;
               digest, one hash for what the records say; files, written whole or not at all;
               lock, one run at a time in a folder; images, image files in and out
  metrics      the definitions of every rate
  tables       records -> one row per cell; crosscheck, ours against a reference; distances, how
               near the searches for the least distance came; comparisons, every two attacks and
               models on the same examples; brackets, certificates beside what attacks left
  audit/       signs that an attack has failed rather than the defence held
  explain/     why two cells disagree, by experiment
  beside       published figures joined with measured ones
  results      a run read back from its folder, first its document, provenance.json; compare, two
               of them paired by example; rerun, one repeated and held against itself
  publication  table.csv, plots/, report/ (formats): what people read; trackers/, who else is told
  publish/     runs for others to read: tables in every format, one web page
  gate/        a run held against a baseline, example by example: verdicts by thresholds
  leaderboard/ many models under one suite, ranked by the worst case; how a model enters
  single       one image under one attack; story, how it is told
  speed/       the same work through bench, a bare loop and other libraries, timed side by side
  cli/, api    what people type
  testing/     the pytest plugin: robust accuracy as an assertion of a user's own tests

attacks/, models/, datasets/ and training/ hold one file for each thing (training: `standard` trains
a model, `adversarial` crafts what it is trained against, `certified` bounds it, `attacker` trains
an attack that learns);
contracts says what such a file promises, registry finds it by its name, catalogue lists it
without running it; foreign holds what the adapters of other libraries share. From Python:
`bench.evaluate` and `bench.run`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Evaluation, evaluate, run
    from bench.contracts import Attack, Data, Dataset, Items, Model, Rule, Threat

__all__ = [
    "Attack", "Data", "Dataset", "Evaluation", "Items", "Model", "Rule", "Threat", "evaluate",
    "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: `bench --help` must not wait for torch."""
    if name in ("Evaluation", "evaluate", "run"):
        from bench import api

        return getattr(api, name)
    if name in __all__:
        from bench import contracts

        return getattr(contracts, name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
