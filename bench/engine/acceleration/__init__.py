"""A faster model in the place of the attacked one, used only while both agree.

Read `accelerate` first. `layers` fuses and replaces layers, `agreement` compares two models.
"""
