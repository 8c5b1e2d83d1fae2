"""What the figures show, and how matplotlib draws them."""
