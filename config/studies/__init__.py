"""Studies for compare.py: a recipe and the variants to compare under it."""
