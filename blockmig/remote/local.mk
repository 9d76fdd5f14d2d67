# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/remote/credentials.c blockmig/remote/credentials.h \
	blockmig/remote/datastore.c blockmig/remote/datastore.h \
	blockmig/remote/handle.c blockmig/remote/handle.h \
	blockmig/remote/lead.c blockmig/remote/lead.h \
	blockmig/remote/led.c blockmig/remote/led.h \
	blockmig/remote/machines.c blockmig/remote/machines.h \
	blockmig/remote/peer.c blockmig/remote/peer.h \
	blockmig/remote/rate.c blockmig/remote/rate.h \
	blockmig/remote/server-seed.c \
	blockmig/remote/server.c blockmig/remote/server.h blockmig/remote/server-internal.h \
	blockmig/remote/server-config.c blockmig/remote/server-config.h \
	blockmig/remote/server-request.c \
	blockmig/remote/sockets.c blockmig/remote/sockets.h \
	blockmig/remote/watch.c blockmig/remote/watch.h
