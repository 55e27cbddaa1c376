"""The pretraining loop: state, step, checks, monitor."""
