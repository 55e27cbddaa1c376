"""From pictures to batches: sources, preparation, data sets, streams.

Folders, volumes and TFDS data sets enter; prepared folders, uint8 images with
their manifest, and batches leave. Only prepare.py writes a data set, and who
opens one changes nothing but its cache of images. Every room above may import
this one, which imports `run` alone and no jax.
"""
