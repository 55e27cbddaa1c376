"""Metrics, bootstrap intervals and calibration."""
