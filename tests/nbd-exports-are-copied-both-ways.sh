#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Exports of all kinds of NBD servers, written and read. Each holds random data before, of which nothing may be left.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
need_tool jq

size=24M
mixed_file "$tmp/disk.raw" $size 1
must qemu-img convert -O qcow2 "$tmp/disk.raw" "$tmp/disk.qcow2"
random_file "$tmp/used" $size 2

# both_ways WHAT: onto the export at $uri, which lies on $tmp/target, and back from it.
both_ways()
{
    run_ok "$1: written" blockmig copy -q "$tmp/disk.qcow2" "$uri"
    run_ok "$1: our own opinion" blockmig verify -q "$tmp/disk.qcow2" "$uri"
    same_content "$tmp/disk.qcow2" "$uri" "$1: QEMU's opinion" -f qcow2 -F raw
    rm -f "$tmp/back"
    run_ok "$1: read" blockmig copy -q -f raw -O qcow2 "$uri" "$tmp/back"
    same_content "$tmp/back" "$tmp/disk.qcow2" "$1: is what was written"
    stop_process "$server"
}

fresh()
{
    must cp "$tmp/used" "$tmp/target"
}

fresh
serve_qemu one raw "$tmp/target"
server=$REPLY
both_ways "qemu-nbd that takes one client"

fresh
serve_qemu many raw "$tmp/target" -e 8
server=$REPLY
both_ways "qemu-nbd that takes many"

# kit WHAT ARGUMENTS...: nbdkit on $tmp/target
kit()
{
    local what=$1
    shift
    fresh
    kits=$((kits + 1))
    serve_kit "kit$kits" "$@"
    server=$REPLY
    both_ways "nbdkit $what"
}

kits=0
file=(file "$tmp/target")
kit "as it is" "${file[@]}"
kit "without zeroes" --filter=nozero "${file[@]}"
kit "without zeroes and extents" --filter=nozero --filter=noextents "${file[@]}"
kit "that emulates zeroes" --filter=nozero "${file[@]}" zeromode=emulate
kit "without structured replies" --no-sr "${file[@]}"
kit "with little requests" --filter=blocksize-policy "${file[@]}" blocksize-minimum=1 blocksize-preferred=4k \
    blocksize-maximum=64k blocksize-error-policy=error
kit "with blocks of 4 KiB" --filter=blocksize-policy "${file[@]}" blocksize-minimum=4k blocksize-preferred=4k \
    blocksize-maximum=1M blocksize-error-policy=error
kit "with blocks of 64 KiB" --filter=blocksize-policy "${file[@]}" blocksize-minimum=64k \
    blocksize-preferred=64k blocksize-maximum=32M blocksize-error-policy=error

# An image inside an export whose clusters are smaller than the server's blocks: every table is a part of a block.
truncate -s 96M "$tmp/target"
serve_kit edges --filter=blocksize-policy "${file[@]}" blocksize-minimum=64k blocksize-preferred=64k \
    blocksize-maximum=1M blocksize-error-policy=error
run_ok "a qcow2 image in blocks larger than its clusters" blockmig copy -q -O qcow2 -o cluster_size=4k \
    "$tmp/disk.qcow2" "$uri"
run_ok "it is found as one" blockmig verify -q "$tmp/disk.raw" "$uri" -f raw -F qcow2
stop_process "$REPLY"
same_content "$tmp/target" "$tmp/disk.raw" "QEMU finds the same in it" -f qcow2 -F raw
image_clean "$tmp/target" "and no mistakes"

fresh
start qemu-nbd -t -f raw -b 127.0.0.1 -p 10893 -x "a disk" "$tmp/target"
server=$REPLY
uri=nbd://127.0.0.1:10893/a%20disk
wait_for 10 nbdinfo "$uri"
both_ways "over TCP"

# ---- thin -------------------------------------------------------------------------------------------

must qemu-img create -q -f qcow2 "$tmp/thin.qcow2" 1G
serve_qemu thin qcow2 "$tmp/thin.qcow2" --discard=unmap
must qemu-img create -q -f qcow2 "$tmp/empty.qcow2" 1G
must qemu-io -c "write -P 5 500M 1M" "$tmp/empty.qcow2"
run_ok "a thin disk onto a thin export" blockmig copy -q "$tmp/empty.qcow2" "$uri"
stop_process "$REPLY"
same_content "$tmp/empty.qcow2" "$tmp/thin.qcow2" "is the same"
[ "$(allocated "$tmp/thin.qcow2")" -lt $((3 << 20)) ]
is $? 0 "and stays thin ($(allocated "$tmp/thin.qcow2") bytes)"

truncate -s 1G "$tmp/sparse"
serve_kit sparse --filter=nozero file "$tmp/sparse"
run_ok "also where the server cannot zero but says what is zero" blockmig copy -q "$tmp/empty.qcow2" "$uri"
stop_process "$REPLY"
[ "$(allocated "$tmp/sparse")" -lt $((3 << 20)) ]
is $? 0 "it is thin ($(allocated "$tmp/sparse") bytes)"

# ---- sizes ------------------------------------------------------------------------------------------

random_file "$tmp/larger" 64M 4
serve_qemu larger raw "$tmp/larger"
run_ok "a larger export" blockmig copy "$tmp/disk.qcow2" "$uri"
like "$err" "67108864 bytes where the source has 25165824: the rest is zeros; if it has a GPT" "what that means is said"
stop_process "$REPLY"
same_content "$tmp/disk.qcow2" "$tmp/larger" "and the rest is zeros" -f qcow2 -F raw

random_file "$tmp/smaller" 16M 4
before=$(sha256sum <"$tmp/smaller")
serve_qemu smaller raw "$tmp/smaller"
fails_with 3 "a smaller export" blockmig copy "$tmp/disk.qcow2" "$uri"
like "$err" "too small: 24 MiB .* needed, the device has 16 MiB" "is too small"
stop_process "$REPLY"
is "$(sha256sum <"$tmp/smaller")" "$before" "and was not touched"

# ---- what cannot be ---------------------------------------------------------------------------------

serve_qemu readonly raw "$tmp/larger" -r
fails_with 3 "a read-only export is not written" blockmig copy "$tmp/disk.qcow2" "$uri"
like "$err" "the server gives it read-only" "for that reason"
fails_with 3 "another export than it has" blockmig info "${uri/\?/nothing?}"
fails_with 3 "what is copied to itself" blockmig copy -f raw "$uri" "$uri"
fails_with 2 "the source is not a file that could be deleted" blockmig copy --delete-source -f raw "$uri" "$tmp/x"
stop_process "$REPLY"
fails_with 8 "a server that is not there" blockmig info "$uri"
like "$err" "connecting" "is said"
fails_with 8 "nor on TCP" blockmig copy "$tmp/disk.qcow2" nbd://127.0.0.1:1
fails_with 3 "other protocols" blockmig info ftp://127.0.0.1/x
serve_kit tail --filter=blocksize-policy null size=1000000 blocksize-minimum=4k blocksize-preferred=4k
fails_with 3 "a server whose last bytes cannot be read" blockmig info "$uri"
stop_process "$REPLY"

# An image on an export does not lead to files here.
must qemu-img create -q -f qcow2 -b base.raw -F raw -u "$tmp/child.qcow2" 24M
must qemu-img create -q -f qcow2 -b "$tmp/disk.raw" -F raw -u "$tmp/absolute.qcow2" 24M
serve_qemu child raw "$tmp/child.qcow2" -r
fails_with 3 "a backing file beside an export" blockmig copy -f qcow2 "$uri" "$tmp/no"
like "$err" "give it with --parent" "has to be named"
run_ok "named, it is followed" blockmig copy -q -f qcow2 --parent "raw:$tmp/disk.raw" "$uri" "$tmp/whole" -O raw
stop_process "$REPLY"
serve_qemu absolute raw "$tmp/absolute.qcow2" -r
fails_with 3 "nor one with a whole path" blockmig copy -f qcow2 "$uri" "$tmp/no"
run_ok "unless it is allowed" blockmig verify -q --allow-root "$tmp" "$uri" "$tmp/disk.raw"
stop_process "$REPLY"
done_testing
