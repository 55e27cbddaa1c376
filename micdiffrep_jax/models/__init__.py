"""Network architectures; the only folder that imports flax."""
