"""The checks of `mien doctor`. Each is a small function that yields rows, and never raises.

The rule for verdicts: something missing that not every user needs is a warning, something broken is a failure. A
subscriber's base install on a machine without a camera is healthy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from mien.config import Config
from mien.install import install_command, installed_versions

Verdict = Literal["ok", "warn", "fail"]

INSTALL_LIVE = f"needed to capture: {install_command('live')}"


@dataclass(frozen=True)
class Row:
    """One finding. `advice` says what to do, empty if nothing needs doing."""

    area: str
    verdict: Verdict
    finding: str
    advice: str = ""


def run_checks(config: Config) -> Iterator[Row]:
    """The rows of all checks, the functions below in their order. An unexpected error becomes a failing row."""
    for check in [check for name, check in globals().items() if name.startswith("check_")]:
        try:
            yield from check(config)
        except Exception as error:  # a diagnosis must survive any finding
            area = check.__name__.removeprefix("check_").replace("_", " ")
            yield Row(area, "fail", f"{type(error).__name__}: {error}", "please report this")


def check_python(_: Config) -> Iterator[Row]:
    """The interpreter and the system."""
    version = platform.python_version()
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    yield Row("python", "ok", f"{version} on {system}")


def check_packages(_: Config) -> Iterator[Row]:
    """Installed packages, by extra."""
    requirements = importlib.metadata.requires("mien") or []
    for extra in ("base", "live"):
        # As in the package's metadata: `torch<2.15,>=2.9; extra == "live"`.
        names = [
            re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            for requirement in requirements
            if requirement.endswith(f'extra == "{extra}"') or (extra == "base" and "extra ==" not in requirement)
        ]
        versions = installed_versions(names)
        lacking = [name for name in names if name not in versions]
        if lacking:
            advice = "pip install mien" if extra == "base" else INSTALL_LIVE
            verdict: Verdict = "fail" if extra == "base" else "warn"
            yield Row(f"packages: {extra}", verdict, f"missing: {', '.join(lacking)}", advice)
        else:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Row(f"packages: {extra}", "ok", found)
    if len(set(installed_versions(("opencv-python", "opencv-contrib-python")).values())) > 1:
        yield Row(
            "packages: opencv",
            "fail",
            "opencv-python and opencv-contrib-python have different versions and share one folder",
            "pip uninstall --yes opencv-python opencv-contrib-python; then " + install_command("live"),
        )


def check_bridges(_: Config) -> Iterator[Row]:
    """Protocols available to `mien bridge`."""
    packages = {"ws": "uvicorn", "osc": "python-osc", "lsl": "pylsl", "mqtt": "aiomqtt"}
    versions = installed_versions(packages.values())
    lacking = [f"{kind} ({package})" for kind, package in packages.items() if package not in versions]
    installed = [kind for kind, package in packages.items() if package in versions]
    if lacking:
        found = f"{', '.join(installed)} can run; " * bool(installed) + f"missing: {', '.join(lacking)}"
        yield Row("bridges", "warn", found, f"only for mien bridge: {install_command('bridges')}")
        return
    try:
        import pylsl

        pylsl.library_version()
    except (ImportError, OSError, RuntimeError) as error:
        yield Row("bridges", "warn", f"liblsl cannot be loaded: {error}", "only for mien bridge lsl: install liblsl")
        return
    yield Row("bridges", "ok", ", ".join(installed))


def check_cameras(_: Config) -> Iterator[Row]:
    """Cameras of this machine, opened once each."""
    # Read by OpenCV when it is loaded: a camera that cannot be opened becomes a row, not lines of warnings.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    cv2 = yield from _import("cv2", "camera", "libgl1 libglib2.0-0")
    if cv2 is None:
        return
    if sys.platform.startswith("linux"):
        numbers = sorted(int(path.name[5:]) for path in Path("/dev").glob("video*") if path.name[5:].isdigit())
    else:
        numbers = list(range(4))
    working: list[int] = []
    refused: list[int] = []
    for number in numbers:
        capture = cv2.VideoCapture(number)
        try:
            opened = capture.isOpened() and capture.read()[0]
        finally:
            capture.release()
        (working if opened else refused).append(number)
    if working:
        yield Row("camera", "ok", f"device {', '.join(map(str, working))} delivers pictures")
    elif refused and sys.platform.startswith("linux"):
        yield Row(
            "camera",
            "warn",
            f"/dev/video{refused[0]} exists but delivers no picture",
            "close other programs that use it; your user needs to be in the group `video`",
        )
    else:
        yield Row("camera", "warn", "none found", "connect one, or use a network camera's URL or a clip instead")


def check_microphones(_: Config) -> Iterator[Row]:
    """Recording devices, as listed by PortAudio."""
    sounddevice = yield from _import("sounddevice", "microphone", "libportaudio2")
    if sounddevice is None:
        return
    devices = [device for device in sounddevice.query_devices() if device["max_input_channels"] > 0]
    if not devices:
        yield Row("microphone", "warn", "none found", "connect one, or play a clip instead")
        return
    names = ", ".join(f"{device['index']}: {device['name']}" for device in devices[:4])
    more = f" and {len(devices) - 4} more" if len(devices) > 4 else ""
    yield Row("microphone", "ok", names + more)


def check_gpu(_: Config) -> Iterator[Row]:
    """An NVIDIA GPU, and whether torch can use it."""
    seen = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    if importlib.util.find_spec("torch") is None:
        yield Row("gpu", "ok", "an NVIDIA driver is installed" if seen else "none; not required")
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Row("gpu", "ok", f"{torch.cuda.get_device_name(index)}, SM {major}.{minor}, {memory:.0f} GiB")
    elif seen:
        yield Row(
            "gpu",
            "warn",
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
            "install a CUDA build of torch to use the GPU; the CPU engines need none",
        )
    else:
        yield Row("gpu", "ok", "none; not required")


def check_engines(_: Config) -> Iterator[Row]:
    """Inference engines, and what each one lacks."""
    from mien.engines.selection import BACKENDS, find_usable
    from mien.errors import EngineError

    for name in BACKENDS:
        try:
            find_usable(name)
            yield Row(f"engine {name}", "ok", "can run here")
        except EngineError as missing:
            # Only what comes with an install for capturing is expected.
            expected = name in ("onnx", "torch") and importlib.util.find_spec("torch") is not None
            yield Row(f"engine {name}", "fail" if expected else "warn", "cannot run here", str(missing))


def check_assets(config: Config) -> Iterator[Row]:
    """Pretrained files, each verified by its hash."""
    from mien.assets import ASSETS, needed, status

    for name in ASSETS:
        state = status(name, config.assets, thorough=True)
        is_given = name in config.assets.paths
        if state.state == "ok":
            yield Row(f"asset {name}", "ok", f"complete and verified: {state.path}")
        elif state.state == "missing" and name not in needed(config):
            yield Row(f"asset {name}", "ok", "not downloaded; this configuration does not need it")
        elif state.state == "missing" and not is_given and not config.assets.offline:
            advice = f"the first run fetches it; or now: mien assets {name}"
            yield Row(f"asset {name}", "warn", "not downloaded", advice)
        else:
            advice = f"correct `assets.paths.{name}`" if is_given else f"mien assets {name}"
            yield Row(f"asset {name}", "fail", state.problem or "", advice)


def check_checkpoint(config: Config) -> Iterator[Row]:
    """The fusion model's weights."""
    if importlib.util.find_spec("safetensors") is None:
        yield Row("checkpoint", "warn", "cannot be read without safetensors", INSTALL_LIVE)
        return
    from mien.errors import MienError
    from mien.models.checkpoint import load_checkpoint
    from mien.models.weights import SHIPPED_FOLDER, is_shipped, weight_set

    try:
        checkpoint = load_checkpoint(config.inference.checkpoint)
    except MienError as error:
        yield Row("checkpoint", "fail", str(error), "correct `inference.checkpoint`, or leave it empty for the default")
        return
    files = weight_set(config.inference.checkpoint)
    changed = [path for path in (files.fusion, files.text, files.face) if not is_shipped(path)]
    if not changed:
        yield Row("checkpoint", "ok", f"{checkpoint.id}: {checkpoint.path}, as shipped")
    elif any(path.parent == SHIPPED_FOLDER for path in changed):
        replaced = ", ".join(path.name for path in changed)
        yield Row(
            "checkpoint", "warn", f"{checkpoint.id}: {replaced} in {SHIPPED_FOLDER} is not the shipped version",
            "fine if you trained it; `mien weights --restore` restores the shipped files",
        )  # fmt: skip
    else:
        yield Row("checkpoint", "ok", f"{checkpoint.id}: {checkpoint.path}, your own weights")


def check_ports(config: Config) -> Iterator[Row]:
    """The four ports of a session."""
    used = []
    host = config.bus.host.strip("[]").replace("*", "0.0.0.0")
    for port in range(config.bus.port, config.bus.port + 4):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name != "nt":
                # As ZeroMQ binds: a port closed a moment ago is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                used.append(port)
    span = f"{config.bus.port} to {config.bus.port + 3} on {config.bus.host}"
    if used:
        yield Row(
            "ports",
            "warn",
            f"{', '.join(map(str, used))} of {span} in use, or cannot be bound",
            "fine if mien is running; else set `bus.port` to four free ports, or `bus.host` to a local address",
        )
    else:
        yield Row("ports", "ok", f"{span} are free")


def check_session(config: Config) -> Iterator[Row]:
    """A mien running on these ports, and the address of its metrics."""
    port = config.service.metrics_port
    if port:
        with socket.socket() as probe:
            served = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Row("metrics", "ok", f"port {port} " + ("is already in use" if served else "is free"))
    try:
        from mien.stream.bus.subscriber import Subscriber
        from mien.stream.monitoring.observer import Observer
    except ImportError:  # another check reports what is missing
        return
    with Subscriber(config.bus.address(), session=config.session, keys=config.bus.keys) as subscriber:
        observer = Observer(subscriber, config.session)
        deadline_s = time.monotonic() + 1.5
        while time.monotonic() < deadline_s:
            observer.wait(0.1)
        condition = observer.condition()
    if not condition.processes:
        yield Row("session", "ok", f"no session {config.session!r} is running on {config.bus.address()}")
    elif condition.verdict == "ok":
        yield Row("session", "ok", f"{config.session!r} is running, {condition.predictions_per_s:.0f} predictions/s")
    else:
        yield Row("session", "warn", "; ".join(condition.problems), "for details: mien status")


def check_cache(config: Config) -> Iterator[Row]:
    """The folders that mien writes to."""
    from mien.assets import cache_folder

    for area, folder in (
        ("cache for assets", cache_folder(config.assets)),
        ("cache for engines", platformdirs.user_cache_path("mien") / "engines"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            free_gb = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            yield Row(area, "fail", f"{folder} cannot be written: {error.strerror}", "correct its permissions")
            continue
        if free_gb < 0.5:
            yield Row(area, "warn", f"{folder} has {free_gb:.1f} GB free", "make room: assets take up to 0.4 GB")
        else:
            yield Row(area, "ok", f"{folder} is writable, {free_gb:.0f} GB free")


def _import(module: str, area: str, libraries: str) -> Generator[Row, None, Any]:
    """Import a module of [live]; yields a row if it is missing or broken. Returns the module, or None."""
    if importlib.util.find_spec(module) is None:
        yield Row(area, "warn", f"{module} is not installed", INSTALL_LIVE)
        return None
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        advice = f"on Debian and Ubuntu: sudo apt-get install {libraries}"
        yield Row(area, "fail", f"{module} cannot be loaded: {error}", advice)
        return None
