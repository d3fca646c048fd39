"""The foundation: contracts of extensions, errors, registry, random numbers, files.

Read `contracts/` first: the records that a file of an attack, a model or a data set ends in. Then
`registry`, which finds such a file by its name, and `rng`, random numbers keyed by example. Imports
no other package of bench.
"""
