"""Refreshing while a trainer trains."""

from __future__ import annotations
