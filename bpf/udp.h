/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * UDP to enrolled pods of other nodes goes to a socket of the proxy inside the pod. A token stands
 * for the address that the app meant; each datagram carries it, both ways:
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

#include "zt_lib.h"

#define ZT_TOKEN_NET 0x7f400000 /* 127.64.0.0/10, host order; loopback that nobody uses */
#define ZT_TOKEN_MASK 0x003fffff
#define ZT_TOKEN_ATTEMPTS 4

#define ZT_TOKEN_NET6 0xfd5a7464 /* the first 32 bits, host order; a unique local prefix */
#define ZT_TOKEN_FROM_LOOPBACK 1 /* the second 64 bits' first word */
#define ZT_TOKEN_FROM_POD 2

enum zt_udp_way { ZT_UDP_PASS, ZT_UDP_REFUSE, ZT_UDP_CARRY };

static __always_inline __be32 zt_token_ip4(__u32 token)
{
	return bpf_htonl(ZT_TOKEN_NET | (token & ZT_TOKEN_MASK));
}

static __always_inline int zt_is_token_ip4(__be32 ip4)
{
	return (bpf_ntohl(ip4) & ~ZT_TOKEN_MASK) == ZT_TOKEN_NET;
}

static __always_inline int zt_is_token_ip6(const __u8 ip[16])
{
	return zt_word(ip, 0) == bpf_htonl(ZT_TOKEN_NET6) && !zt_word(ip, 1) &&
	       zt_is_token_ip4(zt_word(ip, 3));
}

static __always_inline int zt_same_remote(const struct zt_udp_remote *a,
					  const struct zt_udp_remote *b)
{
	return zt_word(a->ip, 0) == zt_word(b->ip, 0) && zt_word(a->ip, 1) == zt_word(b->ip, 1) &&
	       zt_word(a->ip, 2) == zt_word(b->ip, 2) && zt_word(a->ip, 3) == zt_word(b->ip, 3) &&
	       a->port == b->port;
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
	for (int i = 0; wish && i < ZT_MAX_UDP_PORTS; i++) /* unused ones are zero */
		if (pod->ports[i] == wish)
			return wish;
	return pod->ports[(token % workers) & (ZT_MAX_UDP_PORTS - 1)];
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
 * that carries it from now on; 0 leaves it with the present one. Both maps may lose entries at
 * any time, so one is believed only when the other agrees.
 */
static __always_inline int zt_peer_of(__u64 netns, const struct zt_udp_pod *pod,
				      const struct zt_udp_remote *remote, __be16 via,
				      struct zt_udp_peer *peer)
{
	struct zt_udp_remote_key key = {};
	struct zt_udp_remote *stands_for = 0;
	struct zt_udp_peer *known;
	__be16 before = 0;

	key.netns = netns;
	key.remote = *remote;
	known = zt_udp_peers.lookup(&key);
	if (known) {
		*peer = *known;
		before = peer->via;
		stands_for = zt_remote_of(netns, peer->token);
	}
	if (!stands_for || !zt_same_remote(stands_for, remote)) {
		before = 0;
		if (!zt_new_token(netns, remote, &peer->token))
			return 0;
	}
	peer->via = zt_udp_worker(pod, via ? via : peer->via, peer->token);
	if (!peer->via)
		return 0;
	return before == peer->via || !zt_udp_peers.update(&key, peer);
}

/* What becomes of a datagram or a connect() to `remote`. */
static __always_inline enum zt_udp_way zt_udp_judge(struct bpf_sock_addr *ctx,
						    const struct zt_udp_remote *remote,
						    struct zt_udp_peer *peer)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_udp_stats *stats;
	struct zt_udp_pod *pod;
	struct zt_sock *known;
	int carried;

	if (ctx->protocol != ZT_IPPROTO_UDP || !remote->port || !zt_pods.lookup(&netns))
		return ZT_UDP_PASS;
	if (!zt_udp_dsts.lookup((struct zt_addr *)remote->ip) || !ctx->sk)
		return ZT_UDP_PASS;
	known = zt_socks.sk_storage_get(ctx->sk, 0, 0);
	if (known && known->role == ZT_ROLE_OWN)
		return ZT_UDP_PASS;
	pod = zt_udp_pods.lookup(&netns);
	carried = pod && zt_peer_of(netns, pod, remote, 0, peer);
	stats = zt_udp_stats.lookup(&netns);
	if (stats)
		__sync_fetch_and_add(carried ? &stats->redirected : &stats->refused, 1);
	return carried ? ZT_UDP_CARRY : ZT_UDP_REFUSE;
}

/* connect(): the socket remembers what it dialled, for getpeername and getsockname. */
static __always_inline enum zt_udp_way zt_udp_dial(struct bpf_sock_addr *ctx,
						   const struct zt_udp_remote *remote,
						   struct zt_udp_peer *peer)
{
	enum zt_udp_way way = zt_udp_judge(ctx, remote, peer);
	struct zt_sock *known;

	if (!ctx->sk)
		return way;
	known = zt_socks.sk_storage_get(ctx->sk, 0,
					way == ZT_UDP_CARRY ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (way == ZT_UDP_CARRY && !known)
		return ZT_UDP_REFUSE;
	if (!known || known->role == ZT_ROLE_OWN)
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

static __always_inline int zt_udp_connect4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_peer peer = {};
	enum zt_udp_way way;

	zt_remote4(ctx, &remote);
	way = zt_udp_dial(ctx, &remote, &peer);
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way == ZT_UDP_CARRY) {
		ctx->user_ip4 = zt_token_ip4(peer.token);
		ctx->user_port = peer.via;
	}
	return ZT_ALLOW;
}

static __always_inline int zt_udp_connect6(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_peer peer = {};
	enum zt_udp_way way;

	zt_remote6(ctx, &remote);
	way = zt_udp_dial(ctx, &remote, &peer);
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way == ZT_UDP_CARRY) {
		if (zt_is_mapped(remote.ip)) {
			ctx->user_ip6[3] = zt_token_ip4(peer.token);
		} else {
			ctx->user_ip6[0] = 0;
			ctx->user_ip6[1] = 0;
			ctx->user_ip6[2] = 0;
			ctx->user_ip6[3] = bpf_htonl(1);
		}
		ctx->user_port = peer.via;
	}
	return ZT_ALLOW;
}

#endif
