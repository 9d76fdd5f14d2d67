#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted VDIs end to end: refused with format, field and value, or read as they should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"

hostile_images vdi 70
cut_everywhere good vdi
done_testing
