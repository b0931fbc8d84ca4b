"""The fleet's use of Ray: joining a cluster or starting one embedded, security checks, and the actors.

Ray is imported lazily, and never calls home: its usage reports are switched off.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mien.errors import FleetError, MienError
from mien.files import write_file
from mien.stream.bus.curve import is_loopback
from mien.stream.fleet.node import state_folder

# Ray's own settings: a lost actor is replaced after about 16 s, and processes started by actors have low priority.
RAY_SETTINGS = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,
}
_ANSWER_S = 2.0
DIRECTORY = "directory"
# Resource of the head node, which Ray depends on: it is lost only with everything else.
ON_HEAD = {"node:__internal_head__": 0.001}
GATEWAY = "gateway"


def namespace(fleet: str) -> str:
    """The Ray namespace of a fleet's actors."""
    return f"mien-{fleet}"


def quiet_ray(token: Path | None = None) -> Any:
    """Import Ray, with its usage reports and hints off.

    Args:
        token: a file with the token that Ray requires or presents; without one, the environment decides.
    """
    if token is not None and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    import ray.util.scheduling_strategies

    return ray


def start_embedded(fleet: str) -> Any:
    """Start Ray on this machine, for the lifetime of this process.

    Ray always listens on every address of the machine. So it requires a token, which only this user can read; Ray
    itself would write it where others may read it.

    Raises:
        FleetError: it does not start, or the fleet is already running.
    """
    check_free(fleet)
    token = _token(fleet)
    write_file(token, secrets.token_hex(32).encode(), private=True)
    ray = quiet_ray(token)
    try:
        ray.init(
            address="local",
            namespace=namespace(fleet),
            num_cpus=max(os.cpu_count() or 1, 2),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
            _system_config=RAY_SETTINGS,
            object_store_memory=100 << 20,
        )
    except (RuntimeError, ValueError, ConnectionError, TimeoutError, OSError) as error:
        raise FleetError(f"Ray did not start: {_first_line(error)}") from error
    remember(fleet, ray.get_runtime_context().gcs_address, own=True)
    return ray


def check_free(fleet: str) -> None:
    """Refuse to start an embedded fleet twice: the record of the first one's address would be lost.

    Raises:
        FleetError: it is running.
    """
    known = _known(fleet)
    if known.get("own") and _answers(known["address"]):
        raise FleetError(
            f"a fleet called {fleet} runs already; first: mien fleet stop {fleet} (if none runs, remove {_note(fleet)})"
        )


def join(fleet: str, address: str) -> Any:
    """Join a cluster.

    Raises:
        FleetError: nothing answers there, or it requires a token.
    """
    # Ray itself would retry for minutes.
    if ":" in address and not _answers(address.removeprefix("ray://")):
        raise FleetError(f"no Ray cluster answers at {address}; start one with: ray start --head")
    ray = quiet_ray(_token(fleet) if _known(fleet) == {"address": address, "own": True} else None)
    try:
        ray.init(address=address, namespace=namespace(fleet), log_to_driver=False, logging_level="error")
    except Exception as error:
        raise FleetError(
            f"no Ray cluster answers at {address}: {_first_line(error)}; start one with: ray start --head"
        ) from error
    return ray


def remember(fleet: str, address: str, *, own: bool = False) -> None:
    """Record where a fleet's Ray runs, for this user. `own`: it requires the fleet's own token."""
    write_file(_note(fleet), msgspec.json.encode({"address": address, "own": own}), private=True)


def forget(fleet: str) -> None:
    """Remove that record."""
    for path in (_note(fleet), _token(fleet)):
        path.unlink(missing_ok=True)


def known_address(fleet: str) -> str:
    """The recorded address of this user's fleet; "auto" if there is none, to use Ray's own record."""
    return str(_known(fleet).get("address", "auto"))


def directory_of(ray: Any, fleet: str) -> Any:
    """The directory of a running fleet.

    Raises:
        FleetError: there is none.
    """
    try:
        return ray.get_actor(DIRECTORY, namespace=namespace(fleet))
    except ValueError:
        raise FleetError(f"no fleet called {fleet} runs there; start it with: mien fleet run FILE") from None


def exposed_ports(ray: Any) -> list[str]:
    """Security problems: Ray runs any code for anyone who reaches its ports, unless it requires a token."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return []
    hosts = sorted({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    beyond = [host for host in hosts if not is_loopback(host)]
    public = [host for host in beyond if _is_public(host)]
    if public:
        return [
            f"Ray listens on {', '.join(public)}, an address of the internet, without a token: anyone who reaches "
            "its ports runs code here. Close them, and set RAY_AUTH_MODE=token on every node"
        ]
    if beyond:
        return [
            f"Ray listens on {', '.join(beyond[:3])} without a token: anyone who reaches its ports runs code there. "
            "Close them to all but the nodes, or set RAY_AUTH_MODE=token on every node"
        ]
    return []


def ask(ray: Any, call: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """An actor's answer.

    Raises:
        FleetError: it does not answer, or reports an error.
    """
    try:
        return ray.get(call(), timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise FleetError(
            _first_line(cause) if isinstance(cause, MienError) else f"{what}: {_first_line(cause)}"
        ) from None
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise FleetError(f"{what} does not answer: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The error raised by an actor's constructor; else the first line of Ray's message."""
    raised = [
        line.partition("Error: ")[2] for line in str(error).splitlines() if line.strip().startswith("mien.errors.")
    ]
    return (raised or [_first_line(error)])[0][:500]


def _note(fleet: str) -> Path:
    return state_folder(fleet) / "ray.json"


def _token(fleet: str) -> Path:
    return state_folder(fleet) / "ray-token"


def _known(fleet: str) -> dict[str, Any]:
    """What `remember` wrote; empty if nothing."""
    try:
        return msgspec.json.decode(_note(fleet).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
