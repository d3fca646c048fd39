"""Figures, drawn with seaborn from tables alone; `drawing` draws all of a run's and saves them."""
