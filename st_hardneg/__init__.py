"""Mine, refresh and report hard negatives for Sentence Transformers."""

from __future__ import annotations

__version__ = "0.1.0"
