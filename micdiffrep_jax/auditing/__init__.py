"""Whether a dataset can be trusted."""
