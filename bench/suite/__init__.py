"""From a suite file to a checked plan of cells, each one number to be measured.

Read `schema` first, the keys of a suite; then `reader` (TOML to a Suite) and `plan` (a Suite to
tasks and cells, with identity, cost and skip reason). `catalog` lists what is built in,
`references` and `thresholds` read two kinds of table. Imports `models` and what is below it.
"""
