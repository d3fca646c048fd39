"""The records that extensions are made of.

`attack` (Attack, Rule, AttackBatch, StepInput), `model` (Model), `dataset` (Dataset, Data) and the
`types` that they share. Users import these names from `bench` itself.
"""
