/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/connect4, connect6: an app's connect() in an enrolled pod goes to the proxy's listener
 * inside that pod, or is left alone when a verdict says that the proxy has authorised it. The pod
 * is known by the netns cookie of the socket, not of the process: a socket can't leave its netns,
 * a process can. What goes to port 53 goes to the proxy's resolver instead, see dns.h; datagrams
 * that the mesh carries, see udp.h.
 */
#include "dns.h"
#include "udp.h"

enum zt_capture { ZT_PASS, ZT_REFUSE, ZT_REDIRECT, ZT_DIRECT };

static __always_inline enum zt_capture zt_classify_tcp(struct bpf_sock_addr *ctx, struct zt_sock *dialled,
						struct zt_sock *known, struct zt_pod_stats *stats)
{
	if (known && known->role == ZT_ROLE_PROXY) {
		if (stats)
			__sync_fetch_and_add(&stats->proxy_originated, 1);
		return ZT_PASS;
	}
	if (zt_is_our_port(dialled->port))
		return ZT_REFUSE;
	if (zt_is_local(dialled->ip)) {
		if (known)
			known->role = ZT_ROLE_NONE; /* a socket that is used a second time */
		if (stats)
			__sync_fetch_and_add(&stats->local, 1);
		return ZT_PASS;
	}
	if (ctx->protocol != ZT_IPPROTO_TCP)
		return ZT_REFUSE; /* a stream we can't carry must not pass in the clear */
	if (zt_is_link_local(dialled->ip))
		return ZT_REFUSE; /* its scope would be lost on the way */
	return ZT_REDIRECT;
}

static __always_inline enum zt_capture zt_capture_dgram(struct bpf_sock_addr *ctx,
							const struct zt_sock *dialled, __be16 *to)
{
	int server = zt_dns_server(ctx, dialled);

	*to = bpf_htons(ZT_PORT_DNS + server);
	if (server >= 0)
		zt_udp_forget(ctx);
	if (server == ZT_DNS_FAILED)
		return ZT_REFUSE;
	return server == ZT_DNS_NOT ? ZT_PASS : ZT_REDIRECT;
}

/* `to` is the port inside the pod to go to when the verdict is to redirect. */
static __always_inline enum zt_capture zt_capture(struct bpf_sock_addr *ctx,
						  struct zt_sock *dialled, __be16 *to)
{
	struct zt_pod_stats *stats;
	struct zt_sock *known;
	enum zt_capture verdict;
	struct zt_pod *pod;
	__u64 netns;

	if (ctx->type == ZT_SOCK_DGRAM)
		return zt_capture_dgram(ctx, dialled, to);
	if (ctx->type != ZT_SOCK_STREAM)
		return ZT_PASS;
	netns = bpf_get_netns_cookie(ctx);
	pod = zt_pods.lookup(&netns);
	if (!pod)
		return ZT_PASS;
	if (!ctx->sk)
		return ZT_REFUSE;
	stats = zt_pod_stats.lookup(&netns);
	known = zt_socks.sk_storage_get(ctx->sk, 0, 0);
	verdict = zt_classify_tcp(ctx, dialled, known, stats);
	if (verdict == ZT_REDIRECT) {
		if (zt_is_dns(dialled->port) && !zt_is_pods_own(pod, dialled->ip))
			*to = bpf_htons(ZT_PORT_DNS);
		else if (zt_same_node_allowed(netns, dialled->ip, dialled->port))
			verdict = ZT_DIRECT;
		dialled->role = verdict == ZT_DIRECT ? ZT_ROLE_SAME_NODE : ZT_ROLE_REDIRECTED;
		known = zt_socks.sk_storage_get(ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (known)
			*known = *dialled;
		else
			verdict = ZT_REFUSE;
	}
	if (stats && verdict == ZT_REDIRECT)
		__sync_fetch_and_add(*to == bpf_htons(ZT_PORT_DNS) ? &stats->dns : &stats->redirected, 1);
	if (stats && verdict == ZT_DIRECT)
		__sync_fetch_and_add(&stats->same_node_bypass, 1);
	if (stats && verdict == ZT_REFUSE)
		__sync_fetch_and_add(&stats->refused, 1);
	return verdict;
}

int zt_connect4(struct bpf_sock_addr *ctx)
{
	struct zt_sock dialled = {};
	__be16 to = bpf_htons(ZT_PORT_OUTBOUND);
	enum zt_capture verdict;

	zt_map4(dialled.ip, ctx->user_ip4);
	dialled.port = (__be16)ctx->user_port;
	verdict = zt_capture(ctx, &dialled, &to);
	if (verdict == ZT_PASS && ctx->type == ZT_SOCK_DGRAM)
		return zt_udp_connect4(ctx);
	if (verdict == ZT_REFUSE)
		return zt_refuse();
	if (verdict == ZT_REDIRECT) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = to;
	}
	return ZT_ALLOW;
}

int zt_connect6(struct bpf_sock_addr *ctx)
{
	struct zt_sock dialled = {};
	__be16 to = bpf_htons(ZT_PORT_OUTBOUND);
	enum zt_capture verdict;

	zt_copy6(dialled.ip, ctx->user_ip6);
	dialled.port = (__be16)ctx->user_port;
	verdict = zt_capture(ctx, &dialled, &to);
	if (verdict == ZT_PASS && ctx->type == ZT_SOCK_DGRAM)
		return zt_udp_connect6(ctx);
	if (verdict == ZT_REFUSE)
		return zt_refuse();
	if (verdict == ZT_REDIRECT) {
		int mapped = zt_is_mapped(dialled.ip);

		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = mapped ? bpf_htonl(0xffff) : 0;
		ctx->user_ip6[3] = bpf_htonl(mapped ? 0x7f000001 : 1);
		ctx->user_port = to;
	}
	return ZT_ALLOW;
}
