"""`python -m ringpost.client.cli`."""

from ringpost.client.cli import main

main(prog_name="ringpost")
