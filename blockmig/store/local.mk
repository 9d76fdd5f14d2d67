# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/store/json-reader.c blockmig/store/json-reader.h \
	blockmig/store/journal-disk.c \
	blockmig/store/journal-internal.h \
	blockmig/store/journal-job.c \
	blockmig/store/journal-process.c \
	blockmig/store/journal-schema.c \
	blockmig/store/journal-window.c \
	blockmig/store/journal.c blockmig/store/journal.h \
	blockmig/store/receipt-internal.h \
	blockmig/store/receipt-write.c \
	blockmig/store/receipt.c blockmig/store/receipt.h
