"""Images drawn from a model, and what they are worth."""
