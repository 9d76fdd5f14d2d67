#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --chain=shallow: only the top layer is copied, and it stands on the same backing file.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq
use_seed

mkdir "$tmp/from" "$tmp/to"
make_pattern_image "$tmp/from/base.qcow2" qcow2 64M 200
make_pattern_image "$tmp/from/top.qcow2" qcow2 64M 5 -b base.qcow2 -F qcow2
hash=$(content_hash "$tmp/from/top.qcow2" qcow2)
base=$(sha256sum <"$tmp/from/base.qcow2")
run_ok "the top is copied" blockmig copy --chain=shallow "$tmp/from/top.qcow2" "$tmp/to"
is "$(find "$tmp/to" -type f | wc -l)" 1 "there is one file"
is "$(content_hash "$tmp/to/top.qcow2" qcow2)" "$hash" "with its backing file it is the same disk"
image_clean "$tmp/to/top.qcow2" "it is clean"
is "$(realpath "$(qemu-img info --output=json "$tmp/to/top.qcow2" | jq -r '."full-backing-filename"')")" \
    "$(realpath "$tmp/from/base.qcow2")" "it stands on the same file"
is "$(sha256sum <"$tmp/from/base.qcow2")" "$base" "which is as it was"
check "it is as thin as the layer was" \
    test "$(stat -c %b "$tmp/to/top.qcow2")" -le $(($(stat -c %b "$tmp/from/top.qcow2") + 1024))
done_testing
