"""What predictions are worth: metrics, intervals and calibration.

Labels, probabilities and groups of numpy arrays enter; numbers leave, or what
JSON can hold of them. Any room but `run` may import this one, which imports
`run` at most and knows no data set, model or page.
"""
