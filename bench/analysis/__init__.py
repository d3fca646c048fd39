"""Tables and comparisons computed from the records of a run.

Read `results` first: a run read back from its folder (by `results_from_csv` where its records are
gone), with tables computed on access. `columns` declares the columns of table.csv, `tables` makes
them, `json_schemas` describes them; `cell_names` spells cells. `classes`, `corruptions`, `queries`,
`rejections`, `smoothed`, `stages`, `unions` and `victim_queries` count what some runs have besides;
`pairwise`, `query_pairs`, `crosscheck`, `min_norm`, `certified`, `references`, `model_comparison`
and `compare_runs` compare, and `relabelled` gives several runs distinct labels. `snapshot` reduces
a run to one bit per example for gates and leaderboards (`snapshot_file`, `snapshot_matching`);
`explanations` stores what `bench explain` found. Imports `evaluation` and what is below it.
"""
