# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/storage/device.c blockmig/storage/device.h \
	blockmig/storage/file.c blockmig/storage/file.h \
	blockmig/storage/foreign.c blockmig/storage/foreign.h \
	blockmig/storage/image-files.c blockmig/storage/image-files.h \
	blockmig/storage/lock.c blockmig/storage/lock.h \
	blockmig/storage/memory.c blockmig/storage/memory.h \
	blockmig/storage/nbd.c blockmig/storage/nbd.h \
	blockmig/storage/nbd-connection.c blockmig/storage/nbd-connection.h \
	blockmig/storage/resolve.c blockmig/storage/resolve.h \
	blockmig/storage/uri.c blockmig/storage/uri.h \
	blockmig/storage/users.c
