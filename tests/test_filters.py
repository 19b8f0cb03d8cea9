from __future__ import annotations


def test_nothing():
    import st_hardneg.filters  # noqa
