"""The numeric core: everything that turns tensors into tensors.

Read `stream` first: the loop that runs every attack rule over (example, eps, restart) rows in one
batch; items wait in `item_queue`, rows under attack are `active_rows` (on a GPU `resident_rows`),
`step_maker` makes their steps, `step_evaluator` computes what a rule sees, and `stream_result` is
what comes out. `functional/` holds norms, projections, losses and gradients, `threats/` families of
images without a norm; `acceleration/` makes a faster model that agrees with the attacked one.
`adaptation`, `rejection` (of detectors), `source_ensemble`, `padding` and `opaque_model` are what
is attacked in place of a plain model, which `model_state` prepares and `tracing` reads.
`class_ranking` ranks the classes to aim at; `query_log` and `victim_queries` follow queries.
`device`, `float32_precision`, `default_dtype`, `determinism`, `cuda_graphs`, `timing`, `malloc`,
`tensor_tree` and `process_cache` serve the loop; `progress`, `stream_progress`, `survival` and
`heartbeat` report how far it is. Imports `core` alone and knows no attack by name.
"""
