"""Pretraining: the loop, its optimizers, its monitor."""
