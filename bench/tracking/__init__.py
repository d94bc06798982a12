"""Weights & Biases: a mirror of the store that can be rebuilt from it at any time; nothing is read back from it."""
