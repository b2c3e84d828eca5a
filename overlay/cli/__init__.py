"""The `overlay` command."""

from overlay.cli.app import main

__all__ = ["main"]
