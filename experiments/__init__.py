"""Configurations (YAML), and the runnable studies that print the figures in README and docs."""
