"""The command line: every subcommand in a module of its own."""

from __future__ import annotations
