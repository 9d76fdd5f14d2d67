# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/remote/datastore.c blockmig/remote/datastore.h \
	blockmig/remote/handle.c blockmig/remote/handle.h \
	blockmig/remote/peer.c blockmig/remote/peer.h \
	blockmig/remote/server-seed.c \
	blockmig/remote/server.c blockmig/remote/server.h blockmig/remote/server-internal.h \
	blockmig/remote/server-config.c blockmig/remote/server-config.h \
	blockmig/remote/server-request.c
