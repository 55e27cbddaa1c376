"""A classifier in one file: made from a probe, read, used, scored.

A probe's folder or a bundle and pictures enter; a bundle, predictions or
scores leave. The test part may be read only to be scored, or where a head is
fitted again for use. Only studies and tasks import from here, and predicting
imports no data source, plot or optimizer of its own.
"""
