/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Native UDP of captured pods: who spoke first, and may they. What a pod sends is noted, so that
 * the answer is known for one and the destination on this node knows which pod it comes from; what
 * comes in first is let in by verdict, or given to the agent, who judges it.
 */
#ifndef ZT_UDP_TALK_H
#define ZT_UDP_TALK_H

#include "udp_token.h"

enum zt_udp_entry { ZT_UDP_IN, ZT_UDP_DENIED, ZT_UDP_UNKNOWN };

static __always_inline int zt_is_fresh(const struct zt_udp_ct_entry *talk)
{
	return bpf_ktime_get_ns() - talk->seen_ns < ZT_UDP_IDLE_NS;
}

/* A pod sends `port` -> `to`, in the clear. */
static __always_inline void zt_udp_ct_outgoing(__u64 netns, const struct zt_pod *pod, __be16 port,
					 const struct zt_udp_remote *to)
{
	struct zt_udp_ct_entry now = { .netns = netns, .seen_ns = bpf_ktime_get_ns() };
	struct zt_four_tuple key = {};
	struct zt_udp_ct_entry *talk;

	if (zt_is_local(to->ip))
		return;
	__builtin_memcpy(key.src, to->ip, 16);
	key.sport = to->port;
	key.dport = port;
	if (zt_is_mapped(to->ip))
		zt_map4(key.dst, pod->ip4);
	else
		__builtin_memcpy(key.dst, pod->ip6, 16);
	talk = port ? zt_udp_conntrack.lookup(&key) : 0;
	if (talk && zt_is_fresh(talk))
		return; /* an answer */
	__builtin_memcpy(key.src, key.dst, 16);
	__builtin_memcpy(key.dst, to->ip, 16);
	key.sport = port;
	key.dport = to->port;
	talk = zt_udp_conntrack.lookup(&key);
	if (talk && talk->netns == netns)
		talk->seen_ns = now.seen_ns;
	else
		zt_udp_conntrack.update(&key, &now);
}

/* The proxy brings an app a datagram from a token of IPv6. Those addresses are nobody's, but the
 * kernel reports the pod's own device for what never left it, so who forges one from outside must
 * be told apart: this is noted as it is sent, and looked for at once. */
static __always_inline void zt_token_key6(struct zt_four_tuple *key, const __u8 token[16],
					  const __u8 to[16], __be16 port)
{
	__builtin_memcpy(key->src, token, 16);
	__builtin_memcpy(key->dst, to, 16);
	key->sport = port;
}

static __always_inline void zt_udp_ct_proxy_delivery(struct bpf_sock_addr *ctx)
{
	struct zt_udp_ct_entry now = { .seen_ns = bpf_ktime_get_ns() };
	struct zt_four_tuple key = {};
	__u8 token[16], to[16];

	zt_copy6(token, ctx->msg_src_ip6);
	if (!zt_is_token_ip6(token) || !ctx->sk)
		return;
	zt_copy6(to, ctx->user_ip6);
	zt_token_key6(&key, token, to, bpf_htons((__u16)ctx->sk->src_port));
	zt_udp_conntrack.update(&key, &now);
}

static __always_inline int zt_udp_from_proxy(const __u8 token[16], const __u8 to[16], __be16 port)
{
	struct zt_four_tuple key = {};
	struct zt_udp_ct_entry *talk;

	zt_token_key6(&key, token, to, port);
	talk = zt_udp_conntrack.lookup(&key);
	return talk && bpf_ktime_get_ns() - talk->seen_ns < ZT_UDP_PROXY_DELIVERY_NS;
}

/* Whether a datagram answers what the pod has sent; `key` is the other way round. */
static __always_inline int zt_is_answer(struct zt_four_tuple *key)
{
	struct zt_udp_ct_entry *talk = zt_udp_conntrack.lookup(key);
	__u64 netns;

	if (!talk || !talk->netns || !zt_is_fresh(talk))
		return 0;
	netns = talk->netns;
	return zt_pods.lookup(&netns) != 0;
}

/* The captured pod of this node that a datagram comes from, as far as it was seen to send; 0. */
static __always_inline __u64 zt_udp_source_pod(const struct zt_four_tuple *key)
{
	struct zt_udp_ct_entry *talk = zt_udp_conntrack.lookup((struct zt_four_tuple *)key);
	struct zt_four_tuple any = *key;
	__u64 netns = talk ? talk->netns : 0;

	if (!netns) {
		any.sport = 0;
		talk = zt_udp_conntrack.lookup(&any);
		netns = talk ? talk->netns : 0;
	}
	return netns && zt_pods.lookup(&netns) ? netns : 0;
}

/* It is let in, or judged: what the pod sends back is an answer. */
static __always_inline void zt_udp_ct_reply(struct zt_four_tuple *key, __u64 netns)
{
	struct zt_udp_ct_entry now = { .netns = netns, .seen_ns = bpf_ktime_get_ns() };
	struct zt_udp_ct_entry *talk = zt_udp_conntrack.lookup(key);

	if (talk)
		talk->seen_ns = now.seen_ns;
	else
		zt_udp_conntrack.update(key, &now);
}

static __always_inline enum zt_udp_entry zt_udp_decision_lookup(struct zt_udp_decision_key *key)
{
	struct zt_udp_decision *verdict = zt_udp_decisions.lookup(key);
	__u32 which = ZT_UDP_EPOCH;
	struct zt_policy_epoch *lease = zt_policy_epoch.lookup(&which);

	if (!verdict || !lease || !lease->epoch || verdict->epoch != lease->epoch)
		return ZT_UDP_UNKNOWN;
	__sync_fetch_and_add(&verdict->datagrams, 1);
	return verdict->allowed ? ZT_UDP_IN : ZT_UDP_DENIED;
}

/* Whether a datagram that is nobody's connected socket's may come in to `key->dst`. */
static __always_inline enum zt_udp_entry zt_udp_enters(struct zt_four_tuple *key)
{
	struct zt_udp_decision_key asked = {};
	struct zt_four_tuple back = {};
	enum zt_udp_entry entry;
	__u64 netns = 0;

	__builtin_memcpy(back.src, key->dst, 16);
	__builtin_memcpy(back.dst, key->src, 16);
	back.sport = key->dport;
	back.dport = key->sport;
	if (zt_is_answer(&back))
		return ZT_UDP_IN;
	__builtin_memcpy(asked.dst, key->dst, 16);
	entry = zt_udp_decision_lookup(&asked); /* everybody? */
	if (entry == ZT_UDP_UNKNOWN) {
		netns = zt_udp_source_pod(key);
		asked.netns = netns;
		__builtin_memcpy(asked.src, key->src, 16);
		asked.port = key->dport;
		entry = zt_udp_decision_lookup(&asked);
	}
	if (entry != ZT_UDP_DENIED)
		zt_udp_ct_reply(key, netns);
	return entry;
}

#endif
