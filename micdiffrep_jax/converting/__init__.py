"""Weights that others trained, from their files to checkpoints of ours."""
