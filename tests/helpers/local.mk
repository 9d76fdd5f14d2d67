# SPDX-License-Identifier: LGPL-2.1-or-later
# Programs that behaviour tests run; no tests themselves.
noinst_PROGRAMS += tests/helpers/image-driver
tests_helpers_image_driver_SOURCES = tests/helpers/image-driver.c \
	tests/helpers/image-writer.c tests/helpers/image-writer.h
noinst_PROGRAMS += tests/helpers/space-query
tests_helpers_space_query_SOURCES = tests/helpers/space-query.c
noinst_PROGRAMS += tests/helpers/hostile-chain
tests_helpers_hostile_chain_SOURCES = tests/helpers/hostile-chain.c
noinst_PROGRAMS += tests/helpers/guarded-pause
tests_helpers_guarded_pause_SOURCES = tests/helpers/guarded-pause.c
noinst_PROGRAMS += tests/helpers/domain-stats
tests_helpers_domain_stats_SOURCES = tests/helpers/domain-stats.c
# For LD_PRELOAD, also into a program that is built with sanitizers.
EXTRA_DIST += tests/helpers/kill-at-commit.c
CLEANFILES += tests/helpers/kill-at-commit.so
noinst_DATA += tests/helpers/kill-at-commit.so
tests/helpers/kill-at-commit.so: tests/helpers/kill-at-commit.c
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) -O2 -Wall -fPIC -shared -o $@ $<
# For nbdkit, which loads nothing that is built with sanitizers.
EXTRA_DIST += tests/helpers/waiting-medium.c tests/helpers/stands-still.h
if HAVE_NBDKIT
CLEANFILES += tests/helpers/waiting-medium.so
noinst_DATA += tests/helpers/waiting-medium.so
endif
tests/helpers/waiting-medium.so: tests/helpers/waiting-medium.c tests/helpers/stands-still.h
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) $(NBDKIT_CFLAGS) -D_GNU_SOURCE -O2 -Wall -fPIC -shared -pthread -o $@ $<
EXTRA_DIST += tests/helpers/waiting-reads.c
CLEANFILES += tests/helpers/waiting-reads.so
noinst_DATA += tests/helpers/waiting-reads.so
tests/helpers/waiting-reads.so: tests/helpers/waiting-reads.c tests/helpers/stands-still.h
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) -O2 -Wall -fPIC -shared -pthread -o $@ $<
EXTRA_DIST += tests/helpers/reserving-device.c
CLEANFILES += tests/helpers/reserving-device.so
noinst_DATA += tests/helpers/reserving-device.so
tests/helpers/reserving-device.so: tests/helpers/reserving-device.c
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) -O2 -Wall -fPIC -shared -pthread -o $@ $<
EXTRA_DIST += tests/helpers/slow-syncs.c
CLEANFILES += tests/helpers/slow-syncs.so
noinst_DATA += tests/helpers/slow-syncs.so
tests/helpers/slow-syncs.so: tests/helpers/slow-syncs.c
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) -O2 -Wall -fPIC -shared -o $@ $<
EXTRA_DIST += tests/helpers/lost-wakeups.c
CLEANFILES += tests/helpers/lost-wakeups.so
noinst_DATA += tests/helpers/lost-wakeups.so
tests/helpers/lost-wakeups.so: tests/helpers/lost-wakeups.c
	$(AM_V_CC)$(MKDIR_P) $(@D) && $(CC) -O2 -Wall -fPIC -shared -o $@ $<
