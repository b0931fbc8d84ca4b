"""One address for all sessions of a fleet, whichever pools are behind it.

Messages are forwarded by libzmq alone (`zmq_proxy`): Python never touches a payload. The set of pools changes rarely;
then the proxy is stopped, connections are opened and closed, and it resumes with the same sockets. A pool that was
given up is disconnected here first, so that nothing it may still send reaches a subscriber.

Every subscription is forwarded to all pools: a subscriber with far too many would fill their memory too. So the
publisher of gap statuses, which sees all subscriptions, counts them, and a flood closes all connections here.
"""

from __future__ import annotations

import itertools
import threading

import zmq

from mien.config import BusConfig
from mien.errors import BusError, KeysError
from mien.stream.bus.curve import Guard, Link, host_of, is_guarded
from mien.stream.bus.sockets import FLEET_SUBSCRIPTIONS, READ_AHEAD, Publisher
from mien.stream.bus.wire import encode_status
from mien.stream.fleet.node import NodeKeys, Ordered
from mien.stream.fleet.orders import GatewayOrder, GatewayReport

_QUEUED = 100_000  # messages, of all sessions
_TICK_S = 0.05
_GATEWAYS = itertools.count()


class Gateway(Ordered[GatewayOrder]):
    """Forwards the pools' messages, and explains why a session is silent.

    Args:
        fleet: its name. bus: where to serve.
        guarded: whether pools are on other machines, and so need keys.
        by_ray: whether this is an actor, which Ray knows by an address of its node.

    Raises:
        BusError: the address cannot be bound, or it is not on loopback and there are no keys.
    """

    def __init__(self, fleet: str, bus: BusConfig, *, guarded: bool, by_ray: bool = False) -> None:
        super().__init__(NodeKeys(fleet, "gateway"), GatewayOrder)
        self._folder = self._keys.folder if guarded else ""
        number = next(_GATEWAYS)
        self._gaps = Publisher(
            f"inproc://fleet-gaps-{number}",
            BusConfig(),
            most_subscriptions=FLEET_SUBSCRIPTIONS,
            stop_flood=self._stop_flood,
        )
        self._by_ray = by_ray
        self._flooded = False
        self._silent: set[str] = set()  # sessions whose gaps were explained
        self._listed: frozenset[str] = frozenset()
        self._pools: frozenset[str] = frozenset()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._front: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self._back: zmq.Socket[bytes] = context.socket(zmq.XSUB)
        self._orders: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._ordered: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._bind(bus)
        self._back.setsockopt(zmq.RCVHWM, _QUEUED)
        self._back.setsockopt(zmq.SNDHWM, _QUEUED)
        self._back.setsockopt(zmq.RECONNECT_IVL, 50)
        self._back.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._back.setsockopt(zmq.LINGER, 0)
        self._back.connect(self._gaps.endpoint)
        self._ordered.bind(f"inproc://fleet-orders-{number}")
        self._orders.connect(f"inproc://fleet-orders-{number}")
        self._changed = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._forward, name="gateway", daemon=True),
            threading.Thread(target=self._explain_gaps, name="gaps", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        """Where it serves; for an actor that listens on all addresses, at the one by which Ray knows its node."""
        host, port = host_of(self._address), self._address.rpartition(":")[2]
        if self._by_ray and host in ("0.0.0.0", "::", "*"):
            import ray

            return f"tcp://{ray.util.get_node_ip_address()}:{port}"
        return self._address

    @property
    def floods(self) -> int:
        """How often all subscribers were disconnected because of too many subscriptions."""
        return self._gaps.subscription_flood_resets

    def _apply(self, order: GatewayOrder) -> GatewayReport:
        if order.pools is not None:
            self._version = order.version
            self._listed = frozenset(order.pools)
            self._orders.send(b"TERMINATE")
            self._changed.wait_for(lambda: self._pools == self._listed, 2.0)
        self._explain(order)
        return GatewayReport(self._version, self._keys.public, self.address, len(self._pools), self.floods)

    def close(self) -> None:
        self._stopping.set()
        with self._lock:
            self._orders.send(b"TERMINATE")
        for thread in self._threads:
            thread.join(2.0)
        for socket in (self._front, self._back, self._ordered, self._orders):
            socket.close(0)
        self._gaps.close()

    def _bind(self, bus: BusConfig) -> None:
        endpoint = bus.endpoint()
        keys = self._keys.folder if is_guarded(endpoint, "") or self._folder else ""
        self._front.setsockopt(zmq.RCVHWM, READ_AHEAD)
        self._front.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._front.setsockopt(zmq.SNDHWM, bus.high_water_mark * 16)
        self._front.setsockopt(zmq.LINGER, 200)
        # Subscribers send only short messages: a topic, or the CURVE handshake.
        self._front.setsockopt(zmq.MAXMSGSIZE, 1024 if is_guarded(endpoint, "") else 160)
        self._front.setsockopt(zmq.IPV6, int(":" in host_of(endpoint)))
        self._guard = Guard(self._front, keys) if is_guarded(endpoint, "") else None
        try:
            self._front.bind(endpoint)
        except zmq.ZMQError as error:
            for socket in (self._front, self._back, self._orders, self._ordered, self._gaps.socket):
                socket.close(0)
            raise BusError(
                f"cannot serve the fleet at {endpoint}: {error.strerror}; choose another gateway.port"
            ) from error
        self._address = self._front.get_string(zmq.LAST_ENDPOINT)

    def _forward(self) -> None:
        """Forward, and update connections in between: sockets belong to one thread."""
        while not self._stopping.is_set():
            with self._lock:
                listed = self._listed
            if self._flooded:
                self._flooded = False
                self._cut_off()
            for endpoint in self._pools - listed:
                self._back.disconnect(endpoint)
            failed = {endpoint for endpoint in listed - self._pools if not self._connect(endpoint)}
            with self._changed:
                self._pools = listed
                if failed:
                    self._listed = self._pools = listed - failed
                self._changed.notify_all()
                if listed != self._listed and not failed:
                    continue
            zmq.proxy_steerable(self._back, self._front, None, self._ordered)

    def _stop_flood(self) -> None:
        """Call with the lock held."""
        self._flooded = True
        self._orders.send(b"TERMINATE")

    def _cut_off(self) -> None:
        """Close all subscribers' connections, and so drop their subscriptions; well-behaved ones reconnect."""
        self._front.unbind(self._address)
        while not self._stopping.is_set():
            try:
                self._front.bind(self._address)
                return
            except zmq.ZMQError:  # the port is not released yet
                self._stopping.wait(_TICK_S)

    def _connect(self, endpoint: str) -> bool:
        try:
            if is_guarded(endpoint, self._folder):
                Link(self._back, endpoint, self._folder)
            self._back.connect(endpoint)
        except (KeysError, zmq.ZMQError):
            return False  # the directory sees the difference, and asks again
        return True

    def _explain_gaps(self) -> None:
        """Tell subscribers that arrive during a gap why nothing comes."""
        while not self._stopping.wait(_TICK_S):
            with self._lock:
                self._gaps.service()

    def _explain(self, order: GatewayOrder) -> None:
        closed = set(order.closed) if order.pools is None else self._silent - order.gaps.keys()
        for name in closed:
            self._gaps.forget(name)
        for status in order.gaps.values():
            self._gaps.send(encode_status(status))
        self._silent = (self._silent - closed) | order.gaps.keys()
