"""Frozen encoders and their features."""
