"""Reading and writing the layouts of other projects."""

from __future__ import annotations
