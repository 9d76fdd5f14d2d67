#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted VHDs end to end: refused with format, field and value, or read as they should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"

hostile_images vhd 120
cut_everywhere good vhd
cut_everywhere fixed vhd

# ---- raw disks that look like images ----------------------------------------------------------------

run_ok "a raw disk whose guest wrote a VHD's footer is copied as raw if the user says so" \
    limited "$blockmig" copy -q -f raw -O raw "$images/parent-passwd.vhd" "$tmp/copies/raw"
check "to the last byte" cmp "$images/parent-passwd.vhd" "$tmp/copies/raw"
done_testing
