"""The summary's arithmetic."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import Word
from mien.stream.monitoring.summary import Histogram, Summary
from tests.stream.bus.test_wire import PREDICTION, STATUS


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_percentiles_are_right_to_one_percent(values: list[float], percent: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = float(np.percentile(values, percent, method="inverted_cdf"))
    assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.011)


def test_an_empty_histogram_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile_ms(50))


def test_rates_latency_and_word_lag() -> None:
    summary = Summary(warm_up=0)
    t0 = 1000 * NS_PER_S
    word = Word("hello", t0 - 2 * NS_PER_S, t0 - NS_PER_S)
    for index in range(31):
        prediction = msgspec.structs.replace(
            PREDICTION,
            seq=index,
            t_end_ns=t0 + index * NS_PER_S // 30,
            latency={"capture": 2.0, "infer": 3.0, "total": 10.0},
            words=(word,),
        )
        # Received 13 ms after the frame was read, 15 after it was captured: 3 ms of delivery.
        summary.add(prediction, prediction.t_end_ns + 15 * NS_PER_MS)
    figures = summary.to_dict()
    assert figures["predictions_per_s"] == pytest.approx(30.0, abs=0.01)
    assert figures["latency_ms"]["total"]["p50"] == pytest.approx(10.0, rel=0.01)
    assert figures["latency_ms"]["deliver"]["p50"] == pytest.approx(3.0, rel=0.01)
    assert figures["committed_word_lag_ms"]["n"] == 1
    assert figures["committed_word_lag_ms"]["p50"] == pytest.approx(1015, rel=0.01)


def test_drops_of_all_runs_of_a_process_are_added_up() -> None:
    summary = Summary()
    for run, late in ((1, 2), (1, 5), (2, 1)):
        summary.add_status(msgspec.structs.replace(STATUS, run=run, drops={"late": late, "early": 0}))
    assert summary.drops() == {"video.late": 6}
