"""Draw figures from tables, with seaborn and matplotlib.

Read `figures` first: `draw_figures` draws all figures of a run, and `saving` writes them. Each
other module draws one kind; `style` defines the common look. Imports `analysis`,
`reporting.formats` and below.
"""
