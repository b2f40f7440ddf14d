/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/sendmsg, recvmsg: datagrams with an address of their own. Those of connected sockets pass
 * connect() instead. Queries to name servers come first, see dns.h; then what the mesh carries,
 * see udp.h.
 */
#include "dns.h"
#include "udp_dgram.h"

int zt_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct zt_sock to = {};
	int server;

	zt_map4(to.ip, ctx->user_ip4);
	to.port = (__be16)ctx->user_port;
	server = zt_dns_server(ctx, &to);
	if (server == ZT_DNS_FAILED)
		return zt_refuse();
	if (server >= 0) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = bpf_htons(ZT_PORT_DNS + server);
		return ZT_ALLOW;
	}
	return zt_udp_sendmsg4(ctx);
}

/* IPv4 destinations of an IPv6 socket pass zt_sendmsg4. */
int zt_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct zt_sock to = {};
	int server;

	zt_copy6(to.ip, ctx->user_ip6);
	to.port = (__be16)ctx->user_port;
	server = zt_dns_server(ctx, &to);
	if (server == ZT_DNS_FAILED)
		return zt_refuse();
	if (server >= 0) {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = bpf_htonl(1);
		ctx->user_port = bpf_htons(ZT_PORT_DNS + server);
		return ZT_ALLOW;
	}
	return zt_udp_sendmsg6(ctx);
}

int zt_recvmsg4(struct bpf_sock_addr *ctx)
{
	int resolver = zt_dns_resolver(ctx);

	if (resolver >= 0)
		zt_dns_read4(ctx, resolver);
	else if (!zt_dns_show4(ctx))
		zt_udp_recvmsg4(ctx);
	return ZT_ALLOW;
}

int zt_recvmsg6(struct bpf_sock_addr *ctx)
{
	int resolver = zt_dns_resolver(ctx);

	if (resolver >= 0)
		zt_dns_read6(ctx, resolver);
	else if (!zt_dns_show6(ctx))
		zt_udp_recvmsg6(ctx);
	return ZT_ALLOW;
}
