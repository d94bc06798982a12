"""Unattended runs: the rows that a machine can run, each on its own; compared with a baseline, and over the nights."""
