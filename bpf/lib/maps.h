/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map, followed by the functions that access it. Only this file uses BCC's `map.lookup()`.
 *
 * A map is pinned under its full name; the kernel truncates the name that bpftool shows to 15
 * characters.
 */
#ifndef ZT_MAPS_H
#define ZT_MAPS_H

#include "abi.h"

#define ZT_RB_NO_WAKEUP 1 /* the agent polls: the app must not pay for waking it */

ZT_MAP("array", __u32, struct zt_meta, zt_meta, 1, 0);

/* Sockets */

ZT_MAP("sk_storage", int, struct zt_sock, zt_socks, 0, BPF_F_NO_PREALLOC);

static __always_inline struct zt_sock *zt_sock_find(struct bpf_sock *sk)
{
	return zt_socks.sk_storage_get(sk, 0, 0);
}

static __always_inline struct zt_sock *zt_sock_create(struct bpf_sock *sk)
{
	return zt_socks.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
}

/* Pods */

ZT_MAP("hash", __u64, struct zt_pod, zt_pods, ZT_MAX_PODS, 0);
ZT_MAP("hash", __u64, struct zt_pod_stats, zt_pod_stats, ZT_MAX_PODS, 0);
/* The inbound listener of a pod's address. */
ZT_MAP("sockhash", struct zt_addr, __u64, zt_listeners, ZT_MAX_LISTENERS, 0);

static __always_inline struct zt_pod *zt_pod_find(__u64 netns)
{
	return zt_pods.lookup(&netns);
}

static __always_inline struct zt_pod_stats *zt_pod_stats_find(__u64 netns)
{
	return zt_pod_stats.lookup(&netns);
}

/* The ports of gateway pods that are not captured; the agent adds and removes entries. */
ZT_MAP("hash", struct zt_gateway_port_key, struct zt_gateway_port, zt_gateway_ports,
       ZT_MAX_GATEWAY_PORTS, BPF_F_NO_PREALLOC);

static __always_inline struct zt_gateway_port *zt_gateway_port_find(
	struct zt_gateway_port_key *key)
{
	return zt_gateway_ports.lookup(key);
}

/* The caller releases the socket. */
static __always_inline struct bpf_sock *zt_listener_find(struct zt_addr *local)
{
	return (void *)zt_listeners.lookup(local);
}

/* The node */

ZT_MAP("hash", struct zt_addr, __u8, zt_node_addrs, ZT_MAX_NODE_ADDRS, 0);
/* The netns cookie of the node. 0: the node's processes are not below the attached cgroup, so only
 * addresses identify the node's own connections, such as probes. */
ZT_MAP("array", __u32, __u64, zt_node_netns, 1, 0);
/*
 * Connections of the node itself, from one of its addresses; the value is the socket's cookie. For
 * UDP, the source address is zero and the value is the time of the last datagram, in nanoseconds
 * of CLOCK_MONOTONIC.
 */
ZT_MAP("lru_hash", struct zt_four_tuple, __u64, zt_node_conns, ZT_MAX_NODE_CONNS, 0);
ZT_MAP("percpu_array", __u32, __u64, zt_stats, ZT_STAT_MAX, 0);
ZT_RINGBUF(zt_events, ZT_EVENTS_BYTES);

static __always_inline int zt_is_node_addr(struct zt_addr *addr)
{
	return zt_node_addrs.lookup(addr) != 0;
}

static __always_inline __u64 zt_node_netns_cookie(void)
{
	__u32 zero = 0;
	__u64 *cookie = zt_node_netns.lookup(&zero);

	return cookie ? *cookie : 0;
}

static __always_inline __u64 *zt_node_conn_find(struct zt_four_tuple *key)
{
	return zt_node_conns.lookup(key);
}

static __always_inline int zt_node_conn_add(struct zt_four_tuple *key, __u64 owner)
{
	return zt_node_conns.update(key, &owner);
}

static __always_inline void zt_node_conn_delete(struct zt_four_tuple *key)
{
	zt_node_conns.delete(key);
}

static __always_inline void zt_count(__u32 stat)
{
	__u64 *count = zt_stats.lookup(&stat);

	if (count)
		*count += 1;
}

static __always_inline void zt_emit_event(struct zt_event *event)
{
	if (zt_events.ringbuf_output(event, sizeof(*event), ZT_RB_NO_WAKEUP))
		zt_count(ZT_STAT_EVENT_LOST);
}

/* Connections between apps and the proxy */

ZT_MAP("hash", struct zt_flow_key, struct zt_flow, zt_flows, ZT_MAX_FLOWS, BPF_F_NO_PREALLOC);

static __always_inline struct zt_flow *zt_flow_find(struct zt_flow_key *key)
{
	return zt_flows.lookup(key);
}

static __always_inline int zt_flow_add(struct zt_flow_key *key, struct zt_flow *flow)
{
	return zt_flows.update(key, flow);
}

static __always_inline void zt_flow_delete(struct zt_flow_key *key)
{
	zt_flows.delete(key);
}

/* Same-node bypass */

ZT_MAP("array", __u32, struct zt_policy_epoch, zt_policy_epoch, 2, 0);
ZT_MAP("lru_hash", struct zt_same_node_key, struct zt_same_node_allow, zt_same_node_allow,
       ZT_MAX_SAME_NODE_ALLOW, 0);
ZT_MAP("hash", struct zt_four_tuple, struct zt_same_node_conn, zt_same_node_conns,
       ZT_MAX_SAME_NODE_CONNS, BPF_F_NO_PREALLOC);

static __always_inline struct zt_policy_epoch *zt_policy_epoch_find(__u32 index)
{
	return zt_policy_epoch.lookup(&index);
}

static __always_inline struct zt_same_node_allow *zt_same_node_allow_find(
	struct zt_same_node_key *key)
{
	return zt_same_node_allow.lookup(key);
}

static __always_inline struct zt_same_node_conn *zt_same_node_conn_find(struct zt_four_tuple *key)
{
	return zt_same_node_conns.lookup(key);
}

static __always_inline int zt_same_node_conn_add(struct zt_four_tuple *key,
						 struct zt_same_node_conn *conn)
{
	return zt_same_node_conns.update(key, conn);
}

static __always_inline void zt_same_node_conn_delete(struct zt_four_tuple *key)
{
	zt_same_node_conns.delete(key);
}

/* DNS */

ZT_MAP("sk_storage", int, struct zt_dns_slots, zt_dns_server_slots, 0, BPF_F_NO_PREALLOC);
ZT_MAP("lru_hash", struct zt_dns_pending_key, struct zt_addr, zt_dns_pending, ZT_MAX_DNS_PENDING,
       0);

static __always_inline struct zt_dns_slots *zt_dns_slots_find(struct bpf_sock *sk)
{
	return zt_dns_server_slots.sk_storage_get(sk, 0, 0);
}

static __always_inline struct zt_dns_slots *zt_dns_slots_create(struct bpf_sock *sk)
{
	return zt_dns_server_slots.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline struct zt_addr *zt_dns_pending_find(struct zt_dns_pending_key *key)
{
	return zt_dns_pending.lookup(key);
}

static __always_inline void zt_dns_pending_set(struct zt_dns_pending_key *key,
					       struct zt_addr *server)
{
	zt_dns_pending.update(key, server);
}

/* Redirected UDP */

ZT_MAP("hash", struct zt_endpoint, __u8, zt_udp_routes, ZT_MAX_UDP_ROUTES, BPF_F_NO_PREALLOC);
ZT_MAP("hash", __u64, struct zt_udp_pod, zt_udp_pods, ZT_MAX_PODS, 0);
ZT_MAP("hash", __u64, struct zt_udp_stats, zt_udp_stats, ZT_MAX_PODS, 0);
/* Remote endpoint to token, and token to remote endpoint. */
ZT_MAP("lru_hash", struct zt_udp_remote_key, struct zt_udp_token, zt_udp_tokens, ZT_MAX_UDP_TOKENS,
       0);
ZT_MAP("lru_hash", struct zt_udp_token_key, struct zt_endpoint, zt_udp_remotes, ZT_MAX_UDP_TOKENS,
       0);

static __always_inline __u8 *zt_udp_route_find(struct zt_endpoint *remote)
{
	return zt_udp_routes.lookup(remote);
}

static __always_inline struct zt_udp_pod *zt_udp_pod_find(__u64 netns)
{
	return zt_udp_pods.lookup(&netns);
}

static __always_inline struct zt_udp_stats *zt_udp_stats_find(__u64 netns)
{
	return zt_udp_stats.lookup(&netns);
}

static __always_inline struct zt_udp_token *zt_udp_token_find(struct zt_udp_remote_key *key)
{
	return zt_udp_tokens.lookup(key);
}

static __always_inline int zt_udp_token_set(struct zt_udp_remote_key *key,
					    struct zt_udp_token *token)
{
	return zt_udp_tokens.update(key, token);
}

static __always_inline struct zt_endpoint *zt_udp_remote_find(struct zt_udp_token_key *key)
{
	return zt_udp_remotes.lookup(key);
}

static __always_inline int zt_udp_remote_set(struct zt_udp_token_key *key,
					     const struct zt_endpoint *remote)
{
	return zt_udp_remotes.update(key, (struct zt_endpoint *)remote);
}

/* Native UDP */

ZT_MAP("lru_hash", struct zt_four_tuple, struct zt_udp_ct_entry, zt_udp_conntrack,
       ZT_MAX_UDP_CONNTRACK, 0);
ZT_MAP("lru_hash", struct zt_udp_decision_key, struct zt_udp_decision, zt_udp_decisions,
       ZT_MAX_UDP_DECISIONS, 0);
/* The agent's socket that receives datagrams to a pod's address without a decision. */
ZT_MAP("sockhash", struct zt_addr, __u64, zt_udp_authz_socks, ZT_MAX_LISTENERS, 0);

static __always_inline struct zt_udp_ct_entry *zt_udp_ct_find(const struct zt_four_tuple *key)
{
	return zt_udp_conntrack.lookup((struct zt_four_tuple *)key);
}

static __always_inline void zt_udp_ct_set(struct zt_four_tuple *key, struct zt_udp_ct_entry *entry)
{
	zt_udp_conntrack.update(key, entry);
}

static __always_inline struct zt_udp_decision *zt_udp_decision_find(struct zt_udp_decision_key *key)
{
	return zt_udp_decisions.lookup(key);
}

/* The caller releases the socket. */
static __always_inline struct bpf_sock *zt_udp_authz_sock_find(struct zt_addr *local)
{
	return (void *)zt_udp_authz_socks.lookup(local);
}

#endif
