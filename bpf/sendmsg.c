/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/sendmsg4, cgroup/sendmsg6: redirects datagrams that carry a destination of their own. The
 * connect hooks handle connected sockets. For a v4-mapped destination of an IPv6 socket the kernel
 * runs sendmsg4.
 */
#include "lib/dns.h"
#include "lib/udp_route.h"

static __always_inline int zt_udp_sendmsg(struct bpf_sock_addr *ctx, const int family,
					  const struct zt_endpoint *dst)
{
	struct zt_udp_token token = {};
	enum zt_action action;

	if (family == ZT_V6)
		zt_udp_record_delivery(ctx, dst);
	action = zt_udp_classify(ctx, dst, &token);
	if (action == ZT_REFUSE)
		return zt_refuse();
	if (action != ZT_REDIRECT)
		return ZT_ALLOW;
	if (family == ZT_V6) {
		ctx->msg_src_ip6[0] = bpf_htonl(ZT_TOKEN_NET6);
		ctx->msg_src_ip6[1] = 0;
		ctx->msg_src_ip6[2] = 0;
		ctx->msg_src_ip6[3] = zt_token_ip4(token.token);
	}
	zt_udp_set_proxy(ctx, family, dst, &token);
	return ZT_ALLOW;
}

static __always_inline int zt_sendmsg(struct bpf_sock_addr *ctx, const int family)
{
	struct zt_endpoint dst = {};
	__u8 loopback[16];
	int server;

	zt_get_addr(ctx, family, &dst);
	server = zt_dns_redirect(ctx, &dst);
	if (server == ZT_DNS_ERROR)
		return zt_refuse();
	if (server == ZT_DNS_NONE)
		return zt_udp_sendmsg(ctx, family, &dst);
	zt_loopback(loopback, dst.ip);
	zt_set_addr(ctx, family, loopback, bpf_htons(ZT_PORT_DNS + server));
	return ZT_ALLOW;
}

SEC("cgroup/sendmsg4")
int zt_sendmsg4(struct bpf_sock_addr *ctx)
{
	return zt_sendmsg(ctx, ZT_V4);
}

SEC("cgroup/sendmsg6")
int zt_sendmsg6(struct bpf_sock_addr *ctx)
{
	return zt_sendmsg(ctx, ZT_V6);
}
