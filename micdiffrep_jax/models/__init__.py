"""Network architectures; the only room that imports flax.

Fields and arrays enter; outputs and named taps leave. methods and encoders
import it; it knows no config, data set or training.
"""
