"""Turn chunks of examples into verified records: craft, judge, verify, count, audit, certify.

Read `evaluator` first: it holds data (`loading`) and models (`suite_models`, `live_models`;
`model_pool` has their accelerated models and paces, within what `setup_budget` allows a single
attack) and passes chunks to `chunk`, which builds records from what `crafting` returns (an attack's
images), `judge` predicts and `verify` checks (threat model, success, claims of
accelerated models); `ensemble` runs attacks made of parts. `metrics` defines every rate, `audit/`
looks for symptoms of failed attacks, `certification/` bounds what no attack can reach.
`containment` and `process_state` isolate foreign code, `consistency` compares a model with its
earlier predictions. Imports `storage` and the packages below it.
"""
