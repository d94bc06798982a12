"""One script per paper."""
