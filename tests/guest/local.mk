# SPDX-License-Identifier: LGPL-2.1-or-later
# Built by tests/guest/build at the first test that needs it, with its own flags: the guest is static.
EXTRA_DIST += \
	tests/guest/agent.c \
	tests/guest/agent.h \
	tests/guest/build \
	tests/guest/guest-check.c \
	tests/guest/guest-cmd.py \
	tests/guest/guest.c \
	tests/guest/initramfs.py \
	tests/guest/lib-guest.sh \
	tests/guest/qmp.py \
	tests/guest/stamp.h \
	tests/guest/vmlinux.py

dist_check_SCRIPTS += \
	tests/guest-finds-lost-writes.sh
