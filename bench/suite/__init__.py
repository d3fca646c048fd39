"""Read a suite file into a checked plan of cells, each one number to be measured.

Read `schema` first, the keys of a suite; then `reader` (TOML to a Suite) with `attack_tables`
(`attack_inputs`, `adaptations`, `query_budgets`, `victim_queries`), `certificates`,
`skipped_certificates`, `unions`, `references` and `thresholds`, each of which reads some keys; then
`plan` (a Suite to tasks and cells) with `identity`, `cost` (passes of an attack), `caveats` (what a
reader must know of a cell, why it is skipped) and `targets`. `composer` and `own_models` write a
suite from options, `call_arguments` checks those of Python functions. `checks` holds what sections
share, `labels` the reserved names of rows, `catalog` lists what is built in, `model_figures`
collects published figures. Imports `models` and the packages below it.
"""
