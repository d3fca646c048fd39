"""A suite whose attacks ask for scores, with budgets of queries, and one that does not."""

SUITE = """
schema = 1
name = "asked"
budgets = [20, 60, 150]
[data]
name = "digits"
limit = 40
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[attacks]]
name = "square"
label = "Square"
norm = "linf"
eps = [0.2]
params = { steps = 150 }
[[attacks]]
name = "square"
label = "Square to the next"
norm = "linf"
eps = [0.2]
goal = "targeted"
target = "next"
params = { steps = 150 }
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.2]
"""
