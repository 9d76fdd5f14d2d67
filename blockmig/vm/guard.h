/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The pause guard: a small process of our own program that sleeps while we live.  If we die while the guest
 * is stopped, it goes on with our connection to the monitor, brings all devices to one side, and resumes the
 * guest; a frozen guest it thaws.
 *
 * Start it before the pause, for its start takes time; arm it before each stop, disarm it after each resume:
 *
 *     guard_start()  ... guard_arm()  vm_pause()  ... guard_merged()  vm_pivot()  vm_resume()  guard_disarm()
 *
 * Until guard_merged() the devices belong to `from`: the target lacks the last delta.  After it the guest is
 * resumed on `to` if all of them are there, else on `from`, where nothing is missing as long as the guest is
 * stopped.  So a program must not change what is under `from` while it is armed.
 *
 * The guard has a session of its own, ignores the signals that end programs, and has nothing of ours open but
 * the connection.  What it does stands in its log.  It ends with us, or soon after.
 */
#ifndef BLOCKMIG_VM_GUARD_H
#define BLOCKMIG_VM_GUARD_H

#include "blockmig/vm/vm.h"

struct guard;

struct guard_device {
    const char *qdev;      /* vm_disk.qdev */
    const char *from, *to; /* the two image nodes that it may be on; `to` need not be open yet */
};

/* A program that starts guards is also what they run: its main() must ask this first, and return what
 * guard_main() says. */
bool guard_wanted(int argc, char **argv);
int guard_main(char **argv);

/* `log` is appended to, and made when there is something to say.  The connection must be vm's for as long as
 * the guard lives. */
struct guard *guard_start(struct vm *vm, const char *log, GError **error);
/*
 * Returns when the guard is ready to act; on failure (REFUSED: there is no living guard) the machine must not
 * be stopped.  Only for a machine that runs.
 *
 * `limit` in milliseconds, 0 for none: if it is not disarmed by then, this process hangs (in a write to a
 * dead datastore, say); the guard ends it with SIGKILL and takes over.
 */
bool guard_arm(struct guard *guard, const struct guard_device *devices, unsigned count, unsigned limit,
               GError **error);
/* The machine stood still before we stopped it: it is brought to one side, but not resumed. */
bool guard_stay(struct guard *guard, GError **error);
/* The targets hold everything now, durably and compared. */
bool guard_merged(struct guard *guard, GError **error);
/* Fails if the guard has died meanwhile, which does no harm any more. */
bool guard_disarm(struct guard *guard, GError **error);
/* Around vm_freeze() and vm_thaw(): as armed, for the guest's file systems. */
bool guard_freezing(struct guard *guard, GError **error);
bool guard_thawed(struct guard *guard, GError **error);
/* Ends the guard.  If it is armed still, it takes over as if we had died, and this waits until it is done;
 * `vm` can only be closed after that. */
void guard_stop(struct guard *guard);
pid_t guard_pid(const struct guard *guard);

typedef struct guard guard_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(guard_t, guard_stop)

#endif
