"""Pretraining: the loop, the state that it moves, optimizers, the monitor.

A method and a prepared data set enter; sealed checkpoints, metrics and
results.json leave. Images of the test part may not be touched. Only tasks and
studies, which start runs and read their records, import from here.
"""
