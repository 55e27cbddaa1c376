"""What every run needs: log, files, guard, devices, checkpoints, checks.

Paths, settings, arrays and states enter; log lines, whole files, checkpoints
and errors that name the flag to mend leave. Every room may import this one; it
imports no other.
"""
