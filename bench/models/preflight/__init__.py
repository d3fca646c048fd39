"""Check a model before it is attacked: is it deterministic, differentiable, preprocessed right?

Read `checks` first: it asks `logit_checks` and `gradient_checks` what is wrong with a model's
answers, and `preprocessing`, which recognises wrong labels, channels, pixel ranges and
normalisation. `findings` lists what they can report.
"""
