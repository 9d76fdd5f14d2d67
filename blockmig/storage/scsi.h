/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What SCSI commands and their answers look like (SPC-4, SBC-3): the same over iSCSI and to a device of this
 * host.  Answers come from outside: every length in them is checked against what was received.
 */
#ifndef BLOCKMIG_STORAGE_SCSI_H
#define BLOCKMIG_STORAGE_SCSI_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCSI_CDB_BYTES 16
#define SCSI_MAX_SENSE 252

/* How a command ended. */
struct scsi_answer {
    uint8_t status; /* 0: good; 2: CHECK CONDITION, then the rest counts */
    uint8_t key, asc, ascq;
    bool has_information;
    uint64_t information; /* the block at fault, if it was a medium error */
};

enum scsi_verdict {
    SCSI_GOOD,
    SCSI_LATER,     /* busy, queue full, becoming ready: the same again after a while */
    SCSI_ATTENTION, /* something happened before; the command was not done: the same again */
    SCSI_CONFLICT,  /* somebody else has reserved the unit */
    SCSI_FAILED,
};

/* `sense`: fixed or descriptor format; what is cut off or unknown leaves zeros. */
void scsi_parse_sense(const uint8_t *sense, size_t length, struct scsi_answer *answer);
enum scsi_verdict scsi_judge(const struct scsi_answer *answer);
/* The unit does not know this command, or not with these parameters. */
bool scsi_is_unsupported(const struct scsi_answer *answer);
/* The target has no such unit (yet). */
bool scsi_is_missing(const struct scsi_answer *answer);
/* Did the unit lose what it had in its cache? (It was switched on or reset, not just left alone.) */
bool scsi_was_reset(const struct scsi_answer *answer);
/* What a unit attention tells that an administrator should know; NULL: nothing of that kind (SPC-5, annex F).
 */
const char *scsi_news(const struct scsi_answer *answer);
/* "medium error (03h/11h/00h) at block 12"; owned by the caller. */
char *scsi_describe(const struct scsi_answer *answer);
/* Always false.  `what`: what was tried, "reading ...".  No space is NOSPACE, a medium error IO, else FAILED.
 */
bool scsi_set_error(GError **error, const struct scsi_answer *answer, const char *what);

/* ---- commands: each fills 16 bytes ---- */

void cdb_inquiry(uint8_t *cdb, int page, uint16_t room); /* page -1: the standard data */
void cdb_test_unit_ready(uint8_t *cdb);
void cdb_read_capacity(uint8_t *cdb, uint32_t room);
void cdb_read(uint8_t *cdb, uint64_t block, uint32_t count);
void cdb_write(uint8_t *cdb, uint64_t block, uint32_t count);
void cdb_write_same(uint8_t *cdb, uint64_t block, uint32_t count, bool may_unmap);
void cdb_synchronize_cache(uint8_t *cdb);
void cdb_unmap(uint8_t *cdb, uint16_t length);
void cdb_get_lba_status(uint8_t *cdb, uint64_t block, uint32_t room);
void cdb_reserve_in(uint8_t *cdb, uint8_t action, uint16_t room);
void cdb_reserve_out(uint8_t *cdb, uint8_t action, uint8_t type, uint32_t length);

#define SCSI_UNMAP_BYTES 24 /* of a parameter list with one range */
void scsi_unmap_list(uint8_t *list, uint64_t block, uint32_t count);

/* ---- answers ---- */

struct scsi_capacity {
    uint64_t blocks;
    uint32_t block_size; /* 512 to 4096, a power of two */
    bool thin;           /* LBPME */
    bool unmapped_zero;  /* LBPRZ: unmapped blocks read as zeros */
};

/* 0: not told, or no limit. */
struct scsi_limits {
    uint32_t max_transfer;   /* blocks */
    uint32_t max_unmap;      /* blocks */
    uint64_t max_write_same; /* blocks */
};

/* READ CAPACITY(16). */
bool scsi_parse_capacity(const uint8_t *data, size_t length, struct scsi_capacity *capacity, GError **error);
/* VPD page B0h; shorter ones tell less. */
void scsi_parse_limits(const uint8_t *data, size_t length, struct scsi_limits *limits);
/* VPD page B2h: is there UNMAP, and WRITE SAME(16) that unmaps? */
void scsi_parse_provisioning(const uint8_t *data, size_t length, bool *unmap, bool *write_same);
/* VPD page 83h: the name of the unit, the same through every port, that no other unit in the world has; NULL
 * if it has none.  Owned by the caller: "naa.6001405...". */
char *scsi_parse_unit_name(const uint8_t *data, size_t length);
/* GET LBA STATUS: how many blocks from `block` on are in one state; 0: it was not told. */
uint64_t scsi_parse_lba_status(const uint8_t *data, size_t length, uint64_t block, bool *mapped);

#endif
