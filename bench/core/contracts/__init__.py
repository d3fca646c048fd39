"""The records that extensions are made of.

`attack` (Attack and its three kinds), `rule` (Rule, AttackBatch, StepInput), `parameters` (Alpha,
Count, Length), `learner` (Learner), `input_transforms` and `adaptation` (how an attack is changed
for transfer or for a defence), `model` (Model), `detector` (Detector), `dataset` (Dataset, Data),
`threat` (families of images) and the `types` that they share. Users import these names from `bench`
itself.
"""
