# SPDX-License-Identifier: Apache-2.0
"""The certificates that BackendTLSPolicies of a lab refer to, in their annotation. Pure.

`ztunnel.l7.traffic.backend_ca` decides what they are, as in a cluster.
"""

from __future__ import annotations

from ztunnel.kube.objects.l7_kinds import BACKEND_TLS_POLICY, CA_CERTIFICATES_ANNOTATION
from ztunnel.l7.objects import l7_object
from ztunnel.l7.traffic.backend_ca import config_map_names, read_authorities
from ztunnel.lab.objects import Key, Object, Objects, of_kind


def plan_certificates(objects: Objects) -> tuple[list[Object], list[str]]:
    """Return the policies whose annotation changes, and the problems of all references."""
    changed, problems = [], []
    for obj in of_kind(objects, BACKEND_TLS_POLICY):
        annotated, errors = with_certificates(obj, objects)
        problems += errors
        if annotated is not obj:
            changed.append(annotated)
    return changed, problems


def with_certificates(obj: Object, objects: Objects) -> tuple[Object, list[str]]:
    """Return an object with its annotation, and the problems: the object itself if it is current.

    Objects of other kinds are returned as they are.
    """
    if obj["kind"] != BACKEND_TLS_POLICY:
        return obj, []
    try:
        policy = l7_object(obj)
    except ValueError as error:
        return obj, [str(error)]
    data = {
        name: _data(objects, Key("ConfigMap", policy.namespace, name))
        for name in config_map_names(policy)
    }
    found = read_authorities(policy, data)
    problems = [f"{policy.key}: {error.message}" for error in found.errors]
    is_current = found.pem == policy.annotations.get(CA_CERTIFICATES_ANNOTATION, "")
    return (obj if is_current else _annotated(obj, found.pem)), problems


def _data(objects: Objects, key: Key) -> Object | None:
    found = objects.get(key)
    return None if found is None else found.get("data") or {}


def _annotated(obj: Object, pem: str) -> Object:
    metadata = obj["metadata"]
    annotations = dict(metadata.get("annotations") or {})
    annotations.pop(CA_CERTIFICATES_ANNOTATION, None)
    if pem:
        annotations[CA_CERTIFICATES_ANNOTATION] = pem
    return {**obj, "metadata": {**metadata, "annotations": annotations}}
