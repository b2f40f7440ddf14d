# SPDX-License-Identifier: Apache-2.0
"""Privileges of a pod's containers that let them bypass the capture of its traffic. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.kube.objects.fields import Fields, TranslateError

CONTAINER_LISTS = ("initContainers", "containers")
_FIELDS = (*CONTAINER_LISTS, "hostPID")
# NET_ADMIN moves interfaces and rewrites destinations; NET_RAW sends packets without a socket that
# the hooks see; the others make a process root on the node.
BYPASSING = frozenset({"ALL", "BPF", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_MODULE"})


def bypassing_privileges(spec: Fields) -> str:
    """Describe the privileges of a Pod's spec; empty if there are none.

    NET_RAW counts only where a pod adds it: most runtimes grant it by default.
    """
    if not any(map(spec.has, _FIELDS)):  # as of almost all pods that the API's decoder passes on
        return ""
    try:
        return "; ".join(_of_containers(spec))
    except TranslateError as error:  # does not concern capture, and so must not reject the pod
        return str(error)


def _of_containers(spec: Fields) -> Iterator[str]:
    if spec.boolean("hostPID"):
        yield "the pod uses the host's PID namespace"
    for name in CONTAINER_LISTS:
        for container in spec.mappings(name):
            context = container.mapping("securityContext")
            added = context.mapping("capabilities").strings("add")
            found = sorted({each.upper().removeprefix("CAP_") for each in added} & BYPASSING)
            if context.boolean("privileged"):
                found = ["privileged"]
            if found:
                yield f"container {container.string('name')} has {', '.join(found)}"
