"""Metrics, intervals over groups, calibration; numpy and scikit-learn."""
