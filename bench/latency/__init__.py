"""Latency of pruned networks beside their dense ones, as a user would deploy both: ``bench latency``."""
