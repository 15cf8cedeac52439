"""Densities: normalizing flows."""
