"""The records that extensions are made of.

`attack` (Attack and its three kinds), `rule` (Rule, AttackBatch, StepInput), `parameters` (Alpha,
Count, Length), `learner` (Learner), `model` (Model), `dataset` (Dataset, Data) and the `types` that
they share. Users import these names from `bench` itself.
"""
