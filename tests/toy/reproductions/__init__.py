"""A package of papers for tests that start processes of their own."""
