"""Attack one image and show the result.

Read `attack` first, which computes; `page` renders the result for the terminal and as Markdown.
"""
