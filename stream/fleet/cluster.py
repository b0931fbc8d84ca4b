"""Ray, as the fleet uses it: joined or started embedded, checked for open doors, and the actors in it.

Nothing of Ray is imported before it is needed, and nothing of it calls anywhere: its usage reports are switched off.
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

# Ray's own settings: an actor that is lost is elsewhere after about 16 s, and what actors start gives way to all else.
RAY_SETTINGS = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,
}
_ANSWER_S = 2.0
DIRECTORY = "directory"
# Of the node that Ray itself depends on: what is there is lost only with everything.
ON_HEAD = {"node:__internal_head__": 0.001}
GATEWAY = "gateway"


class Whereabouts(msgspec.Struct, frozen=True):
    """Where a fleet's Ray is, so that `mien fleet status` finds it. `own`: it asks for the fleet's own token."""

    address: str
    own: bool = False


def namespace(fleet: str) -> str:
    """Under which a fleet's actors are named."""
    return f"mien-{fleet}"


def quiet_ray(token: Path | None = None) -> Any:
    """The module, with its usage reports and its hints off.

    Args:
        token: a file with the token that Ray is to ask for, or asks for; without one, the environment decides.
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
    """Start Ray on this machine, for as long as this process lives.

    Ray listens on every address that the machine has, and cannot be told not to. So it asks for a token, which this
    user alone can read; Ray itself would write it where others may.

    Raises:
        FleetError: it does not start, or the fleet runs already.
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
    """Refuse to start a fleet embedded once more: the note of where the first one is would be lost.

    Raises:
        FleetError: it runs.
    """
    known = _known(fleet)
    if known is not None and known.own and _answers(known.address):
        raise FleetError(
            f"a fleet called {fleet} runs already; first: mien fleet stop {fleet} (if none runs, remove {_note(fleet)})"
        )


def join(fleet: str, address: str) -> Any:
    """Join a cluster.

    Raises:
        FleetError: nothing answers there, or it asks for a token.
    """
    known = _known(fleet)
    # Ray itself would go on trying for minutes.
    if ":" in address and not _answers(address.removeprefix("ray://")):
        raise FleetError(f"no Ray cluster answers at {address}; start one with: ray start --head")
    ray = quiet_ray(_token(fleet) if known is not None and known.own and known.address == address else None)
    try:
        ray.init(address=address, namespace=namespace(fleet), log_to_driver=False, logging_level="error")
    except Exception as error:
        raise FleetError(
            f"no Ray cluster answers at {address}: {_first_line(error)}; start one with: ray start --head"
        ) from error
    return ray


def remember(fleet: str, address: str, *, own: bool = False) -> None:
    """Note where a fleet is, for this user."""
    write_file(_note(fleet), msgspec.json.encode(Whereabouts(address, own)), private=True)


def forget(fleet: str) -> None:
    """It is no longer there."""
    for path in (_note(fleet), _token(fleet)):
        path.unlink(missing_ok=True)


def whereabouts(fleet: str) -> str:
    """The address of a fleet that was started by this user; "auto" if none was, for Ray's own note."""
    known = _known(fleet)
    return "auto" if known is None else known.address


def directory_of(ray: Any, fleet: str) -> Any:
    """The directory of a fleet that runs.

    Raises:
        FleetError: there is none.
    """
    try:
        return ray.get_actor(DIRECTORY, namespace=namespace(fleet))
    except ValueError:
        raise FleetError(f"no fleet called {fleet} runs there; start it with: mien fleet run FILE") from None


def open_doors(ray: Any) -> list[str]:
    """What lets strangers in: Ray runs any code for anyone who reaches its ports, unless it asks for a token."""
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
    """What an actor answers.

    Raises:
        FleetError: it does not, or says what is wrong.
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
    """What an actor's constructor raised; else what Ray says first."""
    raised = [
        line.partition("Error: ")[2] for line in str(error).splitlines() if line.strip().startswith("mien.errors.")
    ]
    return (raised or [_first_line(error)])[0][:500]


def _note(fleet: str) -> Path:
    return state_folder(fleet) / "ray.json"


def _token(fleet: str) -> Path:
    return state_folder(fleet) / "ray-token"


def _known(fleet: str) -> Whereabouts | None:
    try:
        return msgspec.json.decode(_note(fleet).read_bytes(), type=Whereabouts)
    except (OSError, msgspec.MsgspecError):
        return None


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
