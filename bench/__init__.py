"""The harness: recipes, steps, pruning, training, measuring, and the tables that come of it."""
