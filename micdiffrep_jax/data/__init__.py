"""From files to batches: sources, preparation, splits, streams."""
