"""Networks: recipes that build them, and the weights that go into them."""
