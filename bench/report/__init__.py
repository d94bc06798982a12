"""Tables, figures and pages from row files and the registry of published values; knows nothing of models."""
