"""The hierarchical model: adapters, likelihood, prior and objective."""
