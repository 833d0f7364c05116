"""The command line `ringpost`. Start with `app`."""

from ringpost.client.cli.app import main

__all__ = ["main"]
