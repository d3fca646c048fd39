"""A faster model in place of the attacked one, used only while both agree.

Read `accelerate` first. `layers` fuses and replaces layers, `block_gradient` is the first
convolution's input gradient, `mkldnn_layout` computes in oneDNN's layout, `memory_layout` tells
where channels last pay, `calibration` times layouts and rows, `agreement` compares two models.
"""
