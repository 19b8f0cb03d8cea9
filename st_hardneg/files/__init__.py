"""Files that outlive a version of this package."""

from __future__ import annotations
