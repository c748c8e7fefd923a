"""Recipes: whole experiments as functions, one file each."""
