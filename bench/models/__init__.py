"""Provide models: one file per architecture, named as the model and ending in a MODEL record.

Read `lenet` first (`efficientnet_lite` is shared by several). `preprocessing` and `query_only` wrap
a model, `wrapping`, `outputs` and `maite_models` make one of what users have, `preflight/` checks
it before it is attacked, `fingerprint` identifies what it computes (`read_values` finds what its
code reads), `serialized/` loads exported programs, `adapters/` holds one file per other library,
`weights/` the shipped weights (`published_weights`). Imports `core`, `engine`, `attacks` and
`datasets`.
"""

from functools import partial

from bench.core import registry
from bench.models import serialized

registry.add_resolver(
    "models",
    serialized.is_program_file,
    lambda path: partial(serialized.load_program, path),
    content="a program's file",
    is_code=True,
)
