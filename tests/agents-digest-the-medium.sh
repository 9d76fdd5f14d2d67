#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What an agent says of a file is what its medium holds: damage below the file system shows in every range that has it,
# whatever the page cache remembers.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
need_loop
need_tool filefrag xxhsum

frames="$srcdir/tests/make-frames.py"
ranges=(512+65536 512+1000 4096+1000 7680+512 0+4096 4096+65536)

# physical FILE OFFSET: where a byte of a file lies in its file system, in bytes.
physical()
{
    filefrag -b512 -v "$1" | awk -F '[:.]+ *' -v at="$2" '$1 ~ /^ *[0-9]+$/ && at >= $2 * 512 && at < ($3 + 1) * 512 {
        printf "%d\n", $4 * 512 + at - $2 * 512 }'
}

# flip FILE OFFSET: a bit of that byte.
flip()
{
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "\\x$(printf %x $((byte ^ 1)))" >"$tmp/byte"
    must dd if="$tmp/byte" of="$1" bs=1 seek="$2" conv=notrunc,fsync status=none
}

# digests: got is what the agent says of each range, and together what it says if it is asked once.
digests()
{
    local range urls=() list
    printf -v list ',%s' "${ranges[@]/+/:}"
    for range in "${ranges[@]}"; do
        urls+=("http://agent/v1/handles/$handle/digests?offset=${range%+*}&length=${range#*+}&chunk=${range#*+}")
    done
    mapfile -t got < <(curl -s --unix-socket "$tmp/agent.sock" "${urls[@]}" | xxd -p -c 16)
    mapfile -t together < <(curl -s --unix-socket "$tmp/agent.sock" "http://agent/v1/handles/$handle/digests?ranges=${list:1}" |
        xxd -p -c 16)
}

# damage_shows WHAT BYTE: in each of the ranges that has this byte, and in no other.
damage_shows()
{
    local i at offset length shows='' wanted=''
    at=$(physical "$file" "$2")
    must test -n "$at"
    must cmp "$file" "$tmp/model" # the page cache has the right bytes now
    flip "$image" "$at"
    digests
    for i in "${!ranges[@]}"; do
        offset=${ranges[i]%+*} length=${ranges[i]#*+}
        [ "$2" -ge "$offset" ] && [ "$2" -lt $((offset + length)) ] && wanted+=" ${ranges[i]}"
        [ "${got[i]}" = "${right[i]}" ] || shows+=" ${ranges[i]}"
    done
    is "$shows" "$wanted" "$1: damage of byte $2 shows where it is"
    is "${together[*]}" "${got[*]}" "$1: whether the ranges are asked for together or not"
    flip "$image" "$at"
}

# Nobody reads holes: what their chunks have is computed.  The first 4 MiB are read at a time.
holes_are_zeros()
{
    local at
    open_file "$1" holes.raw create
    for at in 0 1 2 3; do
        "$frames" data $((at << 20)) "$tmp/model" >"$tmp/part"
        ask POST "/v1/handles/$handle/extents" --data-binary "@$tmp/part"
    done
    ask POST "/v1/handles/$handle/resize" --data '{"size": 6291456}'
    cat "$tmp/model" "$tmp/model" "$tmp/model" "$tmp/model" <(head -c 2M /dev/zero) >"$tmp/piece"
    is "$(curl -s --unix-socket "$tmp/agent.sock" \
        "http://agent/v1/handles/$handle/digests?offset=0&length=6291456&chunk=65536" | xxd -p -c 16)" \
        "$("$frames" digest "$tmp/piece" 65536)" "$1: holes behind data have the digest of zeros"
}

# shows_what_lies_below WHAT [MOUNT-OPTION]
shows_what_lies_below()
{
    local byte what=$1
    must mkdir "$tmp/$what"
    must truncate -s 40M "$tmp/$what.image"
    must mkfs.ext4 -q -b 4096 "$tmp/$what.image"
    must mount -o "loop${2:+,$2}" "$tmp/$what.image" "$tmp/$what"
    at_exit unmount "$tmp/$what"
    image=$tmp/$what.image file=$tmp/$what/disk.raw
    more_datastores="[datastore $what]
directory=$tmp/$what"
    local_agent
    open_file "$what" disk.raw create
    is "$http" 200 "$what: a file is made"
    ask POST "/v1/handles/$handle/extents" --data-binary "@$tmp/stream"
    is "$http" 200 "$what: and written"
    ask POST "/v1/handles/$handle/flush"
    digests
    is "${got[*]}" "${right[*]}" "$what: it is as it was written"
    for byte in 512 1511 1512 4096 5095 7680 8191 66047; do
        damage_shows "$what" $byte
    done
    holes_are_zeros "$what"
    for byte in 0:0 0:4194305 1:-1 0 -1:4096 x 0:1,, "$(printf '0:1,%.0s' {1..64})0:1"; do
        ask GET "/v1/handles/$handle/digests?ranges=$byte"
        is "$http" 400 "$what: ranges=${byte:0:20} is refused"
    done
    stop_process "$agent"
}

random_file "$tmp/model" 1M 5
"$frames" data 0 "$tmp/model" >"$tmp/stream"
for range in "${ranges[@]}"; do
    tail -c +$((${range%+*} + 1)) "$tmp/model" | head -c "${range#*+}" >"$tmp/piece"
    right+=("$("$frames" digest "$tmp/piece" "${range#*+}")")
done
shows_what_lies_below plain
# There O_DIRECT reads through the page cache all the same.
shows_what_lies_below journalled data=journal
done_testing
