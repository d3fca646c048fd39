"""The same work through bench, a bare loop and other libraries, timed in one process.

works.toml declares what is run: model, data, attack, its parameters, the eps. `works` reads it,
`task` loads it, each file of contestants/ says how one of them does it, `race` times them in turn,
`memory` asks each in a process of its own what it takes, `page` lays out what was found.
"""
