"""Whether a run is worse than the one before: two snapshots on the same examples, and a verdict on
each thing that a check watches.

snapshot is what of a run a baseline keeps, as a small JSON file; verdicts holds two of them side by
side; summary (Markdown), junit and annotations tell what was found.
"""
