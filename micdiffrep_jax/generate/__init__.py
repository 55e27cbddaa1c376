"""Images drawn from a model, and what they are worth.

An encoder with a decoder and real images enter; pictures, figures and numbers
leave. Only the table of tasks imports it; it must not import pretraining or
studies.
"""
