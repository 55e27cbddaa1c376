"""What every run needs: log, files, guard, devices, checkpoints."""
