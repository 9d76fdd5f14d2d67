# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/storage/agent-client.c blockmig/storage/agent-client.h \
	blockmig/storage/agent-client-internal.h \
	blockmig/storage/agent-storage.c blockmig/storage/agent-storage.h \
	blockmig/storage/agent-tunnel.c blockmig/storage/agent-tunnel.h \
	blockmig/storage/bitmap.h \
	blockmig/storage/device.c blockmig/storage/device.h \
	blockmig/storage/direct.c blockmig/storage/direct.h \
	blockmig/storage/file.c blockmig/storage/file.h \
	blockmig/storage/dmg.c blockmig/storage/dmg.h \
	blockmig/storage/foreign.c blockmig/storage/foreign.h \
	blockmig/storage/foreign-table.c blockmig/storage/foreign-table.h \
	blockmig/storage/frame.c blockmig/storage/frame.h \
	blockmig/storage/pace.c blockmig/storage/pace.h \
	blockmig/storage/image-files.c blockmig/storage/image-files.h \
	blockmig/storage/host.c blockmig/storage/host.h \
	blockmig/storage/iscsi.c blockmig/storage/iscsi.h \
	blockmig/storage/iscsi-address.c blockmig/storage/iscsi-address.h \
	blockmig/storage/iscsi-session.c blockmig/storage/iscsi-session.h \
	blockmig/storage/library.c blockmig/storage/library.h \
	blockmig/storage/lock.c blockmig/storage/lock.h \
	blockmig/storage/memory.c blockmig/storage/memory.h \
	blockmig/storage/reservation.c blockmig/storage/reservation.h \
	blockmig/storage/reservation-device.c \
	blockmig/storage/reservation-internal.h \
	blockmig/storage/names.c blockmig/storage/names.h \
	blockmig/storage/nbd.c blockmig/storage/nbd.h \
	blockmig/storage/nbd-bitmap.c \
	blockmig/storage/nbd-connection.c blockmig/storage/nbd-connection.h \
	blockmig/storage/nbd-export.c blockmig/storage/nbd-export.h \
	blockmig/storage/resolve.c blockmig/storage/resolve.h \
	blockmig/storage/sandbox.c blockmig/storage/sandbox.h \
	blockmig/storage/scsi.c blockmig/storage/scsi.h \
	blockmig/storage/signature.c blockmig/storage/signature.h \
	blockmig/storage/shift.c blockmig/storage/shift.h \
	blockmig/storage/tpm.c blockmig/storage/tpm.h \
	blockmig/storage/unit.c blockmig/storage/unit.h \
	blockmig/storage/uri.c blockmig/storage/uri.h \
	blockmig/storage/users.c
