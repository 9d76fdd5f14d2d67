# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/vm/agent.c blockmig/vm/agent.h \
	blockmig/vm/definition.c blockmig/vm/definition.h \
	blockmig/vm/domain.c blockmig/vm/domain.h \
	blockmig/vm/domain-disk.c \
	blockmig/vm/domain-guard.c blockmig/vm/domain-guard.h \
	blockmig/vm/domain-internal.h \
	blockmig/vm/domain-migrate.c \
	blockmig/vm/domain-process.c \
	blockmig/vm/guard-internal.h \
	blockmig/vm/guard-process.c \
	blockmig/vm/guard.c blockmig/vm/guard.h \
	blockmig/vm/qemu-describe.c \
	blockmig/vm/qemu-event.c \
	blockmig/vm/qemu-fdset.c \
	blockmig/vm/qemu-job.c \
	blockmig/vm/qemu-node.c \
	blockmig/vm/qemu-pivot.c \
	blockmig/vm/qemu-uri.c \
	blockmig/vm/qemu.c blockmig/vm/qemu.h \
	blockmig/vm/qmp-internal.h \
	blockmig/vm/qmp-schema.c \
	blockmig/vm/qmp-stream.c blockmig/vm/qmp-stream.h \
	blockmig/vm/qmp.c blockmig/vm/qmp.h \
	blockmig/vm/spawn.c blockmig/vm/spawn.h \
	blockmig/vm/vm.c blockmig/vm/vm.h
