"""What is shared with others."""

from __future__ import annotations
