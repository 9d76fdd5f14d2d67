# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/migrate/metadata.c blockmig/migrate/metadata.h \
	blockmig/migrate/units.c blockmig/migrate/units.h
