"""Check a model before it is attacked: is it deterministic, differentiable, preprocessed right?

Read `checks` first: it asks `logit_checks`, `gradient_checks` and `detector_checks` what is wrong
with a model's answers (`repetition` asks twice), and `preprocessing`, which recognises wrong
labels, channels, pixel ranges and normalisation. `prepare` makes a model of what users write,
`recall` returns what was found out earlier in the process. `findings` lists what they can report.
"""
