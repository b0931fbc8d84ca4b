"""What a session says of itself, and what it keeps to itself."""

from __future__ import annotations

import json

import pytest

from mien.config import load_config
from mien.stream.inference.about import published_config


@pytest.mark.parametrize("password", ["secret", "s@cret", "s:cret@x", "%40secret"])
def test_no_token_and_no_password_leaves_the_process(password: str) -> None:
    config = load_config(
        overrides={"video.source": f"rtsp://admin:{password}@10.0.0.9/stream", "dashboard.token": "token-of-mine"}
    )
    published = json.dumps(published_config(config))
    assert "rtsp://10.0.0.9/stream" in published
    assert "token-of-mine" not in published
    assert "admin" not in published
    assert "cret" not in published
