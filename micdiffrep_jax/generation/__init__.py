"""Generated images, and what they are worth."""
