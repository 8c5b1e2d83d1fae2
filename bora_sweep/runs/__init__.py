"""A run's folder: where it is stored, what was asked for in it, who works on it, and its results."""
