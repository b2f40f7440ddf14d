# SPDX-License-Identifier: Apache-2.0
"""The zone `cluster.local` of the lab's services, hosts outside, and answers from both. Pure.

The ConfigMap kube-system/external-hosts has the names outside the cluster, in the form of
/etc/hosts; `*.example.com` covers all names below example.com.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ztunnel.lab.objects import SERVICE_LABEL, Key, Object, Objects, key_of, of_kind

ZONE = dns.name.from_text("cluster.local.")
SERVICES = dns.name.from_text("svc.cluster.local.")
EXTERNAL_HOSTS = Key("ConfigMap", "kube-system", "external-hosts")
TTL_S = 5  # the default of CoreDNS's kubernetes plugin

_WILDCARD = dns.name.Name([b"*"])
_SOA = f"ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 {TTL_S}"


@dataclass
class Zone:
    """Addresses and aliases by name. A name with neither exists; its answer is NODATA."""

    addresses: dict[dns.name.Name, list[str]] = field(default_factory=dict)
    aliases: dict[dns.name.Name, dns.name.Name] = field(default_factory=dict)
    external: dict[dns.name.Name, list[str]] = field(default_factory=dict)

    def external_addresses(self, name: dns.name.Name) -> list[str] | None:
        """The addresses of a name outside the cluster; None if it is not known."""
        found = self.external.get(name)
        while found is None and name != dns.name.root:
            name = name.parent()
            found = self.external.get(_WILDCARD.concatenate(name))
        return found

    def add(self, name: dns.name.Name, ips: list[str]) -> None:
        """Add addresses, and the parent names as empty non-terminals."""
        self.addresses.setdefault(name, []).extend(ips)
        while name != ZONE:
            name = name.parent()
            self.addresses.setdefault(name, [])


def build_zone(objects: Objects) -> Zone:
    """The names of all services: ClusterIPs, pod addresses if headless, CNAMEs if external."""
    zone = Zone()
    zone.add(SERVICES, [])
    slices: dict[tuple[str, str], list[Object]] = {}
    for endpoint_slice in of_kind(objects, "EndpointSlice"):
        service = endpoint_slice["metadata"].get("labels", {}).get(SERVICE_LABEL, "")
        slices.setdefault((key_of(endpoint_slice).namespace, service), []).append(endpoint_slice)
    for service in of_kind(objects, "Service"):
        _add_service(zone, service, slices.get(key_of(service)[1:], []))
    hosts = objects.get(EXTERNAL_HOSTS, {}).get("data") or {}
    for line in "\n".join(str(text) for text in hosts.values()).splitlines():
        ip, *names = line.partition("#")[0].split() or [""]
        for name in names:
            zone.external.setdefault(dns.name.from_text(name.lower()), []).append(ip)
    return zone


def _add_service(zone: Zone, service: Object, slices: list[Object]) -> None:
    key, spec = key_of(service), service["spec"]
    name = dns.name.from_text(f"{key.name}.{key.namespace}", SERVICES)
    if spec.get("type") == "ExternalName":
        zone.add(name, [])
        zone.aliases[name] = dns.name.from_text(spec["externalName"])
        return
    zone.add(name, [ip for ip in spec.get("clusterIPs") or [] if ip != "None"])
    if spec.get("clusterIP") != "None":
        return
    for endpoint_slice in slices:
        for endpoint in endpoint_slice.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready", True):
                zone.add(name, endpoint["addresses"])
                if host := endpoint.get("hostname"):
                    zone.add(dns.name.from_text(host, name), endpoint["addresses"])


def answer(query: dns.message.Message, zone: Zone) -> dns.message.Message:
    """The authoritative answer; REFUSED outside the zone, NOTIMP for other opcodes than QUERY."""
    reply = dns.message.make_response(query)
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        reply.set_rcode(dns.rcode.NOTIMP)
        return reply
    question = query.question[0]
    rdtype = question.rdtype
    name = dns.name.Name([label.lower() for label in question.name.labels])
    external = zone.external_addresses(name)
    if external is not None and question.rdclass == dns.rdataclass.IN:
        if texts := _addresses(external, rdtype):
            reply.answer.append(dns.rrset.from_text_list(question.name, TTL_S, "IN", rdtype, texts))
        return reply
    if not question.name.is_subdomain(ZONE) or question.rdclass != dns.rdataclass.IN:
        reply.set_rcode(dns.rcode.REFUSED)
        return reply
    reply.flags |= dns.flags.AA
    if name in zone.aliases:
        target = zone.aliases[name]
        alias = dns.rrset.from_text(question.name, TTL_S, "IN", "CNAME", target.to_text())
        reply.answer.append(alias)
        if texts := _addresses(zone.addresses.get(target, []), rdtype):
            reply.answer.append(dns.rrset.from_text_list(target, TTL_S, "IN", rdtype, texts))
        return reply
    if name not in zone.addresses:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif texts := _addresses(zone.addresses[name], rdtype):
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL_S, "IN", rdtype, texts))
        return reply
    reply.authority.append(dns.rrset.from_text(ZONE, TTL_S, "IN", "SOA", _SOA))
    return reply


def _addresses(ips: list[str], rdtype: dns.rdatatype.RdataType) -> list[str]:
    """The addresses of the queried family, in random order: clients use the first."""
    if rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return []
    matching = [ip for ip in ips if (":" in ip) == (rdtype == dns.rdatatype.AAAA)]
    return random.sample(matching, len(matching))
