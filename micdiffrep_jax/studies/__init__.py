"""What is found out of encoders and data, and the report of it."""
