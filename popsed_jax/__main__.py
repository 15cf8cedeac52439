"""`python -m popsed_jax`: the command."""

from popsed_jax.cli import main

main()
