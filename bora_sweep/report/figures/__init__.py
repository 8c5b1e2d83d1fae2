"""What the figures show, and how matplotlib draws them."""

from bora_sweep.process import import_matplotlib

import_matplotlib()  # before a module of ours does
