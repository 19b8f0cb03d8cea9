"""Texts: identity, numbering, pairs, and what users hand in."""

from __future__ import annotations
