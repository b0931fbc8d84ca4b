"""One call in a program's own process gives what the processes of `mien run --fast` publish."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import mien
from mien.install import SAMPLE


@pytest.mark.e2e
@pytest.mark.assets
def test_file_in_one_call_equals_run(fast_sample: list[dict[str, Any]]) -> None:
    analysis = mien.analyze(SAMPLE)
    assert len(analysis.predictions) == len(fast_sample)
    for ours, theirs in zip(analysis.predictions, fast_sample, strict=True):
        assert ours.t_end_ns == theirs["t_end_ns"]
        assert ours.transcript.committed == theirs["transcript"]["committed"]
        assert ours.model == theirs["model"]
        for name in ("sentiment", "sentiment_smooth", "confidence"):
            np.testing.assert_allclose(getattr(ours, name), theirs[name], atol=1e-6)
        for name in ("emotions", "gates", "age_ms"):
            made = msgspec.to_builtins(getattr(ours, name))
            assert made.keys() == theirs[name].keys()
            for key, value in theirs[name].items():
                assert made[key] == (value if value is None else pytest.approx(value, abs=1e-6))


# Not marked e2e: it starts no session, so it may run in parallel with other tests.
@pytest.mark.assets
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells in their order, as a script: what a kernel adds is not ours to test."""
    pytest.importorskip("pandas")
    notebook = json.loads((Path(__file__).parents[2] / "examples" / "recognizer.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 4
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    same = "from mien.stream.direct.analysis import Analysis\nassert list(table) == list(Analysis('', ()).to_pandas())"
    script = "\n".join([*cells, same, "print(len(table), prediction.top_emotion)"])
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr
    line, last = ran.stdout.splitlines()[-2:]
    assert "needs its rate" in line
    assert int(last.split()[0]) == 602
