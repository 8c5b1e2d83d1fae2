"""The hierarchical model: adapters, likelihood, prior and the MAP objective."""
