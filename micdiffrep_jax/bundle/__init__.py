"""One file with encoder and head: made, read, used, scored."""
