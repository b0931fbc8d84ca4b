"""Messages between the directory and a fleet's actors: desired state in orders, actual state in reports.

Orders are declarative: an actor compares, and starts or stops what differs. So an order may be repeated, or come from
a restarted directory. With hundreds of sessions an order holds only changes since the actor's version; an actor with
an unexpected version gets a complete one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Literal, TypeVar

import msgspec

from mien.config import Config
from mien.messages import Origin, Status
from mien.stream.processes.control import Assignment, Order

FULL = -1  # `since` of a complete order
CaptureState = Literal["starting", "running", "ended", "failed"]


class Trusted(msgspec.Struct, frozen=True):
    """A node's public key, in hex, and the host by which others connect to it."""

    key: str
    host: str = ""


class CaptureTask(msgspec.Struct, frozen=True):
    """A session to capture. A new `incarnation` means a restart; `port` is where to start looking for free ones.

    `heard`: whether its inference is listening. Clips wait for that, so that their beginning is predicted too.
    """

    config: Config
    incarnation: int
    port: int
    heard: bool = False


TaskT = TypeVar("TaskT", bound=CaptureTask | Assignment)


class Captured(msgspec.Struct, frozen=True):
    """A session's state at its capture host.

    Attributes:
        endpoints: of each worker, once it publishes.
        workers, absent, origin, label: as in an `Assignment`.
        error: why it is not running, or its last error.
        orders: for the session's inference, since the last report.
    """

    incarnation: int
    state: CaptureState
    endpoints: dict[str, str] = {}
    workers: tuple[str, ...] = ()
    absent: dict[str, str] = {}
    origin: Origin = "live"
    label: str = ""
    error: str = ""
    orders: tuple[Order, ...] = ()


class MemberOrder(msgspec.Struct, Generic[TaskT], frozen=True):
    """For a capture host (tasks) or a pool (assignments).

    Attributes:
        tasks: those that are new or have changed since a version; None if nothing has. gone: names of sessions.
        orders: passed on to a pool's inference unchanged.
    """

    version: int
    tasks: tuple[TaskT, ...] | None = None
    trusted: dict[str, Trusted] | None = None
    since: int = FULL
    gone: tuple[str, ...] = ()
    orders: tuple[Order, ...] = ()

    def applied(self, before: Mapping[str, TaskT]) -> dict[str, TaskT]:
        """The desired state by session, from the one before this order."""
        kept = {} if self.since == FULL else {name: task for name, task in before.items() if name not in self.gone}
        return kept | {task.config.session: task for task in self.tasks or ()}


class CaptureReport(msgspec.Struct, frozen=True):
    """`version` is that of the last order with tasks."""

    version: int
    key: str
    sessions: dict[str, Captured]


class Served(msgspec.Struct, frozen=True):
    """A session's state at its pool, from its last status. `error`: why it is refused."""

    run: int
    state: str = "starting"
    per_second: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    predictions: int = 0
    error: str = ""
    absent: dict[str, str] = {}
    drops: dict[str, int] = {}


class PoolReport(msgspec.Struct, frozen=True):
    """A pool's state.

    Attributes:
        state: "starting", "ready", or "dead": its process has ended, and the pool must be replaced.
        endpoint: of its predictions. cpu_percent: of one core. rss_mb: resident memory, MiB.
    """

    version: int
    key: str
    state: Literal["starting", "ready", "dead"]
    endpoint: str = ""
    model: str = ""
    error: str = ""
    cpu_percent: float = 0.0
    rss_mb: float = 0.0
    sessions: dict[str, Served] = {}


class GatewayOrder(msgspec.Struct, frozen=True):
    """What to forward, and statuses of sessions that no pool predicts at the moment.

    Attributes:
        pools: endpoints; None if unchanged since `version`.
        gaps: per session, a status that explains its silence: a complete list with `pools`, otherwise new ones.
        closed: sessions that are no longer silent.
    """

    version: int
    pools: tuple[str, ...] | None = None
    gaps: dict[str, Status] = {}
    trusted: dict[str, Trusted] | None = None
    closed: tuple[str, ...] = ()


class GatewayReport(msgspec.Struct, frozen=True):
    """`address` is for subscribers. `floods`: how often all were disconnected because of too many subscriptions."""

    version: int
    key: str
    address: str = ""
    pools: int = 0
    floods: int = 0
