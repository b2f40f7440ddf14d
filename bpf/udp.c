/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/sendmsg4, recvmsg4, recvmsg6: datagrams of sockets that are not connected. A v4-mapped
 * destination of an IPv6 socket passes through sendmsg4, its answers through recvmsg6.
 */
#include "zt_udp.h"

int zt_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote remote = {};
	struct zt_udp_peer peer = {};
	enum zt_udp_way way;

	zt_remote4(ctx, &remote);
	way = zt_udp_judge(ctx, &remote, &peer);
	if (way == ZT_UDP_REFUSE)
		return zt_refuse();
	if (way == ZT_UDP_CARRY) {
		ctx->user_ip4 = zt_token_ip4(peer.token);
		ctx->user_port = peer.via;
	}
	return ZT_ALLOW;
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

int zt_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote *remote = zt_true_source(ctx, ctx->user_ip4);

	if (remote) {
		ctx->user_ip4 = zt_word(remote->ip, 3);
		ctx->user_port = remote->port;
	}
	return ZT_ALLOW;
}

int zt_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct zt_udp_remote *remote;
	__u8 ip[16];

	zt_copy6(ip, ctx->user_ip6);
	if (!zt_is_mapped(ip))
		return ZT_ALLOW;
	remote = zt_true_source(ctx, zt_word(ip, 3));
	if (remote) {
		ctx->user_ip6[3] = zt_word(remote->ip, 3);
		ctx->user_port = remote->port;
	}
	return ZT_ALLOW;
}
