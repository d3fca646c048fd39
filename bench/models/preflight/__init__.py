"""Check a model before it is attacked: is it deterministic, differentiable, preprocessed right?

Read `checks` first; `findings` lists what it can report, `preprocessing` recognises wrong labels,
channels, pixel ranges and normalisation.
"""
