/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a process can do after it was taken over by an image that it read: only what its job needs.
 *
 * First everything is named that will be opened, then the process enters, then it reads the first byte of an
 * image.  Afterwards nothing else can be opened, made, removed or executed, by name or through /proc, nor can
 * the process use TCP (unless that is allowed), signal others or look at their descriptors; what is open
 * stays open.  Of root's capabilities it keeps those that opening and creating disks takes.  There is no way
 * back, also not for threads and children.
 *
 * The kernel's Landlock does this, as far as that kernel knows how.  Where there is none the process enters
 * all the same, with capabilities dropped alone.
 */
#ifndef BLOCKMIG_STORAGE_SANDBOX_H
#define BLOCKMIG_STORAGE_SANDBOX_H

#include <glib.h>
#include <stdbool.h>

enum sandbox_rights {
    SANDBOX_READ = 1 << 0,    /* files and lists of names */
    SANDBOX_WRITE = 1 << 1,   /* into files that are there; their length, too */
    SANDBOX_CREATE = 1 << 2,  /* files and directories */
    SANDBOX_REMOVE = 1 << 3,  /* files; with CREATE also other names in the same directory */
    SANDBOX_EXECUTE = 1 << 5, /* programs, which are then as confined as this process */
    SANDBOX_ADMIN = 1 << 4,   /* of root, CAP_SYS_ADMIN is kept: there is something here that only it sees */
    SANDBOX_DEVICES =
        1 << 6, /* what devices in the directory can be asked; of root, what asking for reservations takes */
};

/* Allows nothing yet but what names in other encodings than UTF-8 are read with. */
struct sandbox *sandbox_new(void);
void sandbox_free(struct sandbox *sandbox); /* NULL is allowed */

/* The object that `path` leads to now, and if it is a directory all below it.  `rights`: of enum
 * sandbox_rights. What is not there cannot be allowed, which is no error. */
void sandbox_allow(struct sandbox *sandbox, const char *path, unsigned rights);
/* A file as an image: the directory that it really lies in as well, since its other files and its backing
 * files may lie there.  Of a device the device alone. */
void sandbox_allow_image(struct sandbox *sandbox, const char *path, unsigned rights);

/* TCP, for images that are named by a URI, and what it takes to find a host by its name. */
void sandbox_allow_network(struct sandbox *sandbox);
/* Who we are for an iSCSI target, and what we know that nobody else does. */
void sandbox_allow_iscsi(struct sandbox *sandbox);

/* Enters, for good.  The process must have no second thread yet: that one would stay outside.  Before, it is
 * remembered who has which files open (storage_file_users()), since that can not be seen any more.  REFUSED
 * if the kernel has Landlock but something went wrong. */
bool sandbox_enter(const struct sandbox *sandbox, GError **error);

/* "landlock-N", N being the version of the kernel's interface that is used, once this process has entered; or
 * "none". */
const char *sandbox_name(void);

typedef struct sandbox sandbox_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(sandbox_t, sandbox_free)

#endif
