"""Nearest neighbours of queries in a corpus of embeddings."""

from __future__ import annotations

from st_hardneg.search.exact import ExactSearcher
from st_hardneg.search.faiss_index import FaissSearcher
from st_hardneg.search.protocol import Searcher, checked_search

__all__ = ["ExactSearcher", "FaissSearcher", "Searcher", "checked_search"]
