#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted QCOW images of version 1 end to end: refused with format, field and value, or read as they should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"

hostile_images qcow 50
cut_everywhere good qcow
done_testing
