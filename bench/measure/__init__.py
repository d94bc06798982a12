"""Measuring networks: MACs, parameters, accuracy, and the intervals that belong to them."""
