/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * UDP to enrolled pods of other nodes, and to services whose endpoints are enrolled, goes to a
 * socket of the proxy inside the pod. A token stands for the address that the app meant; each
 * datagram carries it, both ways:
 *
 *   IPv4  app ─▶ 127.64.0.0 + token, the proxy's port              ─▶ proxy
 *         app ◀─ from there                                        ◀─ proxy
 *   IPv6  app ─▶ [::1], the proxy's port, from fd5a:7464::token    ─▶ proxy
 *         app ◀─ from fd5a:7464::token, the proxy's port           ◀─ proxy
 *
 * IPv6 has one loopback address, but a source may be any. A connected IPv6 socket has a true
 * source, as it wants to be answered; what it dialled is looked up when the proxy reads from it,
 * and shown to the proxy as fd5a:7464::1:0:token (the socket is at [::1]) or ::2:0:token (at the
 * pod's address).
 */
#ifndef ZT_UDP_H
#define ZT_UDP_H

#include "udp_talk.h"

#define ZT_TOKEN_ATTEMPTS 4

enum zt_udp_way { ZT_UDP_PASS, ZT_UDP_REFUSE, ZT_UDP_CARRY };

static __always_inline int zt_same_remote(const struct zt_udp_remote *a,
					  const struct zt_udp_remote *b)
{
	return zt_same_ip(a->ip, b->ip) && a->port == b->port;
}

/* What a token stands for in a pod. */
static __always_inline struct zt_udp_remote *zt_remote_of(__u64 netns, __u32 token)
{
	struct zt_udp_token_key key = {};

	key.netns = netns;
	key.token = token;
	return zt_udp_remotes.lookup(&key);
}

/* The port of a worker that is there: `wish` if it is one, else one by the token. 0: none. */
static __always_inline __be16 zt_udp_worker(const struct zt_udp_pod *pod, __be16 wish, __u32 token)
{
	__u32 workers = pod->workers;

	if (!workers)
		return 0;
	for (int i = 0; wish && i < ZT_MAX_UDP_WORKERS; i++) /* unused ones are zero */
		if (pod->ports[i] == wish)
			return wish;
	return pod->ports[(token % workers) & (ZT_MAX_UDP_WORKERS - 1)];
}

/* A token that stands for nothing yet, by chance: a pod's tokens are few among all there are. */
static __always_inline int zt_new_token(__u64 netns, const struct zt_udp_remote *remote,
					__u32 *token)
{
	struct zt_udp_token_key key = {};

	key.netns = netns;
	for (int attempt = 0; attempt < ZT_TOKEN_ATTEMPTS; attempt++) {
		key.token = bpf_get_prandom_u32() & ZT_TOKEN_MASK;
		if (zt_udp_remotes.lookup(&key))
			continue;
		*token = key.token;
		return !zt_udp_remotes.update(&key, (struct zt_udp_remote *)remote);
	}
	return 0;
}

/*
 * The token for a remote address, made when there is none, and who carries it. `via`: the worker
 * that carries it from now on, as the remote spoke first; 0 leaves it with the present one. Both
 * maps may lose entries at any time, so one is believed only when the other agrees.
 */
static __always_inline int zt_peer_of(__u64 netns, const struct zt_udp_pod *pod,
				      const struct zt_udp_remote *remote, __be16 via,
				      struct zt_udp_token *peer)
{
	struct zt_udp_remote_key key = {};
	struct zt_udp_remote *stands_for = 0;
	struct zt_udp_token *known;
	__be16 before = 0;

	key.netns = netns;
	key.remote = *remote;
	known = zt_udp_tokens.lookup(&key);
	if (known) {
		*peer = *known;
		before = peer->worker_port;
		stands_for = zt_remote_of(netns, peer->token);
	}
	if (!stands_for || !zt_same_remote(stands_for, remote)) {
		before = 0;
		if (!zt_new_token(netns, remote, &peer->token))
			return 0;
	}
	peer->worker_port = zt_udp_worker(pod, via ? via : peer->worker_port, peer->token);
	if (!peer->worker_port)
		return 0;
	if (via == peer->worker_port) {
		peer->redirected_ns = bpf_ktime_get_ns();
		before = 0;
	}
	return before == peer->worker_port || !zt_udp_tokens.update(&key, peer);
}

/* Whether a remote has spoken to the pod by the proxy, so that it is to be answered that way: a
 * service's client on this node, to whom UDP is native else. */
static __always_inline struct zt_udp_token *zt_carried_peer(__u64 netns,
							   const struct zt_udp_remote *remote)
{
	struct zt_udp_remote_key key = {};
	struct zt_udp_token *peer;

	key.netns = netns;
	key.remote = *remote;
	peer = zt_udp_tokens.lookup(&key);
	if (!peer || !peer->redirected_ns || bpf_ktime_get_ns() - peer->redirected_ns > ZT_UDP_IDLE_NS)
		return 0;
	return peer;
}

/* An app reads what came from a remote by the proxy. */
static __always_inline void zt_udp_touch(__u64 netns, const struct zt_udp_remote *remote)
{
	struct zt_udp_token *peer = zt_carried_peer(netns, remote);

	if (peer)
		peer->redirected_ns = bpf_ktime_get_ns();
}

/* What policy and the peers make of UDP to an address: enum zt_udp_route. */
static __always_inline __u8 zt_udp_dst_of(const struct zt_udp_remote *remote)
{
	struct zt_udp_remote any = *remote;
	__u8 *found = zt_udp_routes.lookup(&any);

	if (!found) {
		any.port = 0;
		found = zt_udp_routes.lookup(&any);
	}
	return found ? *found : ZT_UDP_ROUTE_NATIVE;
}

/* The agent logs it; a pod that floods is told of now and then. */
static __always_inline void zt_tell_strict(__u64 netns, const struct zt_pod *pod, __be16 port,
					   const struct zt_udp_remote *to,
					   struct zt_udp_stats *stats)
{
	__u64 now = bpf_ktime_get_ns();
	struct zt_event event = {};

	__sync_fetch_and_add(&stats->strict, 1);
	if (now - stats->last_event_ns < ZT_UDP_EVENT_INTERVAL_NS)
		return;
	stats->last_event_ns = now;
	if (zt_is_mapped(to->ip))
		zt_map4(event.key.src, pod->ip4);
	else
		__builtin_memcpy(event.key.src, pod->ip6, 16);
	__builtin_memcpy(event.key.dst, to->ip, 16);
	event.key.sport = port;
	event.key.dport = to->port;
	event.netns = netns;
	event.close_reason = ZT_CLOSE_UDP_STRICT;
	if (zt_events.ringbuf_output(&event, sizeof(event), ZT_RB_NO_WAKEUP))
		zt_count(ZT_STAT_EVENT_LOST);
}

/* What becomes of a datagram or a connect() to `remote`. */
static __always_inline enum zt_udp_way zt_udp_classify(struct bpf_sock_addr *ctx,
						    const struct zt_udp_remote *remote,
						    struct zt_udp_token *peer)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_pod *pod = zt_pods.lookup(&netns);
	struct zt_udp_stats *stats;
	struct zt_udp_pod *ours;
	struct zt_sock *known;
	__be16 port;
	int carried;
	__u8 dst;

	if (ctx->protocol != ZT_IPPROTO_UDP || !remote->port || !pod || !ctx->sk)
		return ZT_UDP_PASS;
	known = zt_socks.sk_storage_get(ctx->sk, 0, 0);
	if (known && known->role == ZT_ROLE_PROXY)
		return ZT_UDP_PASS;
	port = bpf_htons((__u16)ctx->sk->src_port);
	dst = zt_udp_dst_of(remote);
	if (dst == ZT_UDP_ROUTE_NATIVE && !zt_carried_peer(netns, remote)) {
		zt_udp_ct_outgoing(netns, pod, port, remote);
		return ZT_UDP_PASS;
	}
	stats = zt_udp_stats.lookup(&netns);
	if (dst == ZT_UDP_ROUTE_STRICT) {
		if (stats)
			zt_tell_strict(netns, pod, port, remote, stats);
		return ZT_UDP_REFUSE;
	}
	ours = zt_udp_pods.lookup(&netns);
	carried = ours && zt_peer_of(netns, ours, remote, 0, peer);
	if (stats)
		__sync_fetch_and_add(carried ? &stats->redirected : &stats->refused, 1);
	return carried ? ZT_UDP_CARRY : ZT_UDP_REFUSE;
}

/* connect(): the socket remembers what it dialled, for getpeername and getsockname. */
static __always_inline enum zt_udp_way zt_udp_dial(struct bpf_sock_addr *ctx,
						   const struct zt_udp_remote *remote,
						   struct zt_udp_token *peer)
{
	enum zt_udp_way way = zt_udp_classify(ctx, remote, peer);
	struct zt_sock *known;

	if (!ctx->sk)
		return way;
	known = zt_socks.sk_storage_get(ctx->sk, 0,
					way == ZT_UDP_CARRY ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (way == ZT_UDP_CARRY && !known)
		return ZT_UDP_REFUSE;
	if (!known || known->role == ZT_ROLE_PROXY)
		return way;
	known->role = ZT_ROLE_NONE;
	if (way == ZT_UDP_CARRY) {
		__builtin_memcpy(known->ip, remote->ip, 16);
		known->port = remote->port;
		known->role = ZT_ROLE_REDIRECTED;
	}
	return way;
}

/* The socket dials what is not carried. */
static __always_inline void zt_udp_forget(struct bpf_sock_addr *ctx)
{
	struct zt_sock *known = ctx->sk ? zt_socks.sk_storage_get(ctx->sk, 0, 0) : 0;

	if (known && known->role == ZT_ROLE_REDIRECTED)
		known->role = ZT_ROLE_NONE;
}

/* Where the app wants to send. */
static __always_inline void zt_remote4(struct bpf_sock_addr *ctx, struct zt_udp_remote *remote)
{
	zt_map4(remote->ip, ctx->user_ip4);
	remote->port = (__be16)ctx->user_port;
}

static __always_inline void zt_remote6(struct bpf_sock_addr *ctx, struct zt_udp_remote *remote)
{
	zt_copy6(remote->ip, ctx->user_ip6);
	remote->port = (__be16)ctx->user_port;
}

/* To the proxy, by the token as the destination. */
static __always_inline int zt_to_token4(struct bpf_sock_addr *ctx, enum zt_udp_way way,
					const struct zt_udp_token *peer)
{
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way == ZT_UDP_CARRY) {
		ctx->user_ip4 = zt_token_ip4(peer->token);
		ctx->user_port = peer->worker_port;
	}
	return ZT_ALLOW;
}

/* To the proxy, which is at [::1]; the caller sees to the token. */
static __always_inline void zt_to_proxy6(struct bpf_sock_addr *ctx, const struct zt_udp_token *peer)
{
	ctx->user_ip6[0] = 0;
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] = 0;
	ctx->user_ip6[3] = bpf_htonl(1);
	ctx->user_port = peer->worker_port;
}

static __always_inline int zt_udp_connect4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};
	enum zt_udp_way way;

	zt_remote4(ctx, &remote);
	way = zt_udp_dial(ctx, &remote, &peer);
	return zt_to_token4(ctx, way, &peer);
}

static __always_inline int zt_udp_connect6(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};
	enum zt_udp_way way;

	zt_remote6(ctx, &remote);
	way = zt_udp_dial(ctx, &remote, &peer);
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way != ZT_UDP_CARRY)
		return ZT_ALLOW;
	if (!zt_is_mapped(remote.ip)) {
		zt_to_proxy6(ctx, &peer);
		return ZT_ALLOW;
	}
	ctx->user_ip6[3] = zt_token_ip4(peer.token);
	ctx->user_port = peer.worker_port;
	return ZT_ALLOW;
}

#endif
