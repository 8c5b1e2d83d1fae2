"""A run beside the numbers that the paper reports."""
