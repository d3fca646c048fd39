"""What is done with runs and models beyond running them; no workflow imports another.

`benchmark` runs a suite on Python objects, `gate/` fails a CI job, `leaderboard/` ranks models,
`explain/` finds why two cells disagree, `training/` and `speed/` make the shipped weights and the
speed tables, `gpu_check/` checks a GPU, `single_image/` attacks one image, `reproduce` repeats a
run. Imports everything but `cli`, `contract_tests` and `pytest_plugin`.
"""
