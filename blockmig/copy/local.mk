# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/copy/compare.c \
	blockmig/copy/copier.c blockmig/copy/copier.h \
	blockmig/copy/copy.c blockmig/copy/copy.h \
	blockmig/copy/digest.c blockmig/copy/digest.h \
	blockmig/copy/hash.c blockmig/copy/hash.h \
	blockmig/copy/map-sum.c blockmig/copy/map-sum.h \
	blockmig/copy/proof.c \
	blockmig/copy/reader.c blockmig/copy/reader.h \
	blockmig/copy/ring.c blockmig/copy/ring.h \
	blockmig/copy/ring-threads.c blockmig/copy/ring-threads.h \
	blockmig/copy/scan.c blockmig/copy/scan.h \
	blockmig/copy/slot.h \
	blockmig/copy/stage.c \
	blockmig/copy/throttle.c blockmig/copy/throttle.h \
	blockmig/copy/write.c
