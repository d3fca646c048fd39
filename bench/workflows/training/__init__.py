"""Train the shipped models and attacks by recipes, and publish their weights.

Read `recipe` first. `trainer` trains models (with `adversarial` and `certified`), `attack_trainer`
trains attacks, both on the `TrainingState` of `resume`; `added_seeds` says which seeds may be added
to a published training. `model_card` publishes weights, card and history; `page` and `figures`
render them.
"""
