# SPDX-License-Identifier: LGPL-2.1-or-later
TESTS += $(check_PROGRAMS) $(dist_check_SCRIPTS)
EXTRA_DIST += tests/lib.sh tests/make-data.py
include tests/unit/local.mk
include tests/fuzz/local.mk
