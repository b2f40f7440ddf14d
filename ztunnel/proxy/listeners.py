# SPDX-License-Identifier: Apache-2.0
"""Connects a pod's listeners to the servers that handle their connections."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ztunnel.ipc.messages import ListenerKind
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.tcp_server import DnsTcpServer
from ztunnel.proxy.dns.udp_server import DnsUdpServer
from ztunnel.proxy.handlers.inbound import HboneServer
from ztunnel.proxy.handlers.inbound_passthrough import PassthroughServer
from ztunnel.proxy.handlers.outbound import OutboundServer
from ztunnel.proxy.io.listener import Listener
from ztunnel.proxy.io.sockets import adopt
from ztunnel.proxy.local_pod import Pod


def add_listener(context: Context, pod: Pod, kind: ListenerKind, fd: int) -> None:
    """Serve a listening socket of the pod. Takes ownership of `fd`."""
    family = kind.family
    if kind.is_query:
        pod.set_listener(kind, DnsUdpServer(context, pod, adopt(fd, family, udp=True)))
        return
    listener = Listener(
        context.loop,
        adopt(fd, family),
        _on_accept(context, pod, kind),
        context.tracker.accept_paused,
        resets=kind not in (ListenerKind.HBONE4, ListenerKind.HBONE6),
        shared=context.workers > 1,
    )
    pod.set_listener(kind, listener)


def _on_accept(context: Context, pod: Pod, kind: ListenerKind) -> Callable[[socket.socket], None]:
    match kind:
        case ListenerKind.OUTBOUND4 | ListenerKind.OUTBOUND6:
            return OutboundServer(context, pod).accepted
        case ListenerKind.INBOUND4 | ListenerKind.INBOUND6:
            return PassthroughServer(context, pod).accepted
        case ListenerKind.DNS4 | ListenerKind.DNS6:
            return DnsTcpServer(context, pod).accepted
        case _:
            return HboneServer(context, pod).accepted
