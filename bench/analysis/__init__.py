"""From the records of a run to tables.

Read `results` first: a run read back from its folder. `tables` makes one row per cell; `pairwise`,
`crosscheck`, `min_norm` and `certified` compare; `snapshot` reduces a run to one bit per example
for gates and leaderboards. Imports `evaluation` and what is below it.
"""
