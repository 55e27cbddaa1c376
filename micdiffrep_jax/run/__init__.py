"""What every run needs: log, files, guard, devices, checkpoints, checks.

In come paths, settings, arrays and states. Out come log lines, files and
checkpoints that are whole or absent, and errors that name the flag to mend.
Every room may import this one; it imports no other.
"""
