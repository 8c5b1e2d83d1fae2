"""The fits of a run: each writes its rows, checkpoints and adapters into the run's folder."""
