/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tokens: addresses inside a pod that represent remote endpoints. A token identifies the endpoint
 * in both directions between the app and the proxy:
 *
 *   IPv4  app -> 127.64.0.0 + token, worker port                     -> proxy
 *         app <- from the same address                               <- proxy
 *   IPv6  app -> [::1], worker port, from fd5a:7464::token           -> proxy
 *         app <- from fd5a:7464::token, worker port                  <- proxy
 *
 * IPv6 has one loopback address, but any address can be a source. A connected IPv6 socket uses a
 * real source address, because it must receive replies. When the proxy reads from such a socket,
 * recvmsg looks up the destination that the socket dialed and shows it as fd5a:7464::1:0:token (the
 * socket is bound to [::1]) or fd5a:7464::2:0:token (to the pod's address).
 */
#ifndef ZT_UDP_TOKEN_H
#define ZT_UDP_TOKEN_H

#include "addr.h"
#include "maps.h"

#define ZT_TOKEN_NET4 0x7f400000 /* 127.64.0.0/10, host order: loopback that nothing else uses */
#define ZT_TOKEN_MASK 0x003fffff
#define ZT_TOKEN_NET6 0xfd5a7464 /* first word, host order: a unique local prefix */
#define ZT_TOKEN_FROM_LOOPBACK 1 /* third word */
#define ZT_TOKEN_FROM_POD 2
#define ZT_TOKEN_ATTEMPTS 4

static __always_inline __be32 zt_token_ip4(__u32 token)
{
	return bpf_htonl(ZT_TOKEN_NET4 | (token & ZT_TOKEN_MASK));
}

static __always_inline int zt_is_token_ip4(__be32 ip4)
{
	return (bpf_ntohl(ip4) & ~ZT_TOKEN_MASK) == ZT_TOKEN_NET4;
}

static __always_inline int zt_is_token_ip6(const __u8 ip[16])
{
	return zt_word(ip, 0) == bpf_htonl(ZT_TOKEN_NET6) && !zt_word(ip, 1) &&
	       zt_is_token_ip4(zt_word(ip, 3));
}

/* Tokens of either family have the IPv4 form in the last word. */
static __always_inline __u32 zt_token_of(const __u8 ip[16])
{
	return bpf_ntohl(zt_word(ip, 3)) & ZT_TOKEN_MASK;
}

static __always_inline struct zt_endpoint *zt_token_remote(__u64 netns, __u32 token)
{
	struct zt_udp_token_key key = {};

	key.netns = netns;
	key.token = token;
	return zt_udp_remote_find(&key);
}

/* Allocates a random unused token. A pod uses few of the four million, so collisions are rare. */
static __always_inline int zt_token_allocate(__u64 netns, const struct zt_endpoint *remote,
					     __u32 *token)
{
	struct zt_udp_token_key key = {};

	key.netns = netns;
	for (int attempt = 0; attempt < ZT_TOKEN_ATTEMPTS; attempt++) {
		key.token = bpf_get_prandom_u32() & ZT_TOKEN_MASK;
		if (zt_udp_remote_find(&key))
			continue;
		*token = key.token;
		return !zt_udp_remote_set(&key, remote);
	}
	return 0;
}

/* The port of a live worker: `preferred` if it is one, else one selected by token. 0: none. */
static __always_inline __be16 zt_select_worker(const struct zt_udp_pod *pod, __be16 preferred,
					       __u32 token)
{
	__u32 workers = pod->workers;

	if (!workers)
		return 0;
	for (int i = 0; preferred && i < ZT_MAX_UDP_WORKERS; i++)
		if (pod->ports[i] == preferred)
			return preferred;
	return pod->ports[(token % workers) & (ZT_MAX_UDP_WORKERS - 1)];
}

/*
 * Looks up or allocates the token of a remote endpoint, and the worker that forwards its datagrams.
 * `new_worker` is the worker that now forwards them because the remote sent first; 0 retains the
 * present one. Either map can evict entries, so a token is valid only if both maps agree. Returns
 * whether `token` is valid.
 */
static __always_inline int zt_token_for(__u64 netns, const struct zt_udp_pod *pod,
					const struct zt_endpoint *remote, __be16 new_worker,
					struct zt_udp_token *token)
{
	struct zt_udp_remote_key key = {};
	struct zt_endpoint *represented = 0;
	struct zt_udp_token *known;
	__be16 stored_worker = 0;

	key.netns = netns;
	key.remote = *remote;
	known = zt_udp_token_find(&key);
	if (known) {
		*token = *known;
		stored_worker = token->worker_port;
		represented = zt_token_remote(netns, token->token);
	}
	if (!represented || !zt_same_endpoint(represented, remote)) {
		stored_worker = 0;
		if (!zt_token_allocate(netns, remote, &token->token))
			return 0;
	}
	token->worker_port =
		zt_select_worker(pod, new_worker ? new_worker : token->worker_port, token->token);
	if (!token->worker_port)
		return 0;
	if (new_worker == token->worker_port) {
		token->redirected_ns = bpf_ktime_get_ns();
		stored_worker = 0;
	}
	return stored_worker == token->worker_port || !zt_udp_token_set(&key, token);
}

/*
 * The token of a remote that recently sent to the pod through the proxy. Replies to it are
 * redirected even without a route, for example to a service's client on this node.
 */
static __always_inline struct zt_udp_token *zt_redirected_token(__u64 netns,
								const struct zt_endpoint *remote)
{
	struct zt_udp_remote_key key = {};
	struct zt_udp_token *token;

	key.netns = netns;
	key.remote = *remote;
	token = zt_udp_token_find(&key);
	if (!token || !token->redirected_ns ||
	    bpf_ktime_get_ns() - token->redirected_ns > ZT_UDP_IDLE_NS)
		return 0;
	return token;
}

/* An app reads a datagram that a remote sent through the proxy. */
static __always_inline void zt_udp_touch(__u64 netns, const struct zt_endpoint *remote)
{
	struct zt_udp_token *token = zt_redirected_token(netns, remote);

	if (token)
		token->redirected_ns = bpf_ktime_get_ns();
}

#endif
