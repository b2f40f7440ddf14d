/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Carried UDP, one datagram at a time: where an app sends it, from whom an app reads it. What
 * goes to a v4-mapped destination of an IPv6 socket is sent as IPv4 and read as IPv6.
 */
#ifndef ZT_UDP_DGRAM_H
#define ZT_UDP_DGRAM_H

#include "udp.h"

static __always_inline int zt_udp_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};
	enum zt_udp_way way;

	zt_remote4(ctx, &remote);
	way = zt_udp_classify(ctx, &remote, &peer);
	return zt_to_token4(ctx, way, &peer);
}

/* The true source of what came from a token. */
static __always_inline struct zt_udp_remote *zt_true_source(struct bpf_sock_addr *ctx, __be32 from)
{
	struct zt_udp_remote *remote;

	if (!zt_is_token_ip4(from))
		return 0;
	remote = zt_remote_of(bpf_get_netns_cookie(ctx), bpf_ntohl(from) & ZT_TOKEN_MASK);
	return remote && zt_is_mapped(remote->ip) ? remote : 0;
}

static __always_inline int zt_udp_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote *remote = zt_true_source(ctx, ctx->user_ip4);

	if (remote) {
		zt_udp_touch(bpf_get_netns_cookie(ctx), remote);
		ctx->user_ip4 = zt_word(remote->ip, 3);
		ctx->user_port = remote->port;
	}
	return ZT_ALLOW;
}

static __always_inline int zt_udp_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};
	enum zt_udp_way way;

	zt_udp_ct_proxy_delivery(ctx);
	zt_remote6(ctx, &remote);
	way = zt_udp_classify(ctx, &remote, &peer);
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way == ZT_UDP_CARRY) {
		ctx->msg_src_ip6[0] = bpf_htonl(ZT_TOKEN_NET6);
		ctx->msg_src_ip6[1] = 0;
		ctx->msg_src_ip6[2] = 0;
		ctx->msg_src_ip6[3] = zt_token_ip4(peer.token);
		zt_to_proxy6(ctx, &peer);
	}
	return ZT_ALLOW;
}

/* What the connected socket at `ip` and the context's port has dialled; false when it is none. */
static __always_inline int zt_dialled(struct bpf_sock_addr *ctx, const __u8 ip[16],
				      struct zt_udp_remote *remote)
{
	struct bpf_sock_tuple pair = {};
	struct zt_sock *known;
	struct bpf_sock *app;
	int found = 0;

	pair.ipv6.saddr[3] = bpf_htonl(1);
	pair.ipv6.sport = bpf_htons((__u16)ctx->sk->src_port);
	__builtin_memcpy(pair.ipv6.daddr, ip, 16);
	pair.ipv6.dport = (__be16)ctx->user_port;
	app = bpf_sk_lookup_udp(ctx, &pair, sizeof(pair.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!app)
		return 0;
	known = zt_socks.sk_storage_get(app, 0, 0);
	if (known && known->role == ZT_ROLE_REDIRECTED) {
		__builtin_memcpy(remote->ip, known->ip, 16);
		remote->port = known->port;
		found = 1;
	}
	bpf_sk_release(app);
	return found;
}

/* The proxy reads from a connected socket: show it the token of what that dialled. */
static __always_inline void zt_show_token6(struct bpf_sock_addr *ctx, const __u8 ip[16])
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_udp_pod *pod = zt_udp_pods.lookup(&netns);
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};

	if (!pod || !zt_dialled(ctx, ip, &remote) || !zt_peer_of(netns, pod, &remote, 0, &peer))
		return;
	ctx->user_ip6[0] = bpf_htonl(ZT_TOKEN_NET6);
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] = bpf_htonl(zt_is_local(ip) ? ZT_TOKEN_FROM_LOOPBACK : ZT_TOKEN_FROM_POD);
	ctx->user_ip6[3] = zt_token_ip4(peer.token);
}

static __always_inline void zt_show6(struct bpf_sock_addr *ctx, const __u8 ip[16], __be16 port)
{
	ctx->user_ip6[0] = zt_word(ip, 0);
	ctx->user_ip6[1] = zt_word(ip, 1);
	ctx->user_ip6[2] = zt_word(ip, 2);
	ctx->user_ip6[3] = zt_word(ip, 3);
	ctx->user_port = port;
}

/* IPv6 itself: a token, or the proxy's own address, from which connected sockets are answered. */
static __always_inline void zt_native6(struct bpf_sock_addr *ctx, const __u8 ip[16])
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known = sk ? zt_socks.sk_storage_get(sk, 0, 0) : 0;
	struct zt_udp_remote *remote;

	if (zt_is_token_ip6(ip)) {
		if (known && known->role == ZT_ROLE_PROXY)
			return;
		remote = zt_remote_of(bpf_get_netns_cookie(ctx),
				      bpf_ntohl(zt_word(ip, 3)) & ZT_TOKEN_MASK);
		if (remote && !zt_is_mapped(remote->ip)) {
			zt_udp_touch(bpf_get_netns_cookie(ctx), remote);
			zt_show6(ctx, remote->ip, remote->port);
		}
		return;
	}
	if (!known)
		return;
	if (known->role == ZT_ROLE_PROXY)
		zt_show_token6(ctx, ip);
	else if (known->role == ZT_ROLE_REDIRECTED && zt_is_local(ip) &&
		 (__be16)sk->dst_port == (__be16)ctx->user_port)
		zt_show6(ctx, known->ip, known->port);
}

static __always_inline int zt_udp_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote *remote;
	__u8 ip[16];

	zt_copy6(ip, ctx->user_ip6);
	if (!zt_is_mapped(ip)) {
		zt_native6(ctx, ip);
		return ZT_ALLOW;
	}
	remote = zt_true_source(ctx, zt_word(ip, 3));
	if (remote) {
		zt_udp_touch(bpf_get_netns_cookie(ctx), remote);
		ctx->user_ip6[3] = zt_word(remote->ip, 3);
		ctx->user_port = remote->port;
	}
	return ZT_ALLOW;
}

#endif
