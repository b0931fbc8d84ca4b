from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPEN_A_MODEL = """
import mien
import importlib.resources, onnxruntime
path = importlib.resources.files("faster_whisper") / "assets" / "silero_vad_v6.onnx"
onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
"""


def test_onnx_runtime_keeps_no_identity_of_this_machine(tmp_path: Path) -> None:
    """Before reporting, it would create a device id in the user's cache."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("faster_whisper")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    subprocess.run([sys.executable, "-c", OPEN_A_MODEL], env=environment, check=True, capture_output=True)
    assert not list(tmp_path.rglob("deviceid"))


OPEN_OPENVINO = """
import os, sys, time
import mien.engines.openvino as engine
engine._openvino().Core()
import openvino.tools.ovc
assert sys.modules["openvino_telemetry"] is None
time.sleep(0.5)
print(open(f"/proc/self/task/{os.getpid()}/children").read() if os.path.isdir("/proc/self") else "")
"""


def test_openvino_starts_no_process_that_reports(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    environment = os.environ | {"HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", OPEN_OPENVINO], env=environment, check=True, capture_output=True, text=True
    )
    assert not ran.stdout.strip()
    assert not list(tmp_path.rglob("openvino_telemetry"))
