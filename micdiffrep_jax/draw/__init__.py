"""Plots, pictures and pages; nothing is computed here."""
