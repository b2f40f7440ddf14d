/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connection tracking and admission for native UDP of captured pods. Outgoing datagrams are
 * tracked, so that replies are admitted and a destination on this node can identify the source pod.
 * Other incoming datagrams need an allow decision; without a decision they go to the agent, which
 * authorizes them.
 */
#ifndef ZT_UDP_CONNTRACK_H
#define ZT_UDP_CONNTRACK_H

#include "udp_token.h"

enum zt_udp_admission { ZT_UDP_ADMIT, ZT_UDP_DENY, ZT_UDP_UNDECIDED };

static __always_inline int zt_udp_ct_is_live(const struct zt_udp_ct_entry *entry)
{
	return bpf_ktime_get_ns() - entry->seen_ns < ZT_UDP_IDLE_NS;
}

/*
 * Whether a pod sends from a listener port of its ingress gateway. Such datagrams need no entry:
 * what comes back is admitted anyway, and senders with forged addresses must not evict entries.
 */
static __always_inline int zt_udp_is_from_gateway(const __u8 src[16], __be16 port)
{
	struct zt_gateway_port_key key = {};

	if (!port) /* not bound yet; the key with port 0 has another meaning, see dns.h */
		return 0;
	__builtin_memcpy(key.ip, src, 16);
	key.port = port;
	key.protocol = ZT_IPPROTO_UDP;
	return zt_gateway_port_find(&key) != 0;
}

/* A pod sends a native datagram from `port` to `dst`. */
static __always_inline void zt_udp_ct_outgoing(__u64 netns, const struct zt_pod *pod, __be16 port,
					       const struct zt_endpoint *dst)
{
	struct zt_udp_ct_entry new = { .netns = netns, .seen_ns = bpf_ktime_get_ns() };
	struct zt_four_tuple key = {};
	struct zt_udp_ct_entry *entry;
	__u8 src[16];

	if (zt_is_local(dst->ip))
		return;
	zt_pod_ip(pod, dst->ip, src);
	zt_set_tuple(&key, dst->ip, dst->port, src, port);
	entry = port ? zt_udp_ct_find(&key) : 0;
	if (entry && zt_udp_ct_is_live(entry))
		return; /* a reply */
	zt_set_tuple(&key, src, port, dst->ip, dst->port);
	entry = zt_udp_ct_find(&key);
	if (entry && entry->netns == netns)
		entry->seen_ns = new.seen_ns;
	else if (!zt_udp_is_from_gateway(src, port))
		zt_udp_ct_set(&key, &new);
}

/* Records that the pod received a datagram, so that what it sends back is a reply. */
static __always_inline void zt_udp_ct_reply(struct zt_four_tuple *key, __u64 netns)
{
	struct zt_udp_ct_entry new = { .netns = netns, .seen_ns = bpf_ktime_get_ns() };
	struct zt_udp_ct_entry *entry = zt_udp_ct_find(key);

	if (entry)
		entry->seen_ns = new.seen_ns;
	else
		zt_udp_ct_set(key, &new);
}

/* Whether a datagram is a reply; `key` is the opposite direction. */
static __always_inline int zt_udp_is_reply(const struct zt_four_tuple *key)
{
	struct zt_udp_ct_entry *entry = zt_udp_ct_find(key);

	return entry && entry->netns && zt_udp_ct_is_live(entry) && zt_pod_find(entry->netns);
}

/* The cookie of the captured pod of this node that was seen to send the datagram; 0: none. */
static __always_inline __u64 zt_udp_source_pod(const struct zt_four_tuple *key)
{
	struct zt_udp_ct_entry *entry = zt_udp_ct_find(key);
	struct zt_four_tuple unbound = *key;
	__u64 netns = entry ? entry->netns : 0;

	if (!netns) {
		unbound.sport = 0;
		entry = zt_udp_ct_find(&unbound);
		netns = entry ? entry->netns : 0;
	}
	return netns && zt_pod_find(netns) ? netns : 0;
}

/*
 * Whether the pod sent a datagram from its own address to its own address. For such a datagram, the
 * kernel reports the device of the address, as it does for one that arrives there.
 */
static __always_inline int zt_udp_from_self(const struct zt_four_tuple *key)
{
	struct zt_four_tuple opposite = {};
	struct zt_pod *pod;
	__u64 netns = zt_udp_source_pod(key);

	if (netns) {
		pod = zt_pod_find(netns);
		return pod && zt_is_pod_ip(pod, key->dst);
	}
	zt_set_tuple(&opposite, key->dst, key->dport, key->src, key->sport);
	return zt_udp_is_reply(&opposite);
}

/*
 * A process of the node sends a datagram. The source address may not be known yet; the port is 0
 * for a socket that connects before it is bound.
 */
static __always_inline void zt_node_udp_sent(__be16 port, const struct zt_endpoint *dst)
{
	struct zt_four_tuple key = {};
	__u64 now = bpf_ktime_get_ns();
	__u64 *seen_ns;

	if (zt_is_local(dst->ip))
		return;
	key.sport = port;
	__builtin_memcpy(key.dst, dst->ip, 16);
	key.dport = dst->port;
	seen_ns = zt_node_conn_find(&key);
	if (seen_ns)
		*seen_ns = now;
	else
		zt_node_conn_add(&key, now);
}

/* Whether a process of the node sent the datagram; the caller has checked the source address. */
static __always_inline int zt_node_udp_is_known(const struct zt_four_tuple *datagram)
{
	__u64 now = bpf_ktime_get_ns();
	struct zt_four_tuple key = {};
	__u64 *seen_ns;

	key.sport = datagram->sport;
	__builtin_memcpy(key.dst, datagram->dst, 16);
	key.dport = datagram->dport;
	seen_ns = zt_node_conn_find(&key);
	if (!seen_ns) {
		key.sport = 0;
		seen_ns = zt_node_conn_find(&key);
	}
	if (!seen_ns || now - *seen_ns >= ZT_UDP_IDLE_NS)
		return 0;
	*seen_ns = now;
	return 1;
}

/*
 * The proxy delivers an IPv6 datagram from a token address to an app. Nothing owns these addresses,
 * but for a datagram that never left the pod the kernel reports the pod's own device. sendmsg
 * therefore records the delivery, and sk_lookup rejects a forged datagram: any process can bind an
 * IPv6 socket to such an address (IPV6_FREEBIND), but only the proxy's sockets have its role.
 */
static __always_inline void zt_udp_record_delivery(struct bpf_sock_addr *ctx,
						   const struct zt_endpoint *app)
{
	struct zt_udp_ct_entry new = { .seen_ns = bpf_ktime_get_ns() };
	struct zt_four_tuple key = {};
	struct zt_sock *sender;
	__u8 token[16];

	zt_copy6(token, ctx->msg_src_ip6);
	if (!zt_is_token_ip6(token) || !ctx->sk)
		return;
	sender = zt_sock_find(ctx->sk);
	if (!sender || sender->role != ZT_ROLE_PROXY)
		return;
	zt_set_tuple(&key, token, zt_local_port(ctx->sk), app->ip, 0);
	zt_udp_ct_set(&key, &new);
}

static __always_inline int zt_udp_from_proxy(const __u8 token[16], __be16 port, const __u8 app[16])
{
	struct zt_four_tuple key = {};
	struct zt_udp_ct_entry *entry;

	zt_set_tuple(&key, token, port, app, 0);
	entry = zt_udp_ct_find(&key);
	return entry && bpf_ktime_get_ns() - entry->seen_ns < ZT_UDP_PROXY_DELIVERY_NS;
}

static __always_inline enum zt_udp_admission zt_udp_decision(struct zt_udp_decision_key *key)
{
	struct zt_udp_decision *decision = zt_udp_decision_find(key);
	struct zt_policy_epoch *current = zt_policy_epoch_find(ZT_UDP_EPOCH);

	if (!decision || !current || !current->epoch || decision->epoch != current->epoch)
		return ZT_UDP_UNDECIDED;
	__sync_fetch_and_add(&decision->datagrams, 1);
	return decision->allowed ? ZT_UDP_ADMIT : ZT_UDP_DENY;
}

/* Whether a datagram that no connected socket receives is admitted to `key->dst`. */
static __always_inline enum zt_udp_admission zt_udp_admit(struct zt_four_tuple *key)
{
	struct zt_udp_decision_key wanted = {};
	struct zt_four_tuple opposite = {};
	enum zt_udp_admission admission;
	__u64 netns = 0;

	zt_set_tuple(&opposite, key->dst, key->dport, key->src, key->sport);
	if (zt_udp_is_reply(&opposite))
		return ZT_UDP_ADMIT;
	__builtin_memcpy(wanted.dst, key->dst, 16);
	admission = zt_udp_decision(&wanted); /* for all senders */
	if (admission == ZT_UDP_UNDECIDED) {
		netns = zt_udp_source_pod(key);
		wanted.netns = netns;
		__builtin_memcpy(wanted.src, key->src, 16);
		wanted.port = key->dport;
		admission = zt_udp_decision(&wanted);
	}
	if (admission != ZT_UDP_DENY)
		zt_udp_ct_reply(key, netns);
	return admission;
}

#endif
