"""How alike tasks are, and whether they fall into groups: pure functions of arrays, in float64.

`whitening` makes directions of a gradient comparable, `cosines` takes the noise off, `clusters` asks for groups, and
`adapters` compares adapters themselves.
"""
