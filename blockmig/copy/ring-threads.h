/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pool of threads beneath the ring.  Only ring.c uses it. */
#ifndef BLOCKMIG_COPY_RING_THREADS_H
#define BLOCKMIG_COPY_RING_THREADS_H

#include "blockmig/copy/ring.h"

struct ring_threads;

struct ring_threads *ring_threads_new(unsigned threads, GError **error);
void ring_threads_free(struct ring_threads *threads);
/* Readable when ring_threads_take() has something. */
int ring_threads_fd(const struct ring_threads *threads);
/* One turn of a read or write; the whole of anything else. */
void ring_threads_submit(struct ring_threads *threads, struct ring_op *op);
/* The turn is over, wherever it was done; from any thread. */
void ring_threads_finish(struct ring_threads *threads, struct ring_op *op);
/* Everything that has finished, as a list in the order of completion; clears the descriptor. */
struct ring_op *ring_threads_take(struct ring_threads *threads);

/* Can O_DIRECT take the rest of this request? */
bool ring_op_is_direct(const struct ring_op *op);

#endif
