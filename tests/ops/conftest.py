"""Both implementations of RoIAlign and its kin."""

import pytest


@pytest.fixture(params=["portable", "native"])
def implementation(request, monkeypatch):
    """Each in turn."""
    if request.param == "native":
        request.getfixturevalue("native")
    else:
        monkeypatch.setenv("KERAS_MRCNN_OPS", "portable")
    return request.param
