"""The numbers of a report: seeds pooled, intervals, tests, the choice of tau."""
