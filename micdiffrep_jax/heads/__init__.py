"""Small classifiers on frozen features, many fitted at once.

Feature matrices and labels enter; fitted heads, their predictions and head
files leave. The rooms of data, encoders, bundles and studies may import it; it
knows no encoder and no study.
"""
