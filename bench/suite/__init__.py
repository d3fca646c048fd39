"""Read a suite file into a checked plan of cells, each one number to be measured.

Read `schema` first, the keys of a suite; then `reader` (TOML to a Suite) with `attack_tables`, and
`plan` (a Suite to tasks and cells) with `identity`, `cost` (passes of an attack), `caveats` (what a
reader must know of a cell, why it is skipped) and `targets`. `references` and `thresholds` read two
more kinds of table, `checks` holds what sections share, `labels` the reserved
names of rows, `catalog` lists what is built in. Imports
`models` and the packages below it.
"""
