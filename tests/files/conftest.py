from __future__ import annotations

import pytest

from tests.files.states import make_state


@pytest.fixture
def state():
    """A dataset with everything in it that a save can hold, mined by hand."""
    return make_state()
