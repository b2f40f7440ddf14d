/* SPDX-License-Identifier: Apache-2.0 */
/* Connects with IORING_OP_CONNECT, prints the result, and waits for the peer to close. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct io_uring_params params = { 0 };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	struct sockaddr_in four = { .sin_family = AF_INET };
	struct sockaddr *to = (struct sockaddr *)&four;
	socklen_t size = sizeof(four);
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	unsigned *tail, *array, *head;
	char *sq, *cq, byte;
	int ring, fd, result;

	if (argc != 3)
		return 2;
	if (inet_pton(AF_INET6, argv[1], &six.sin6_addr) == 1) {
		six.sin6_port = htons(atoi(argv[2]));
		to = (struct sockaddr *)&six;
		size = sizeof(six);
	} else {
		inet_pton(AF_INET, argv[1], &four.sin_addr);
		four.sin_port = htons(atoi(argv[2]));
	}
	ring = syscall(__NR_io_uring_setup, 4, &params);
	if (ring < 0) {
		puts(errno == ENOSYS || errno == EPERM ? "unsupported" : strerror(errno));
		fflush(stdout);
		return 1;
	}
	sq = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned),
		  PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(*cqe), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	sqe = mmap(0, params.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
		return 3;
	fd = socket(to->sa_family, SOCK_STREAM, 0);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_CONNECT;
	sqe->fd = fd;
	sqe->addr = (unsigned long)to;
	sqe->off = size;
	tail = (unsigned *)(sq + params.sq_off.tail);
	array = (unsigned *)(sq + params.sq_off.array);
	array[*tail & (params.sq_entries - 1)] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return 4;
	head = (unsigned *)(cq + params.cq_off.head);
	cqe = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
	result = cqe[*head & (params.cq_entries - 1)].res;
	puts(result == 0 ? "connected" : strerror(-result));
	fflush(stdout);
	while (result == 0 && read(fd, &byte, 1) > 0)
		;
	return result != 0;
}
