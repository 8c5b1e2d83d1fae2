"""The commands of `bora-sweep`, a module each.

A module has TEXT, its help; SECTIONS of the settings that it takes, if any, and KEYS, ten that its help shows;
`add_options`, which adds its arguments to a parser; and `run`, which returns the exit code
(`bora_sweep.commands.common`). What it needs is imported within `run`: `--help` is quick.
"""
