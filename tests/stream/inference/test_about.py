"""A session's description of itself, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mien.config import load_config
from mien.errors import ConfigError
from mien.stream.inference.about import person_tag, published_config, tag_of, with_person


@pytest.mark.parametrize("password", ["secret", "s@cret", "s:cret@x", "%40secret"])
def test_secrets_are_not_published(password: str) -> None:
    config = load_config(
        overrides={"video.source": f"rtsp://admin:{password}@10.0.0.9/stream", "dashboard.token": "token-of-mine"}
    )
    published = json.dumps(published_config(config))
    assert "rtsp://10.0.0.9/stream" in published
    assert "token-of-mine" not in published
    assert "admin" not in published
    assert "cret" not in published


def test_person_is_named_with_the_checkpoint() -> None:
    model = with_person("cmmsf-1a2b3c4d/onnx-fp32", "ada-00ff00ff")
    assert model == "cmmsf-1a2b3c4d+ada-00ff00ff/onnx-fp32"
    assert tag_of(model) == "ada-00ff00ff"
    assert with_person("cmmsf-1a2b3c4d/onnx-fp32", "") == "cmmsf-1a2b3c4d/onnx-fp32"
    assert tag_of("cmmsf-1a2b3c4d/onnx-fp32") == ""


def test_an_unknown_person_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path)
    config = load_config(overrides={"person.name": "ada"})
    with pytest.raises(ConfigError, match="mien calibrate ada"):
        person_tag(config)
    elsewhere = load_config(overrides={"person.name": "ada", "bus.workers.video": "tcp://10.0.0.2:5561"})
    # What is replayed is compared already; where capture runs elsewhere, so is the baseline.
    assert person_tag(config, replayed=True) == "ada"
    assert person_tag(elsewhere) == "ada"
    assert person_tag(load_config(overrides={"person.adapt": True})) == "adapt"
    assert person_tag(load_config()) == ""
