"""Tables and comparisons computed from the records of a run.

Read `results` first: a run read back from its folder, with tables computed on access. `columns`
declares the columns of table.csv, `tables` makes them; `pairwise`, `crosscheck`, `min_norm`,
`certified`, `references` and `compare_runs` compare; `snapshot` reduces a run to one bit per
example for gates and leaderboards. Imports `evaluation` and what is below it.
"""
