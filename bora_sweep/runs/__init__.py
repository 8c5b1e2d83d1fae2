"""A run's folder: its storage, its configuration, the lock of the process that works on it, and its results."""
