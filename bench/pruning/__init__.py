"""Channel pruning: moments, selection, reconstruction, surgery, and the walk through the layers."""
