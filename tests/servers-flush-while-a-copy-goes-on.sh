#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A server's cache goes to its medium while the copy goes on, and a failure of that is the copy's, even if nobody hears
# of it again.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"

random_file "$tmp/disk.raw" 200M 1
must truncate -s 200M "$tmp/target"
serve_kit spread --filter=log file "$tmp/target" logfile="$tmp/log"
run_ok "a copy" blockmig copy -q -f raw "$tmp/disk.raw" "$uri"
stop_process "$REPLY"
check "is whole" cmp "$tmp/disk.raw" "$tmp/target"
# Requests in the order in which they came: W, or F for a flush.  Each write has 256 KiB.
requests=$(grep -o '\(Write\|Flush\) id=[0-9]* .*\.\.\.$' "$tmp/log" | cut -c 1 | tr -d '\n')
like "$requests" "^F*(WF*){400}W*F+W" "a flush came when more than 100 MiB were written, and not all"
like "$requests" "WF+$" "and one at the end"

# As Linux does with fsync(): the error is told once.
cat >"$tmp/once.sh" <<'SH'
case $1 in
    get_size) echo 209715200 ;;
    pread) dd if="$DISK" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
    pwrite) dd of="$DISK" oflag=seek_bytes conv=notrunc seek="$4" bs=1M status=none ;;
    can_write | can_flush) exit 0 ;;
    flush)
        written=$(du -m "$DISK" | cut -f 1)
        if [ "$written" -gt 100 ] && [ "$written" -lt 190 ] && mkdir "$DISK.failed" 2>/dev/null; then
            echo EIO flushing >&2
            exit 1
        fi
        ;;
    *) exit 2 ;;
esac
SH
chmod +x "$tmp/once.sh"
must truncate -s 0 "$tmp/target"
must truncate -s 200M "$tmp/target"
export DISK=$tmp/target
serve_kit once sh "$tmp/once.sh"
fails_with 1 "a flush that fails once, in the middle" blockmig copy -q -f raw "$tmp/disk.raw" "$uri"
like "$err" "once.sock: flushing: Input/output error" "is told"
stop_process "$REPLY"
done_testing
