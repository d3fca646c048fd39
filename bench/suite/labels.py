"""Name what tables call a worst case and a union, labels that no suite may use otherwise.

A module without imports, since the command line reads these names before it loads torch.
"""

WORST_CASE = "worst case"
"""What tables call the worst case over the attacks, in place of an attack's label."""
ALL_THREATS = "all threat models"
"""Label of the union over every norm of a suite, each at its largest eps."""
