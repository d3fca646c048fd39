"""A faster model in place of the attacked one, used only while both agree.

Read `accelerate` first. `layers` fuses and replaces layers, `calibration` times layouts and rows,
`agreement` compares two models.
"""
