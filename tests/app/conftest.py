"""What the tests of ``jepa similar`` and ``jepa view`` look at."""

from __future__ import annotations

import pytest
from made_features import Made, make_features


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_features(tmp_path_factory.mktemp("made"))
