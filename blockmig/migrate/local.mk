# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/migrate/base.c \
	blockmig/migrate/cleanup.c \
	blockmig/migrate/cold.h \
	blockmig/migrate/job.c blockmig/migrate/job.h \
	blockmig/migrate/metadata.c blockmig/migrate/metadata.h \
	blockmig/migrate/preflight.c \
	blockmig/migrate/prove.c \
	blockmig/migrate/report.c \
	blockmig/migrate/request.c \
	blockmig/migrate/resume.c \
	blockmig/migrate/space.c blockmig/migrate/space.h \
	blockmig/migrate/target.c \
	blockmig/migrate/units.c blockmig/migrate/units.h
