"""Channels chosen for each image (FBS): the gate, the conversion of a network, and the execution that skips."""
