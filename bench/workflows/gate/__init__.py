"""Compare a run with an accepted baseline, and fail a CI job if the run is worse.

Read `verdicts` first: it defines every outcome and exit code. `check` compares two snapshots (of
`bench.analysis.snapshot`): `pairs` finds the accuracies that both have, of models, cells, `unions`
and the `worst_class`, `accuracy` judges them, and `quality` judges validity, throughput and audit.
`markdown_summary`, `junit` and `github_annotations` render the result.
"""
