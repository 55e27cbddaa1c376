"""Plots, pictures and pages of what was found elsewhere.

Numbers, images and records of results enter; Figures, arrays, blocks of a page
and whole files leave. Any room but `run` and `scores` may import this one,
which imports these two at most and computes no result.
"""
