"""The foundation: contracts of extensions, errors, registry, random numbers, files.

Read `contracts/` first: the records that a file of an attack, a model or a data set ends in. Then
`registry`, which finds such a file by its name (`extensions`: in installed packages), and `rng`,
random numbers keyed by example (`philox`: on any device). `validation` and `errors` make the
sentences of users' mistakes, and `sanitize` what may be shown of them; `foreign`, `user_imports`
and `streams` call users' code, `optional` other libraries; `source_hash` and `versions` identify
code. `files`, `lock` and `exclusive` write and share, `checkpoint`, `checkpoint_states` and
`web_page` read what users saved or downloaded. Imports no other package of bench.
"""
