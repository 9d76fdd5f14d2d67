# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/copy/copy.h \
	blockmig/copy/digest.c blockmig/copy/digest.h \
	blockmig/copy/ring.c blockmig/copy/ring.h \
	blockmig/copy/ring-threads.c blockmig/copy/ring-threads.h \
	blockmig/copy/throttle.c blockmig/copy/throttle.h
