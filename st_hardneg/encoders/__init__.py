"""Texts to vectors."""

from __future__ import annotations
