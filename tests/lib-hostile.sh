# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Sourced after lib.sh by the tests of hostile images: each is refused with format, field and value, in bounded time
# and memory, without opening any other file and without writing anything; or it reads as it should. What is merged into
# it is refused without a change, or is there and nowhere else.
#
# A generator, make-hostile-FORMAT.py DIRECTORY, writes NAME.FORMAT for each case and prints a line "NAME OUTCOME PATTERN",
# separated by tabs: "open" is not opened, "use" opens but is not read, both with a message that matches PATTERN; "read"
# reads as NAME.raw.  NAME-extent1.FORMAT and so on belong to the case, too; files whose names begin with "parent"
# may be opened beside it.

need_tool python3 strace qemu-img qemu-io xxh128sum
use_seed
images=$tmp/images
mkdir "$images" "$tmp/copies"
mkfifo "$images/canary" # whoever opens it waits for ever
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

# A program with sanitizers reserves terabytes of addresses and does not look for leaks when it is traced.
memory=$((1 << 20))
if grep -q __asan_init "$blockmig"; then
    memory=unlimited
    export ASAN_OPTIONS=detect_leaks=0
fi

# limited COMMAND...: 60 s, 1 GiB of addresses.
limited()
{
    (ulimit -v "$memory" && exec timeout -s KILL 60 "$@")
}

# traced COMMAND...: limited, and sets REPLY to the files that were opened and have no business to be. -y shows
# what a descriptor is, whatever name led there; O_PATH opens nothing, it only holds. The list of names beside the image
# may be read.
traced()
{
    run limited strace --seccomp-bpf -f -qq -y -e trace=open,openat,openat2,creat,connect -e signal=none -o "$tmp/trace" "$@"
    REPLY=$(grep -v -e O_PATH "$tmp/trace" | sed -nE 's/.* = [0-9]+<(.*)>$/\1/p; /connect\(/p' | sort -u |
        grep -Ev -e "^($images|$image|${image%.*}-extent[0-9]*[.][a-z0-9]*|$images/parent[^/]*|$tmp/state(/.*)?|$tmp/copies(/.*)?|/usr/.*|/lib.*|/etc/ld.so.*|/etc/locale.alias|/dev/urandom|/sys/.*|/proc/filesystems)\$" \
            -e '^/proc(/[0-9]+(/fd|/comm|/stat|/mountinfo)?|/cpuinfo|/meminfo|/mounts|/sys/.*)?$')
}

# fingerprint: content, size, owner and times of all that lies beside the images.
fingerprint()
{
    (cd "$images" && stat -c '%n %s %Y %Z %i' -- * && find . -type f -exec xxh128sum {} + | sort) | xxh128sum
}

# merged FORMAT NAME: commits an overlay of 16 KiB into copies of an image and its files; sets REPLY to what is wrong with
# that. Only what fails when it is used (exit status 1) may have changed by then.
merged()
{
    local format=$1 name=$2 into=$tmp/merge before
    REPLY=
    rm -rf "$into"
    mkdir "$into"
    cp "$tmp/overlay.qcow2" "$into/overlay"
    find "$images" -maxdepth 1 -type f \( -name "$name.$format" -o -name "$name-extent*" -o -name "parent*" \) -exec cp -t "$into" {} +
    must qemu-img rebase -q -u -f qcow2 -b "$name.$format" -F "${format/%vhd/vpc}" "$into/overlay"
    run limited "$blockmig" copy -q -f qcow2 -O raw "$into/overlay" "$tmp/copies/want"
    [ "$status" -eq 0 ] || rm -f "$tmp/copies/want"
    before=$(xxh128sum "$into"/*)
    run limited "$blockmig" commit -f qcow2 "$into/overlay"
    if [ "$status" -eq 0 ]; then
        run limited "$blockmig" copy -q -f "$format" -O raw "$into/$name.$format" "$tmp/copies/got"
        cmp -n 16K "$tmp/copies/want" "$tmp/copies/got" && cmp -i 16K "$images/$name.raw" "$tmp/copies/got" ||
            REPLY="$name: not what was merged: $err; "
    elif [[ ! $status =~ ^[1-5]$ ]] || [ -z "$err" ]; then
        REPLY="$name: exit $status: $err; "
    elif [ "$status" -ne 1 ] && [ "$(xxh128sum "$into"/*)" != "$before" ]; then
        REPLY="$name: changed: $err; "
    fi
    rm -f "$tmp/copies"/*
}

# hostile_images FORMAT LEAST: all cases of make-hostile-FORMAT.py, which are more than LEAST.
hostile_images()
{
    local format=$1 least=$2 cases before info name outcome pattern
    local strays='' failed_info='' failed_copy='' failed_merge='' wrong='' left='' count=0
    must python3 "$srcdir/tests/make-hostile-$format.py" "$images"
    cases=$out
    image=$images/good.$format
    traced cat "$image" /etc/passwd
    is "$REPLY" /etc/passwd "the trace sees what is opened"
    before=$(fingerprint)
    must qemu-img create -q -f qcow2 -o cluster_size=512 "$tmp/overlay.qcow2" 16K
    must qemu-io -f qcow2 -c 'write -P 171 512 1K' -c 'write -z 4K 5K' -c 'write -P 172 12K 512' "$tmp/overlay.qcow2"
    every 10
    while IFS=$'\t' read -r name outcome pattern; do
        image=$images/$name.$format count=$((count + 1))
        # What is not opened is not opened by a copy either, which is made of each.
        if [ "$outcome" != open ] || [ $((count % 3)) -eq $((first % 3)) ] || [ "$step" -eq 1 ]; then
            traced "$blockmig" info "$image"
            info=$status
            [ -z "$REPLY" ] || strays+="info $name: $REPLY; "
            case $outcome in
                open) [ "$info" -eq 3 ] && grep -Eq -e "$pattern" <<<"$err" || failed_info+="$name: exit $info: $err; " ;;
                *) [ "$info" -eq 0 ] || failed_info+="$name: exit $info: $err; " ;;
            esac
        fi
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
        if [ $((count % step)) -eq $((first % step)) ]; then
            merged "$format" "$name"
            failed_merge+=$REPLY
        fi
    done <<<"$cases"
    is "$([ "$count" -gt "$least" ] && echo many)" many "$count images"
    is "$failed_info" "" "info refuses what is wrong in the header, and shows the others"
    is "$failed_copy" "" "copy refuses them, and says why"
    is "$wrong" "" "what can be read reads right"
    is "$left" "" "no target is left"
    is "$failed_merge" "" "what is merged into them is there, or nothing was changed"
    is "$strays" "" "no other file was opened"
    is "$(fingerprint)" "$before" "nothing was written where the images are"
}

# cut_everywhere NAME FORMAT [UNIT]: at every few units (each under "make check-long"): an error, or the same content; never zeros for what is missing.
cut_everywhere()
{
    local size at unit=${3:-512} bad='' good=0 refused=0 format=$2 image=$images/$1.$2
    size=$(stat -c %s "$image")
    every 12 $(((size + unit - 1) / unit))
    for ((at = (first - 1) * unit; at < size; at += step * unit)); do
        head -c "$at" "$image" >"$tmp/cut.$format"
        run limited "$blockmig" copy -q -f "$format" -O raw "$tmp/cut.$format" "$tmp/copies/cut"
        if [ "$status" -eq 0 ] && cmp -s "$images/$1.raw" "$tmp/copies/cut"; then
            good=$((good + 1))
        elif [[ $status =~ ^[1-5]$ ]] && [ -n "$err" ] && [ ! -e "$tmp/copies/cut" ]; then
            refused=$((refused + 1))
        else
            bad+="at $at: exit $status: $err; "
        fi
        rm -f "$tmp/copies"/*
    done
    is "$bad" "" "$1: cut at $((refused + good)) places: $refused errors, $good times the same content"
    check "$1: most of them are errors" test "$refused" -gt "$good"
}
