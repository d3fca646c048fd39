"""One file per attack, each ending in an ATTACK record; the file name is the attack's name.

Read `pgd` first. `common` holds helpers of several attacks and `square_windows` those of `square`,
`objects` makes attacks of Python objects, `adapters/` holds one file per other library, `weights/`
what a trained attack needs (`trained_weights`). An attack ascends a loss and knows nothing of
files, timing, normalisation or devices: the engine runs its rule, `evaluation` verifies and judges
what it returns. Imports `core` and `engine`.
"""
