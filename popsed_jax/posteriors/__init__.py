"""Posteriors of single galaxies: exact (HMC) and amortised, under a learned population or any other prior."""
