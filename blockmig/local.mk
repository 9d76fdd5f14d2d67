# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LIBRARIES += libengine.a
libengine_a_SOURCES =
include blockmig/storage/local.mk
include blockmig/remote/local.mk
include blockmig/copy/local.mk
include blockmig/store/local.mk
include blockmig/vm/local.mk
include blockmig/migrate/local.mk
