# SPDX-License-Identifier: LGPL-2.1-or-later
# One line per test program: check_PROGRAMS += tests/unit/NAME.t
UNIT_LIBS = $(BLOCKMIG_LIBS)
