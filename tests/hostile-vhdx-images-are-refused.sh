#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted VHDX images end to end: refused with format, field and value, or read as they should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"

hostile_images vhdx 200
cut_everywhere good vhdx $((64 << 10))
cut_everywhere log-two vhdx $((256 << 10))
done_testing
