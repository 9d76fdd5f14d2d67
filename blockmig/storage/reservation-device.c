/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reservations of block devices of this host.  They are changed by the kernel's own calls, which reach SCSI
 * and NVMe disks and every path of a multipath map; the kernel of Debian 12 has none to read them, so that is
 * asked of SCSI disks directly.
 */
#include "blockmig/storage/reservation-internal.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pr.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SENSE_BYTES 96
#define TIMEOUT_MS  30000

/* The kernel's calls return an errno or, positive, the status of the device. */
#define SCSI_CONFLICT_STATUS 0x18

static bool not_offered(int errnum)
{
    return errnum == ENOTTY || errnum == EOPNOTSUPP || errnum == EINVAL || errnum == ENOSYS;
}

static bool device_in(struct reservation *reservation, enum reservation_in action, uint8_t *data,
                      size_t *length, bool *known, GError **error)
{
    uint8_t cdb[SCSI_CDB_BYTES], sense[SENSE_BYTES] = {0};
    struct scsi_answer answer = {0};
    struct sg_io_hdr io = {.interface_id = 'S',
                           .dxfer_direction = SG_DXFER_FROM_DEV,
                           .cmd_len = 10,
                           .mx_sb_len = sizeof(sense),
                           .dxfer_len = RESERVATION_ROOM,
                           .dxferp = data,
                           .cmdp = cdb,
                           .sbp = sense,
                           .timeout = TIMEOUT_MS};

    cdb_reserve_in(cdb, (uint8_t)action, RESERVATION_ROOM);
    if (ioctl(reservation->fd, SG_IO, &io) < 0) {
        if (not_offered(errno))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "not a SCSI disk: this host does not tell who has reserved it");
        return blockmig_set_errno(error, errno, "asking for reservations");
    }
    answer.status = io.status;
    scsi_parse_sense(sense, io.sb_len_wr, &answer);
    if (answer.status == 0 && (io.host_status || io.driver_status))
        return blockmig_set_errno(error, EIO, "asking for reservations");
    *known = !scsi_is_unsupported(&answer);
    *length = RESERVATION_ROOM - (io.resid > 0 ? MIN((size_t)io.resid, RESERVATION_ROOM) : 0);
    return answer.status == 0 || !*known || scsi_set_error(error, &answer, "asking for reservations");
}

static int call_kernel(int fd, enum reservation_out action, uint64_t key, uint64_t service_key)
{
    struct pr_registration registration = {.old_key = key, .new_key = service_key};
    struct pr_reservation reservation = {.key = key, .type = PR_WRITE_EXCLUSIVE_REG_ONLY};
    struct pr_preempt preempt = {.old_key = service_key, .new_key = key, .type = PR_WRITE_EXCLUSIVE_REG_ONLY};

    switch (action) {
    case RESERVATION_REGISTER_IGNORE:
        registration.flags = PR_FL_IGNORE_KEY; /* fall through */
    case RESERVATION_REGISTER:
        return ioctl(fd, IOC_PR_REGISTER, &registration);
    case RESERVATION_RESERVE:
        return ioctl(fd, IOC_PR_RESERVE, &reservation);
    case RESERVATION_RELEASE:
        return ioctl(fd, IOC_PR_RELEASE, &reservation);
    case RESERVATION_PREEMPT:
        return ioctl(fd, IOC_PR_PREEMPT, &preempt);
    case RESERVATION_PREEMPT_ABORT:
        return ioctl(fd, IOC_PR_PREEMPT_ABORT, &preempt);
    }
    errno = EINVAL;
    return -1;
}

static bool device_out(struct reservation *reservation, enum reservation_out action, uint64_t key,
                       uint64_t service_key, enum reservation_outcome *outcome, GError **error)
{
    int result = call_kernel(reservation->fd, action, key, service_key);

    *outcome = RESERVATION_DONE;
    if (result == SCSI_CONFLICT_STATUS || (result < 0 && errno == EBADE))
        *outcome = RESERVATION_CONFLICT;
    else if (result < 0 && not_offered(errno))
        *outcome = RESERVATION_UNKNOWN;
    if (result == 0 || *outcome != RESERVATION_DONE)
        return true;
    return blockmig_set_errno(error, result < 0 ? errno : EIO, "changing reservations");
}

static void device_close(struct reservation *reservation)
{
    close(reservation->fd);
    g_free(reservation);
}

static const struct reservation_ops device_ops = {device_in, device_out, device_close};

struct reservation *reservation_of_device(const char *path, GError **error)
{
    struct reservation *reservation;
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        blockmig_set_errno(error, errno, "opening");
        return NULL;
    }
    if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode)) {
        close(fd);
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "neither a block device nor an iSCSI URI");
        return NULL;
    }
    reservation = g_new0(struct reservation, 1);
    reservation->ops = &device_ops;
    reservation->fd = fd;
    return reservation;
}
