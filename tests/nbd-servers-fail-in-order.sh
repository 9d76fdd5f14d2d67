#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Servers that say no, are killed, hang or have no room: the error is theirs, and the copy goes on from where it was.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
need_tool jq

random_file "$tmp/disk.raw" 48M 1

# ---- errors of the server ---------------------------------------------------------------------------

random_file "$tmp/little.raw" 1M 9
serve_kit eio --filter=error --filter=blocksize-policy file "$tmp/little.raw" error-pread=EIO error-pread-rate=100% \
    error-file="$tmp/fail" blocksize-minimum=512 blocksize-preferred=4k blocksize-maximum=1M
touch "$tmp/fail"
fails_with 1 "a read error" blockmig copy -q -f raw "$uri" "$tmp/out.raw"
like "$err" "eio.sock: reading [0-9]+ bytes at offset [0-9]+: Input/output error" "names server and range"
rm "$tmp/fail"
run_ok "once it is over" blockmig copy -q -f raw "$uri" "$tmp/out.raw"
check "the copy is whole" cmp "$tmp/little.raw" "$tmp/out.raw"
stop_process "$REPLY"

random_file "$tmp/target" 48M 2
serve_kit full --filter=error file "$tmp/target" error-pwrite=ENOSPC error-pwrite-rate=100% error-file="$tmp/fail"
touch "$tmp/fail"
fails_with 5 "a server without room" blockmig copy -q -f raw "$tmp/disk.raw" "$uri"
like "$err" "full.sock: writing [0-9]+ bytes at offset [0-9]+: No space left on device" "is said"
rm "$tmp/fail"
run_ok "with room the same command goes on" blockmig copy -q -f raw "$tmp/disk.raw" "$uri"
stop_process "$REPLY"
check "the copy is whole" cmp "$tmp/disk.raw" "$tmp/target"

cat >"$tmp/noflush.sh" <<'SH'
case $1 in
    get_size) echo 50331648 ;;
    pread) dd if="$DISK" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
    pwrite) dd of="$DISK" oflag=seek_bytes conv=notrunc seek="$4" bs=1M status=none ;;
    can_write) exit 0 ;;
    *) exit 2 ;;
esac
SH
chmod +x "$tmp/noflush.sh"
random_file "$tmp/target" 48M 4
export DISK=$tmp/target
serve_kit noflush sh "$tmp/noflush.sh"
run_ok "a server that cannot flush" blockmig copy -f raw "$tmp/disk.raw" "$uri"
like "$err" "does not flush" "is told of"
stop_process "$REPLY"
check "the copy is whole" cmp "$tmp/disk.raw" "$tmp/target"

# ---- a target's server is killed --------------------------------------------------------------------

random_file "$tmp/large.raw" 160M 5
random_file "$tmp/target" 160M 6

# copy_slowly [OPTION...]: to $uri in the background; sets pid.
copy_slowly()
{
    "$builddir/tools/blockmig" copy -q --bandwidth=20MiB/s "$@" 3>&- 2>"$tmp/slow.err" </dev/null &
    pid=$!
}

serve_qemu target raw "$tmp/target"
server=$REPLY
copy_slowly -f raw "$tmp/large.raw" "$uri"
wait_for 20 has_checkpoint "$uri" || must false "no checkpoint"
kill -KILL "$server"
wait "$pid"
is "$?" 8 "a target whose server is killed is unreachable"
like "$(cat "$tmp/slow.err")" "target.sock: .*the server is gone" "which is said"
like "$(cat "$tmp/slow.err")" "job resume" "and how it goes on"
serve_qemu target raw "$tmp/target"
run_ok "with a new server the same command goes on" blockmig copy --json -f raw "$tmp/large.raw" "$uri"
is "$(jq -r '.result, .resumed' <<<"$out" | xargs)" "done true" "from its checkpoint"
stop_process "$REPLY"
check "the copy is whole" cmp "$tmp/large.raw" "$tmp/target"

# ---- we are killed ----------------------------------------------------------------------------------

random_file "$tmp/target" 160M 7
serve_qemu kill raw "$tmp/target"
server=$REPLY
copy_slowly -f raw "$tmp/large.raw" "$uri"
wait_for 20 has_checkpoint "$uri" || must false "no checkpoint"
kill -KILL "$pid"
wait "$pid"
run_ok "after SIGKILL the copy goes on" blockmig job resume --json
is "$(jq -r '.result, .resumed' <<<"$out" | xargs)" "done true" "from its checkpoint"
stop_process "$server"
check "the copy is whole" cmp "$tmp/large.raw" "$tmp/target"

# ---- a source's server is killed --------------------------------------------------------------------

serve_qemu source raw "$tmp/disk.raw" -r
server=$REPLY
copy_slowly -f raw "$uri" "$tmp/from"
wait_for 10 test -e "$tmp/from.blockmig-part"
sleep 0.5
kill -KILL "$server"
sleep 1
serve_qemu source raw "$tmp/disk.raw" -r
wait "$pid"
is "$?" 0 "a source whose server comes back is read on"
check "the copy is whole" cmp "$tmp/disk.raw" "$tmp/from"
stop_process "$REPLY"

# A source that was changed between two runs is noticed by what it holds.
cp "$tmp/large.raw" "$tmp/changing.raw"
serve_qemu changing raw "$tmp/changing.raw"
copy_slowly -f raw "$uri" "$tmp/changed"
wait_for 20 has_checkpoint "$tmp/changed" || must false "no checkpoint"
kill -KILL "$pid"
wait "$pid"
must qemu-io -f raw -c "write -P 77 1M 4k" "$uri"
run_ok "a source that was changed meanwhile" blockmig copy -f raw "$uri" "$tmp/changed"
like "$err" "changed at byte 1048576 since it was copied" "is copied anew"
stop_process "$REPLY"
check "the copy is that of now" cmp "$tmp/changing.raw" "$tmp/changed"
done_testing
