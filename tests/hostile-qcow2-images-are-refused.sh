#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted qcow2 images end to end: each is refused with format, field and value, in bounded time and memory,
# without opening any other file and without writing anything; or it reads as it should.
. "${srcdir:-.}/tests/lib.sh"
need_tool python3 strace qemu-img

images=$tmp/images
mkdir "$images" "$tmp/copies"
must python3 "$srcdir/tests/make-hostile-qcow2.py" "$images"
cases=$out
mkfifo "$images/canary" # whoever opens it waits for ever
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

# A program with sanitizers reserves terabytes of addresses and does not look for leaks when it is traced.
memory=$((1 << 20))
if grep -q __asan_init "$blockmig"; then
    memory=unlimited
    export ASAN_OPTIONS=detect_leaks=0
fi

# limited COMMAND...: 20 s, 1 GiB of addresses.
limited()
{
    (ulimit -v "$memory" && exec timeout -s KILL 20 "$@")
}

# traced COMMAND...: limited, and sets REPLY to the files that were opened and have no business to be. -y shows
# what a descriptor is, whatever name led there; O_PATH opens nothing, it only holds.
traced()
{
    run limited strace -f -qq -y -e trace=open,openat,openat2,creat,connect -e signal=none -o "$tmp/trace" "$@"
    REPLY=$(grep -v -e O_PATH "$tmp/trace" | sed -nE 's/.* = [0-9]+<(.*)>$/\1/p; /connect\(/p' | sort -u |
        grep -Ev -e "^($image|$tmp/state(/.*)?|$tmp/copies(/.*)?|/usr/.*|/lib.*|/etc/ld.so.*|/etc/locale.alias|/dev/urandom|/sys/.*|/proc/filesystems)\$" \
            -e '^/proc(/[0-9]+(/fd|/comm|/stat|/mountinfo)?|/cpuinfo|/meminfo|/mounts|/sys/.*)?$')
}

# fingerprint: content, size, owner and times of all that lies beside the images.
fingerprint()
{
    (cd "$images" && stat -c '%n %s %Y %Z %i' -- * && find . -type f -exec sha256sum {} + | sort) | sha256sum
}

image=$images/good.qcow2
traced cat "$image" /etc/passwd
is "$REPLY" /etc/passwd "the trace sees what is opened"
before=$(fingerprint)
strays='' failed_info='' failed_copy='' wrong='' left='' count=0
while IFS=$'\t' read -r name outcome pattern; do
    image=$images/$name.qcow2 count=$((count + 1))
    traced "$blockmig" info "$image"
    info=$status
    [ -z "$REPLY" ] || strays+="info $name: $REPLY; "
    case $outcome in
        open) [ "$info" -eq 3 ] && grep -Eq -e "$pattern" <<<"$err" || failed_info+="$name: exit $info: $err; " ;;
        *) [ "$info" -eq 0 ] || failed_info+="$name: exit $info: $err; " ;;
    esac
    traced "$blockmig" copy -q -O raw "$image" "$tmp/copies/$name"
    [ -z "$REPLY" ] || strays+="copy $name: $REPLY; "
    case $outcome in
        open | use)
            # 3: found before the copy began; 5: found while reading.
            [[ $status =~ ^[1-5]$ ]] && grep -Eq -e "$pattern" <<<"$err" ||
                failed_copy+="$name: exit $status: $err; "
            compgen -G "$tmp/copies/$name" >/dev/null && left+="$name "
            ;;
        read)
            [ "$status" -eq 0 ] && cmp "$images/$name.raw" "$tmp/copies/$name" || wrong+="$name: exit $status: $err; "
            ;;
    esac
    rm -f "$tmp/copies"/*
done <<<"$cases"
is "$([ "$count" -gt 100 ] && echo many)" many "$count images"
is "$failed_info" "" "info refuses what is wrong in the header, and shows the others"
is "$failed_copy" "" "copy refuses them, and says why"
is "$wrong" "" "what can be read reads right"
is "$left" "" "no target is left"
is "$strays" "" "no other file was opened"
is "$(fingerprint)" "$before" "nothing was written where the images are"

# ---- raw disks that look like images ----------------------------------------------------------------

image=$images/backing-system.qcow2
run_ok "a raw disk whose guest wrote a qcow2 header is copied as raw if the user says so" \
    limited "$blockmig" copy -q -f raw -O raw "$image" "$tmp/copies/raw"
check "to the last byte" cmp "$image" "$tmp/copies/raw"
cp "$image" "$tmp/disk.raw"
must qemu-img create -q -f qcow2 -b disk.raw -F raw "$tmp/overlay.qcow2"
run_ok "and as raw if the overlay says so" limited "$blockmig" copy -q -O raw "$tmp/overlay.qcow2" "$tmp/copies/over"
check "to the last byte as well" cmp "$image" "$tmp/copies/over"

# ---- truncated at every sector ----------------------------------------------------------------------

# cut_everywhere NAME: an error, or the same content; never zeros for what is missing.
cut_everywhere()
{
    local size step bad='' good=0 refused=0 image=$images/$1.qcow2
    size=$(stat -c %s "$image")
    for ((step = 0; step < size; step += 512)); do
        head -c "$step" "$image" >"$tmp/cut.qcow2"
        run limited "$blockmig" copy -q -f qcow2 -O raw "$tmp/cut.qcow2" "$tmp/copies/cut"
        if [ "$status" -eq 0 ] && cmp -s "$images/$1.raw" "$tmp/copies/cut"; then
            good=$((good + 1))
        elif [[ $status =~ ^[1-5]$ ]] && [ -n "$err" ] && [ ! -e "$tmp/copies/cut" ]; then
            refused=$((refused + 1))
        else
            bad+="at $step: exit $status: $err; "
        fi
        rm -f "$tmp/copies"/*
    done
    is "$bad" "" "$1: cut at $((size / 512)) places: $refused errors, $good times the same content"
    check "$1: most of them are errors" test "$refused" -gt $((size / 512 / 2))
}
cut_everywhere good
cut_everywhere bitmaps
cut_everywhere packed

# ---- changed while it is read -----------------------------------------------------------------------

must python3 "$srcdir/tests/make-qcow2.py" scattered "$tmp/live.qcow2" 64M 16M
must cp "$tmp/live.qcow2" "$tmp/kept.qcow2"

# during COMMAND...: runs while a slow copy of live.qcow2 is at work; sets status and err of the copy.
during()
{
    rm -f "$tmp/copies"/*
    limited "$blockmig" copy -q --bandwidth=8MiB/s -O raw "$tmp/live.qcow2" "$tmp/copies/live" \
        >"$tmp/live.log" 2>&1 3>&- &
    local pid=$!
    wait_for 10 compgen -G "$tmp/copies/*"
    sleep 0.5
    "$@"
    wait "$pid"
    status=$?
    err=$(cat "$tmp/live.log")
}
during mv "$images/good.qcow2" "$tmp/live.qcow2"
is "$status" 0 "an image that gets another file's name is still the one that was opened"
same_content "$tmp/kept.qcow2" "$tmp/copies/live" "and that one was copied" -f qcow2 -F raw
must cp "$tmp/kept.qcow2" "$tmp/live.qcow2"
during truncate -s +1M "$tmp/live.qcow2"
is "$status" 0 "an image that grows: what was there is copied"
same_content "$tmp/kept.qcow2" "$tmp/copies/live" "as it was" -f qcow2 -F raw
must cp "$tmp/kept.qcow2" "$tmp/live.qcow2"
during truncate -s 1M "$tmp/live.qcow2"
like "$err" "live.qcow2: the file ends before" "an image that shrinks is an error that names it"
is "$([ "$status" -gt 0 ] && [ "$status" -lt 7 ] && echo orderly)" orderly "which ends the copy (exit $status)"
check "and no target comes into being" test ! -e "$tmp/copies/live"
done_testing
