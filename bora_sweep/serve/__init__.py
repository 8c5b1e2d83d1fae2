"""From a finished trial to adapters, full models and text."""
