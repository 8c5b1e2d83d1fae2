"""Runs side by side: what differs between them, the best tau of each, and paired differences where they compare."""
