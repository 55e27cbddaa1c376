"""Small classifiers on cached features, many trained at once."""
