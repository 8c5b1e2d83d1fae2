"""The statistics of a report: pooled seeds, intervals, tests, the choice of tau."""
