"""Turn chunks of examples into verified records: craft, judge, verify, count, audit, certify.

Read `evaluator` first: it holds the data and the models that `make_evaluator` loads (by `loading`,
`suite_models` and `live_models`; `model_pool` has their accelerated models and paces, within what
`setup_budget` allows a single attack; `adaptation_check` calls what adapts an attack) and passes
chunks to `chunk`, which builds `chunk_records` from what `crafting` returns (an attack's images),
`judge` predicts and `verify` checks (threat model, success, claims of accelerated models);
`ensemble` runs attacks made of parts. `chunk_sizes` says how many examples a chunk holds,
`target_classes` what they are to become, `certified_examples` leaves those out that a certificate
covers, and `classifier_attack` repeats an attack on a detector's classifier alone. `metrics`
defines every rate, `audit/` looks for symptoms of failed attacks, `certification/` bounds what no
attack can reach. `containment`, `process_state` and `process_settings` isolate foreign code,
`consistency` compares a model with its earlier predictions, `queries` and `victim` count what an
attack asks, and `part_forecast` and `external_progress` say how far an attack is. Imports `storage`
and the packages below it.
"""
