"""What a running training reads."""

from __future__ import annotations
