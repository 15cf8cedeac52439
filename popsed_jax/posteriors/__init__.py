"""Posteriors of single galaxies under the learned population or any other prior."""
