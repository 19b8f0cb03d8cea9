"""Temporary."""

from __future__ import annotations


def checked_synthetic(maker, positives):
    """Write."""
    return [list(texts) for texts in maker(positives)]
