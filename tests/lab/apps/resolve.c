/* SPDX-License-Identifier: Apache-2.0 */
/*
 * getaddrinfo() of whatever C library this is compiled with: `resolve NAME...` prints for each name
 * the addresses, or the error. musl's sends A and AAAA from one socket to all servers at once.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

static void show(const struct addrinfo *one)
{
	char text[INET6_ADDRSTRLEN];
	const void *ip;

	if (one->ai_family == AF_INET)
		ip = &((const struct sockaddr_in *)one->ai_addr)->sin_addr;
	else
		ip = &((const struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
	printf(" %s", inet_ntop(one->ai_family, ip, text, sizeof(text)));
}

int main(int count, char **names)
{
	const struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };

	for (int at = 1; at < count; at++) {
		struct addrinfo *found = 0;
		int error = getaddrinfo(names[at], "80", &hints, &found);

		printf("%s", names[at]);
		if (error)
			printf(" %s", error == EAI_NONAME ? "NONAME" : error == EAI_AGAIN ? "AGAIN" : "OTHER");
		for (const struct addrinfo *one = found; one; one = one->ai_next)
			show(one);
		printf("\n");
		if (found)
			freeaddrinfo(found);
	}
	return 0;
}
