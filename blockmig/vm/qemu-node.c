/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that QEMU opens for us, and the snapshot that puts one on top of each disk. */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"
#include "formats/storage.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_SUFFIX "-file"

static bool need_command(struct qmp *qmp, const char *command, GError **error)
{
    GError *fault = NULL;

    if (qmp_has_command(qmp, command, &fault))
        return true;
    if (fault)
        g_propagate_error(error, fault);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "this QEMU has no \"%s\"", command);
    return false;
}

static bool need_value(struct qmp *qmp, const char *command, const char *argument, const char *value,
                       GError **error)
{
    GError *fault = NULL;

    if (qmp_has_value(qmp, command, argument, value, &fault))
        return true;
    if (fault)
        g_propagate_error(error, fault);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "this QEMU's \"%s\" has no \"%s\": \"%s\"",
                    command, argument, value);
    return false;
}

bool qemu_can_pivot(struct vm *vm, GError **error)
{
    static const char *const commands[] = {
        "blockdev-add", "blockdev-del", "blockdev-snapshot", "blockdev-reopen",         "blockdev-mirror",
        "block-commit", "transaction",  "query-jobs",        "query-named-block-nodes", "job-dismiss",
    };
    struct qmp *qmp = qemu_of(vm)->qmp;

    for (guint i = 0; i < G_N_ELEMENTS(commands); i++)
        if (!need_command(qmp, commands[i], error))
            return false;
    return need_value(qmp, "blockdev-mirror", "sync", "none", error) &&
           need_value(qmp, "blockdev-add", "driver", "qcow2", error);
}

static json_t *cache_of(const struct vm_node *node)
{
    return json_pack("{s:b, s:b}", "direct", node->direct, "no-flush", node->no_flush);
}

static bool has_backing(const char *format)
{
    return strcmp(format, "qcow2") == 0 || strcmp(format, "qcow") == 0 || strcmp(format, "qed") == 0 ||
           strcmp(format, "vmdk") == 0;
}

/* QEMU refuses detect-zeroes=unmap without discard=unmap. */
static const char *discard_of(const struct vm_node *node)
{
    return node->discard || g_strcmp0(node->detect_zeroes, "unmap") == 0 ? "unmap" : "ignore";
}

/* Of the file below the image. */
static json_t *file_arguments(const struct vm_node *node, const char *filename)
{
    return json_pack("{s:s, s:s, s:s, s:o}", "driver", node->block_device ? "host_device" : "file",
                     "filename", filename, "discard", discard_of(node), "cache", cache_of(node));
}

/* Of the connection below it. */
static json_t *connection_arguments(struct qmp *qmp, const struct vm_node *node, const char *name,
                                    GError **error)
{
    json_t *arguments = qemu_uri_arguments(qmp, node->filename, error);

    if (!arguments)
        return NULL;
    json_object_set_new(arguments, "node-name", json_string(name));
    json_object_set_new(arguments, "read-only", json_false()); /* it may be committed into */
    json_object_set_new(arguments, "discard", json_string(discard_of(node)));
    json_object_set_new(arguments, "cache", cache_of(node));
    return arguments;
}

/* The arguments of blockdev-add; `file` (taken over) is the file's node or its arguments.  "backing" is
 * always said where there could be one: a name in a header is not opened because it stands there. */
static json_t *node_arguments(const struct vm_node *node, const char *backing, json_t *file)
{
    json_t *arguments = json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:o}", "driver", node->format, "node-name",
                                  node->name, "discard", discard_of(node), "detect-zeroes",
                                  node->detect_zeroes ? node->detect_zeroes : "off", "read-only",
                                  node->read_only, "cache", cache_of(node), "file", file);

    if (arguments && has_backing(node->format))
        json_object_set_new(arguments, "backing", backing ? json_string(backing) : json_null());
    return arguments;
}

static bool blockdev_add(struct qmp *qmp, json_t *arguments, GError **error)
{
    if (arguments)
        return qmp_do(qmp, "blockdev-add", arguments, QMP_TIMEOUT, error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "file name is not UTF-8: QMP cannot say it");
    return false;
}

static bool add_by_name(struct qmp *qmp, const struct vm_node *node, GError **error)
{
    json_t *file = file_arguments(node, node->filename);

    if (file)
        json_object_set_new(file, "read-only", json_boolean(node->read_only));
    return blockdev_add(qmp, node_arguments(node, node->backing, file), error);
}

static void file_node_name(const char *node, char name[VM_NODE_NAME_MAX + 1])
{
    g_snprintf(name, VM_NODE_NAME_MAX + 1, "%s" FILE_SUFFIX, node);
}

static bool is_writable(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_ACCMODE) == O_RDWR;
}

/* Writable if the descriptor is, so that it is never opened again. */
static json_t *fdset_arguments(const struct vm_node *node, const char *name, const char *filename)
{
    json_t *arguments = file_arguments(node, filename);

    json_object_set_new(arguments, "node-name", json_string(name));
    json_object_set_new(arguments, "read-only",
                        json_boolean(!node->handed_over && !is_writable(*node->descriptor)));
    return arguments;
}

static bool check_name(const struct vm_node *node, GError **error)
{
    bool two = node->descriptor || storage_name_is_uri(node->filename);
    size_t most = VM_NODE_NAME_MAX - (two ? strlen(FILE_SUFFIX) : 0);

    if (strlen(node->name) <= most)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "node name \"%s\" has more than %zu bytes",
                node->name, most);
    return false;
}

static char *hand_over(struct qmp *qmp, const struct vm_node *node, GError **error)
{
    if (node->read_only || is_writable(*node->descriptor))
        return qemu_fdset_add(qmp, node->name, *node->descriptor, error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "its descriptor is not open for writing");
    return NULL;
}

static bool add_by_descriptor(struct qmp *qmp, const struct vm_node *node, GError **error)
{
    g_autofree char *filename = node->handed_over ? g_strdup(node->handed_over) : hand_over(qmp, node, error);
    char name[VM_NODE_NAME_MAX + 1];

    if (!filename)
        return false;
    file_node_name(node->name, name);
    if (blockdev_add(qmp, fdset_arguments(node, name, filename), error)) {
        if (blockdev_add(qmp, node_arguments(node, node->backing, json_string(name)), error))
            return true;
        qmp_do(qmp, "blockdev-del", json_pack("{s:s}", "node-name", name), QMP_TIMEOUT, NULL);
    }
    if (!node->handed_over)
        qemu_fdset_remove(qmp, node->name, NULL);
    return false;
}

static bool connect_to(struct qmp *qmp, const struct vm_node *node, GError **error)
{
    char name[VM_NODE_NAME_MAX + 1];
    json_t *arguments;
    bool ok;

    file_node_name(node->name, name);
    arguments = connection_arguments(qmp, node, name, error);
    ok = arguments && blockdev_add(qmp, json_incref(arguments), error);
    qemu_uri_forget_secret(qmp, arguments);
    json_decref(arguments);
    return ok;
}

static bool add_by_uri(struct qmp *qmp, const struct vm_node *node, GError **error)
{
    char name[VM_NODE_NAME_MAX + 1];

    file_node_name(node->name, name);
    if (!node->handed_over && !connect_to(qmp, node, error))
        return false;
    if (blockdev_add(qmp, node_arguments(node, node->backing, json_string(name)), error))
        return true;
    qmp_do(qmp, "blockdev-del", json_pack("{s:s}", "node-name", name), QMP_TIMEOUT, NULL);
    return false;
}

static bool opened(const struct vm_node *node, bool ok, GError **error)
{
    if (!ok)
        g_prefix_error(error, "opening %s as \"%s\": ", node->filename, node->name);
    return ok;
}

bool qemu_add_node(struct vm *vm, const struct vm_node *node, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;

    return check_name(node, error) &&
           opened(node,
                  storage_name_is_uri(node->filename) ? add_by_uri(qmp, node, error)
                  : node->descriptor                  ? add_by_descriptor(qmp, node, error)
                                                      : add_by_name(qmp, node, error),
                  error);
}

bool qemu_hand_over(struct vm *vm, const struct vm_node *node, char **name, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    bool by_uri = storage_name_is_uri(node->filename);

    *name = NULL;
    if (!check_name(node, error))
        return false;
    if (!by_uri)
        *name = hand_over(qmp, node, error);
    else if (connect_to(qmp, node, error))
        *name = g_strdup(node->filename);
    return opened(node, *name != NULL, error);
}

/* blockdev-reopen wants every option again, or it falls back to the default.  Several nodes are changed in
 * one transaction. */
bool qemu_set_backings(struct vm *vm, const struct vm_rebase *disks, unsigned count, GError **error)
{
    json_t *options = json_array();

    for (unsigned i = 0; i < count; i++) {
        char name[VM_NODE_NAME_MAX + 1];

        file_node_name(disks[i].node.name, name);
        json_array_append_new(options, node_arguments(&disks[i].node, disks[i].backing, json_string(name)));
    }
    if (qmp_do(qemu_of(vm)->qmp, "blockdev-reopen", json_pack("{s:o}", "options", options), QMP_TIMEOUT,
               error))
        return true;
    g_prefix_error(error, "backing of \"%s\"%s becomes \"%s\": ", disks[0].node.name,
                   count > 1 ? " and others" : "", disks[0].backing ? disks[0].backing : "none");
    return false;
}

/* *there is false if no node has this name. */
static bool node_exists(struct qmp *qmp, const char *node, bool *there, GError **error)
{
    g_autoptr(json_t) nodes =
        qmp_command(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", true), QMP_TIMEOUT, error);
    size_t i;
    json_t *entry;

    *there = false;
    json_array_foreach(nodes, i, entry)
    {
        *there |= g_strcmp0(member_text(entry, "node-name"), node) == 0;
    }
    return nodes != NULL;
}

static bool blockdev_del(struct qmp *qmp, const char *node, GError **error)
{
    GError *fault = NULL;
    bool there;

    if (qmp_do(qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), QMP_TIMEOUT, &fault))
        return true;
    if (g_error_matches(fault, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED) &&
        node_exists(qmp, node, &there, NULL) && !there) {
        g_error_free(fault);
        return true;
    }
    g_propagate_prefixed_error(error, fault, "closing \"%s\": ", node);
    return false;
}

/* The descriptor goes last: as long as it is there, an interrupted removal can be repeated. */
bool qemu_remove_node(struct vm *vm, const char *node, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    char name[VM_NODE_NAME_MAX + 1];
    bool by_descriptor, there;

    file_node_name(node, name);
    if (!blockdev_del(qmp, node, error) || !qemu_fdset_exists(qmp, node, &by_descriptor, error) ||
        !node_exists(qmp, name, &there, error))
        return false;
    return (!there || blockdev_del(qmp, name, error)) &&
           (!by_descriptor || qemu_fdset_remove(qmp, node, error));
}

/* ---- files that stay open ---- */

/* What QEMU calls the file of a node: as it was given, and it must be given so again. */
static char *file_called(struct qmp *qmp, const char *node, GError **error)
{
    g_autoptr(json_t) nodes =
        qmp_command(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", true), QMP_TIMEOUT, error);
    size_t i;
    json_t *entry;

    json_array_foreach(nodes, i, entry)
    {
        if (g_strcmp0(member_text(entry, "node-name"), node) == 0)
            return g_strdup(member_text(entry, "file"));
    }
    if (nodes)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "node \"%s\" is not there", node);
    return NULL;
}

static bool reopen(struct qmp *qmp, json_t *node, GError **error)
{
    return qmp_do(qmp, "blockdev-reopen", json_pack("{s:[o]}", "options", node), QMP_TIMEOUT, error);
}

/* Without auto-read-only.  How it does I/O must be said as it was at the start, and QEMU does not tell. */
static bool reopen_file(struct qmp *qmp, const struct vm_node *image, const char *file, GError **error)
{
    static const char *const engines[] = {NULL, "native", "io_uring"};
    g_autofree char *filename = file_called(qmp, file, error);
    GError *fault = NULL;

    for (guint i = 0; filename && i < G_N_ELEMENTS(engines); i++) {
        json_t *arguments = file_arguments(image, filename);

        if (!arguments)
            break;
        json_object_set_new(arguments, "node-name", json_string(file));
        json_object_set_new(arguments, "auto-read-only", json_false());
        json_object_set_new(arguments, "read-only", json_false());
        if (engines[i])
            json_object_set_new(arguments, "aio", json_string(engines[i]));
        g_clear_error(&fault);
        if (reopen(qmp, arguments, &fault))
            return true;
        if (!g_error_matches(fault, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED))
            break;
    }
    if (fault)
        g_propagate_error(error, fault);
    else if (filename)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "file name is not UTF-8: QMP cannot say it");
    return false;
}

/* The numbers of the process's descriptors of this file, in the kernel's order; NULL: they cannot be seen. */
static char *descriptors_of(pid_t pid, const char *path)
{
    g_autofree char *directory = g_strdup_printf("/proc/%d/fd", (int)pid);
    GDir *dir = pid > 0 ? g_dir_open(directory, 0, NULL) : NULL;
    g_autoptr(GString) numbers = g_string_new(NULL);
    struct stat wanted, found;
    const char *name;

    if (!dir || stat(path, &wanted) < 0) {
        g_clear_pointer(&dir, g_dir_close);
        return NULL;
    }
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(directory, name, NULL);

        if (stat(link, &found) == 0 && found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino)
            g_string_append_printf(numbers, "%s ", name);
    }
    g_dir_close(dir);
    return numbers->len ? g_strdup(numbers->str) : NULL;
}

/*
 * QEMU 7.2 forgets in blockdev-reopen how it had opened a file, and opens it once more the next time that
 * somebody's permissions are looked at; then it remembers.  So the image above is reopened as it is, while
 * the name is still right, until that makes no difference any more.
 */
static bool settle_file(struct qmp *qmp, const struct vm_node *image, const char *file, GError **error)
{
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *before = descriptors_of(qmp_peer(qmp), image->filename), *after = NULL;

        if (!before)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "what the machine has open cannot be seen");
        if (!reopen(qmp, node_arguments(image, image->backing, json_string(file)), error))
            return false;
        after = descriptors_of(qmp_peer(qmp), image->filename);
        if (g_strcmp0(before, after) == 0)
            return true;
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "it is opened again whenever the image above changes");
}

bool qemu_keep_open(struct vm *vm, const struct vm_disk *disk, GError **error)
{
    const struct vm_layer *top = g_ptr_array_index(disk->layers, 0);
    const struct vm_layer *below = disk->layers->len > 1 ? g_ptr_array_index(disk->layers, 1) : NULL;
    struct qmp *qmp = qemu_of(vm)->qmp;
    struct vm_node image = {.name = top->node,
                            .filename = top->filename,
                            .format = top->format,
                            .backing = below ? below->node : NULL,
                            .detect_zeroes = disk->detect_zeroes,
                            .block_device = g_strcmp0(top->protocol, "host_device") == 0,
                            .direct = disk->cache.direct,
                            .no_flush = disk->cache.no_flush,
                            .discard = true};

    if (top->node[0] == '#' || !top->protocol_node || top->protocol_node[0] == '#')
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: its nodes have no names of their own",
                             disk->name);
    if (storage_name_is_uri(top->filename)) /* which leads to the same place at any time */
        return true;
    if (reopen_file(qmp, &image, top->protocol_node, error) &&
        settle_file(qmp, &image, top->protocol_node, error))
        return true;
    g_prefix_error(error, "%s: keeping %s open: ", disk->name, top->filename);
    return false;
}

/* As the kernel would call it if it were still there; the caller's; NULL: not even its directory is. */
static char *real_name(const char *path)
{
    g_autofree char *directory = g_path_get_dirname(path), *base = g_path_get_basename(path);
    char *real = realpath(directory, NULL);
    char *name = real ? g_build_filename(real, base, NULL) : NULL;

    free(real);
    return name;
}

static bool is_file(json_t *node, const char *wanted, json_t *sets, pid_t pid)
{
    const char *file = member_text(node, "file");
    bool by_descriptor = file && g_str_has_prefix(file, "/dev/fdset/");
    g_autofree char *name = by_descriptor ? qemu_fdset_file(sets, file, pid) : file ? real_name(file) : NULL;

    return name && strcmp(name, wanted) == 0;
}

/* An image keeps the node of its file busy: that one goes in the second round. */
bool qemu_forget_file(struct vm *vm, const char *path, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    g_autofree char *wanted = real_name(path);
    g_autoptr(json_t) sets = qmp_command(qmp, "query-fdsets", NULL, QMP_TIMEOUT, error);

    for (unsigned round = 0; wanted && round < 2; round++) {
        g_autoptr(json_t) nodes =
            qmp_command(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", true), QMP_TIMEOUT, error);
        size_t i;
        json_t *node;

        if (!sets || !nodes)
            return false;
        json_array_foreach(nodes, i, node)
        {
            const char *name = member_text(node, "node-name");

            if (name && name[0] != '#' && is_file(node, wanted, sets, qmp_peer(qmp)))
                qemu_remove_node(vm, name, NULL);
        }
    }
    return true;
}

/* ---- snapshots ---- */

static json_t *snapshot_actions(const struct vm_snapshot *disks, unsigned count)
{
    json_t *actions = json_array();

    for (unsigned i = 0; i < count; i++)
        json_array_append_new(actions, json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot", "data",
                                                 "node", disks[i].node, "overlay", disks[i].overlay.name));
    return json_pack("{s:o}", "actions", actions);
}

/* A transaction is all or nothing; so the overlays only have to be closed again. */
bool qemu_snapshot(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error)
{
    unsigned open = 0;

    while (open < count && qemu_add_node(vm, &disks[open].overlay, error))
        open++;
    if (open == count &&
        qmp_do(qemu_of(vm)->qmp, "transaction", snapshot_actions(disks, count), QMP_TIMEOUT, error))
        return true;
    while (open-- > 0)
        qemu_remove_node(vm, disks[open].overlay.name, NULL);
    g_prefix_error(error, "snapshot of %u disks: ", count);
    return false;
}

bool qemu_set_write_threshold(struct vm *vm, const char *node, uint64_t offset, GError **error)
{
    json_t *arguments = json_pack("{s:s, s:I}", "node-name", node, "write-threshold", (json_int_t)offset);

    return qmp_do(qemu_of(vm)->qmp, "block-set-write-threshold", arguments, QMP_TIMEOUT, error);
}
