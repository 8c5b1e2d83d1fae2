"""A run beside the numbers that the paper reports."""

from bora_sweep.process import import_matplotlib

import_matplotlib()  # before a module of ours does
