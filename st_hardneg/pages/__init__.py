"""Pages and pictures of plain values: charts as SVG, one-file HTML pages, matplotlib figures."""

from __future__ import annotations
