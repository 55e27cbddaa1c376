"""Frozen encoders and their features.

A pretraining run, a bundle or a file of weights that others trained comes in;
an Encoder goes out, and the features of images, extracted once and cached.
Heads stay outside, but for what is needed to lay features side by side; studies
read features by cache.py alone, so that no image passes an encoder twice.
"""
