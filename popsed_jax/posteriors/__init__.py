"""Posteriors of single galaxies."""
