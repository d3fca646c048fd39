"""One chunk of examples of one attack on one model, measured.

Read `evaluator` first: it loads models and data and turns chunks into records, through `crafting`
(what an attack returns), `judge` (what the model predicts) and `verify` (is it within the threat
model, is it a success). `metrics` defines every rate, `audit/` looks for attacks that failed,
`certification/` bounds what no attack can reach. Imports `storage` and what is below it.
"""
