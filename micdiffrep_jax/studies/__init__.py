"""What is found out of encoders and data, and the report of it.

The config of a study, encoders, data sets and finished runs enter; results,
tables, pictures and pages leave. It may import every room below it; main and
sweeps reach it through `tasks` alone.
"""
