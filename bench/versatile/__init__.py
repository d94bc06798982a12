"""Versatile filters (Wang et al. 2018): layers whose filters give several secondary filters each."""
