"""A finished classifier in one file, and its use on new pictures."""
