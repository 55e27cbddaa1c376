"""What other Python programs use: numpy in, numpy out.

A path and arrays of pictures enter; features, probabilities and scikit-learn
estimators leave. No flag of a command line is read here, and no room imports
this one: micdiffrep_jax/__init__.py names what is public.
"""
