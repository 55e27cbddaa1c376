"""Frozen encoders and their features.

Pretraining runs, bundles and files of weights that others trained enter; an
Encoder leaves, and the features of images, extracted once and cached. The rooms
above import this one, which imports of heads only what lays features side by
side. Studies read features by cache.py alone: no image passes an encoder twice.
"""
