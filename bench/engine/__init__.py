"""The numeric core: everything that turns tensors into tensors.

Read `stream` first: the loop that runs every attack rule over (example, eps, restart) rows in one
batch; items wait in `item_queue`, rows under attack are `active_rows` (on a GPU `resident_rows`),
`step_maker` makes their steps, `step_evaluator` computes what a rule sees, and `stream_result` is
what comes out. `functional/` holds norms, projections, losses and gradients; `acceleration/` makes
a faster model that agrees with the attacked one; `cuda_graphs`, `timing`, `determinism` and
`model_state` serve the loop. Imports `core` alone and knows no attack by name.
"""
