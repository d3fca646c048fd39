"""Compare a run with an accepted baseline, and fail a CI job if the run is worse.

Read `verdicts` first: it defines every outcome and exit code. `check` compares two snapshots (of
`bench.analysis.snapshot`): `pairs` finds the accuracies that both have (`accuracy_pair`), of
models, cells, their `joint_accuracy`, `unions` and the `worst_class`; `accuracy` judges them, with
`power` and `proof` of what a check can show, and `quality` judges validity, throughput and audit.
`grouping` joins verdicts of one cause. `markdown_summary`, `junit`, `sarif` and
`github_annotations` render the result, `problem` why there is none.
"""
