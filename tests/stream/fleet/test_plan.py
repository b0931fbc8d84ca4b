"""The fleet's plan: patterns, tables, places, and errors of single sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.errors import ConfigError
from mien.stream.fleet.plan import Plan, read_plan

ROOT = Path(__file__).parents[3]


def plan_of(folder: Path, text: str) -> Plan:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path)


def test_the_demo_is_four_clips() -> None:
    plan = read_plan(ROOT / "configs" / "fleet" / "demo.toml")
    assert list(plan.sessions) == ["sample-1", "sample-2", "sample-3", "sample-4"]
    assert all(each.config.video.source.endswith("sample.mp4") for each in plan.sessions.values())
    assert plan.problems == ()


def test_a_pattern_makes_thousands(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "[[sessions]]\npattern = 'cam-{n:04}'\ncount = 2000\nsource = 'rtsp://10.0.0.{n}/main'\n"
        "place = {rack = 'r{n}'}\n",
    )
    assert len(plan.sessions) == 2000
    assert plan.sessions["cam-0007"].config.video.source == "rtsp://10.0.0.7/main"
    assert plan.sessions["cam-2000"].place == {"rack": "r2000"}


def test_rows_of_a_table_have_names_sources_and_places(tmp_path: Path) -> None:
    (tmp_path / "cameras.csv").write_text(
        "name,source,place.site,street\nlobby,rtsp://10.1.0.1/a,north,Main\ngate,synthetic:5,,Side\n", encoding="utf-8"
    )
    plan = plan_of(tmp_path, '[[sessions]]\ncsv = "cameras.csv"\nplace = {street = "{street}"}\n')
    assert plan.sessions["lobby"].place == {"street": "Main", "site": "north"}
    assert plan.sessions["gate"].place == {"street": "Side"}
    assert plan.sessions["gate"].config.audio.source == "none"


def test_session_settings_override_defaults(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "[defaults]\ntext.asr = 'none'\ninference.max_hz = 10\n[[sessions]]\nname = 'a'\nsource = 'synthetic'\n"
        "config.inference.hop_ms = 200\n",
    )
    config = plan.sessions["a"].config
    assert (config.text.asr, config.inference.max_hz, config.inference.hop_ms) == ("none", 10, 200)
    assert plan.base.inference.max_hz == 10


def test_session_errors_are_reported_and_others_run(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "[[sessions]]\nname = 'good'\nsource = 'synthetic'\n"
        "[[sessions]]\nname = 'typo'\nsorce = 'synthetic'\n"
        "[[sessions]]\nname = 'not a name'\nsource = 'synthetic'\n"
        "[[sessions]]\nname = 'good'\nsource = 'synthetic'\n"
        "[[sessions]]\nname = 'empty'\n"
        "[[sessions]]\nname = 'key'\nsource = 'synthetic'\nconfig.video.fsp = 3\n"
        "[[sessions]]\npattern = '{x}'\nsource = 'synthetic'\n"
        "[[sessions]]\ncsv = 'missing.csv'\n",
    )
    assert list(plan.sessions) == ["good"]
    reasons = {problem.session: problem.reason for problem in plan.problems}
    assert "did you mean `source`" in reasons["typo"]
    assert "not a name" in reasons["not a name"]
    assert "another session" in reasons["good"]
    assert "no `source`" in reasons["empty"]
    assert "did you mean `fps`" in reasons["key"]
    assert "{x} is unknown" in reasons["{x}"]
    assert "cannot read" in reasons["missing.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[capure]\ncpus = 1\n", "did you mean `capture`"),
        ("[pools]\nsessions = 0\n", "pools.sessions"),
        ("[defaults]\nvideo.sorce = 'x'\n[[sessions]]\nname='a'\nsource='synthetic'\n", "did you mean `source`"),
        ("fleet = 'a'\n", "has no sessions"),
        ("fleet = \n", "not valid TOML"),
    ],
)
def test_fleet_wide_problems_are_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        plan_of(tmp_path, text)


def test_placeholders_reach_only_their_values(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "[[sessions]]\npattern = '{n.__class__}'\nsource = 'synthetic'\n")
    assert not plan.sessions
    assert "unknown" in plan.problems[0].reason
