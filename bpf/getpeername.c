/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getpeername4, cgroup/getpeername6: the app sees the peer that it would see without the
 * proxy. accept() also runs this hook, so a server sees its actual client.
 */
#include "lib/dns.h"

static __always_inline int zt_getpeername(struct bpf_sock_addr *ctx, const int family)
{
	struct zt_sock *known = ctx->sk ? zt_sock_find(ctx->sk) : 0;

	if (known &&
	    (known->role == ZT_ROLE_REDIRECTED || known->role == ZT_ROLE_UPSTREAM_ACCEPTED) &&
	    zt_family_has(family, known->ip))
		zt_set_addr(ctx, family, known->ip, known->port);
	else
		zt_dns_restore_server(ctx, family);
	return ZT_ALLOW;
}

SEC("cgroup/getpeername4")
int zt_getpeername4(struct bpf_sock_addr *ctx)
{
	return zt_getpeername(ctx, ZT_V4);
}

SEC("cgroup/getpeername6")
int zt_getpeername6(struct bpf_sock_addr *ctx)
{
	return zt_getpeername(ctx, ZT_V6);
}
