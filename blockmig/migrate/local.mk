# SPDX-License-Identifier: LGPL-2.1-or-later
libengine_a_SOURCES += \
	blockmig/migrate/base.c \
	blockmig/migrate/checkpoint.c blockmig/migrate/checkpoint.h \
	blockmig/migrate/cleanup.c \
	blockmig/migrate/cold.c blockmig/migrate/cold.h \
	blockmig/migrate/commit.c blockmig/migrate/commit.h \
	blockmig/migrate/deleted.c \
	blockmig/migrate/job.c blockmig/migrate/job.h \
	blockmig/migrate/keeper.c blockmig/migrate/keeper.h \
	blockmig/migrate/live-adopt.c \
	blockmig/migrate/live-base.c \
	blockmig/migrate/live-below.c \
	blockmig/migrate/live-cleanup.c \
	blockmig/migrate/live-converge.c \
	blockmig/migrate/live-failback.c \
	blockmig/migrate/live-layer.c \
	blockmig/migrate/live-limit.c \
	blockmig/migrate/live-offline.c \
	blockmig/migrate/live-parked.c \
	blockmig/migrate/live-preflight.c \
	blockmig/migrate/live-prove.c \
	blockmig/migrate/live-quiesce.c \
	blockmig/migrate/live-recover.c \
	blockmig/migrate/live-resume.c \
	blockmig/migrate/live-rollback.c \
	blockmig/migrate/live-sample.c \
	blockmig/migrate/live-settle.c \
	blockmig/migrate/live-share.c \
	blockmig/migrate/live-ship.c \
	blockmig/migrate/live-snapshot.c \
	blockmig/migrate/live-space.c \
	blockmig/migrate/live-straddle.c \
	blockmig/migrate/live-switchover.c \
	blockmig/migrate/live-window.c \
	blockmig/migrate/live-throttle.c \
	blockmig/migrate/live-watch.c blockmig/migrate/live-watch.h \
	blockmig/migrate/live.c blockmig/migrate/live.h \
	blockmig/migrate/lower.c blockmig/migrate/lower.h \
	blockmig/migrate/machine-arrive.c blockmig/migrate/machine-astray.c \
	blockmig/migrate/machine-back.c \
	blockmig/migrate/machine-below.c \
	blockmig/migrate/machine-compare.c \
	blockmig/migrate/machine-copy.c \
	blockmig/migrate/machine-definition.c \
	blockmig/migrate/machine-files.c \
	blockmig/migrate/machine-look.h \
	blockmig/migrate/machine-method.c \
	blockmig/migrate/machine-pause.c \
	blockmig/migrate/machine-place.c \
	blockmig/migrate/machine-preflight.c \
	blockmig/migrate/machine-prove.c \
	blockmig/migrate/machine-recover.c \
	blockmig/migrate/machine-resume.c \
	blockmig/migrate/machine-settle.c \
	blockmig/migrate/machine-space.c \
	blockmig/migrate/machine-switch.c \
	blockmig/migrate/machine-tpm.c \
	blockmig/migrate/machine-unit.c \
	blockmig/migrate/machine-window.c blockmig/migrate/machine-window.h \
	blockmig/migrate/machine.c blockmig/migrate/machine.h \
	blockmig/migrate/metadata.c blockmig/migrate/metadata.h \
	blockmig/migrate/move-request.c \
	blockmig/migrate/phase.h \
	blockmig/migrate/pause.c blockmig/migrate/pause.h \
	blockmig/migrate/place.c blockmig/migrate/place.h \
	blockmig/migrate/preflight.c \
	blockmig/migrate/prove.c \
	blockmig/migrate/report.c \
	blockmig/migrate/request-json.c blockmig/migrate/request-json.h \
	blockmig/migrate/request.c \
	blockmig/migrate/resume.c \
	blockmig/migrate/room.c blockmig/migrate/room.h \
	blockmig/migrate/given-up.c \
	blockmig/migrate/unit-files.c \
	blockmig/migrate/share.c blockmig/migrate/share.h \
	blockmig/migrate/seed.c \
	blockmig/migrate/space.c blockmig/migrate/space.h \
	blockmig/migrate/target.c blockmig/migrate/target.h \
	blockmig/migrate/units.c blockmig/migrate/units.h \
	blockmig/migrate/window-adopt.c \
	blockmig/migrate/window-look.c \
	blockmig/migrate/window-off.c \
	blockmig/migrate/window-run.c \
	blockmig/migrate/window.h
