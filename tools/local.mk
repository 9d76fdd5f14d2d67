# SPDX-License-Identifier: LGPL-2.1-or-later
# The name is that of a directory at the top, so it is built here.
bin_PROGRAMS += tools/blockmig
tools_blockmig_SOURCES = \
	tools/blockmig.c tools/command.h \
	tools/cmd-commit.c \
	tools/cmd-completion.c \
	tools/cmd-copy.c \
	tools/cmd-create.c \
	tools/cmd-info.c \
	tools/cmd-job.c \
	tools/cmd-map.c \
	tools/cmd-migrate.c tools/cmd-move.c \
	tools/cmd-plan.c \
	tools/cmd-reservation.c \
	tools/cmd-verify.c \
	tools/confine.c tools/confine.h \
	tools/job-output.c tools/job-output.h \
	tools/look.c tools/look.h \
	tools/options.c tools/options.h \
	tools/output.c tools/output.h \
	tools/progress.c tools/progress.h \
	tools/requests.c tools/requests.h \
	tools/signals.c tools/signals.h
tools_blockmig_LDADD = $(BLOCKMIG_LIBS) -lm

sbin_PROGRAMS = tools/blockmigd
tools_blockmigd_SOURCES = tools/blockmigd.c
dist_pkgdata_DATA = tools/blockmig-agent.yaml
pkgdata_DATA = tools/blockmigd.service
dist_pkgdata_DATA += tools/blockmigd.socket
tools/blockmigd.service: tools/blockmigd.service.in
	$(AM_V_GEN)$(MKDIR_P) $(@D) && sed 's|@sbindir@|$(sbindir)|' $< >$@
EXTRA_DIST += tools/blockmigd.service.in
CLEANFILES += tools/blockmigd.service

# A program to automake, which knows no modules without libtool.  It stays loaded, for GLib cannot be unloaded.
if HAVE_NBDKIT
nbdkitplugin_PROGRAMS = tools/nbdkit-blockmig-plugin.so
tools_nbdkit_blockmig_plugin_so_SOURCES = tools/nbdkit-plugin.c
tools_nbdkit_blockmig_plugin_so_CPPFLAGS = $(AM_CPPFLAGS) $(NBDKIT_CFLAGS)
tools_nbdkit_blockmig_plugin_so_LDFLAGS = $(AM_LDFLAGS) -shared -pthread -Wl,-z,nodelete
tools_nbdkit_blockmig_plugin_so_LDADD = $(BLOCKMIG_LIBS)
endif

# Made from the POD beside the tool.
EXTRA_DIST += tools/blockmig.pod tools/blockmigd.pod tools/nbdkit-blockmig-plugin.pod
if HAVE_POD2MAN
man1_MANS += tools/blockmig.1
man8_MANS = tools/blockmigd.8
if HAVE_NBDKIT
man1_MANS += tools/nbdkit-blockmig-plugin.1
endif
CLEANFILES += $(man1_MANS) $(man8_MANS)
.pod.8:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && $(POD2MAN) --section=8 --center=blockmig \
		--release='blockmig $(PACKAGE_VERSION)' --utf8 $< $@
.pod.1:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && $(POD2MAN) --section=1 --center=blockmig \
		--release='blockmig $(PACKAGE_VERSION)' --utf8 $< $@
endif
