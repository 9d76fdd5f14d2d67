#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A target that was to be allocated in advance is, also if its copy was killed and went on.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq python3

random_file "$tmp/source" 90M 5
must truncate -s 160M "$tmp/source"

# killed TARGET FORMAT PREALLOCATION: after the first checkpoint, which comes after five seconds.
killed()
{
    local pid
    start "$blockmig" copy -q --bandwidth=8MiB/s -O "$2" -o "preallocation=$3" "$tmp/source" "$1"
    pid=$REPLY
    wait_for 30 has_checkpoint "$1"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
}

kinds="raw:falloc qcow2:metadata qcow2:falloc qcow2:full"
for kind in $kinds; do
    killed "$tmp/$kind" "${kind%:*}" "${kind#*:}" &
done
wait
for kind in $kinds; do
    format=${kind%:*} preallocation=${kind#*:}
    run "$blockmig" copy --json -O "$format" -o "preallocation=$preallocation" "$tmp/source" "$tmp/$kind"
    is "$status $(jq .resumed <<<"$out")" "0 true" "$kind goes on"
    same_content "$tmp/source" "$tmp/$kind" "$kind has the content" -f raw -F "$format"
    [ "$format" = raw ] || image_clean "$tmp/$kind" "$kind is clean"
    must "$blockmig" copy -O "$format" -o "preallocation=$preallocation" "$tmp/source" "$tmp/$kind.whole"
    [ "$format" = raw ] ||
        is "$(qemu-img check --output=json "$tmp/$kind" 3>&- | jq '."allocated-clusters"')" \
            "$(qemu-img check --output=json "$tmp/$kind.whole" 3>&- | jq '."allocated-clusters"')" \
            "$kind has as many clusters as in one run"
    got=$(allocated "$tmp/$kind") wanted=$(allocated "$tmp/$kind.whole")
    check "$kind has $got bytes of $wanted on the file system" \
        test "$((got > wanted ? got - wanted : wanted - got))" -le $((1 << 20))
done

random_file "$tmp/odd" 1000001 6
for kind in $kinds; do
    run_ok "$kind, of a source that is no multiple of 512" blockmig copy -q -O "${kind%:*}" \
        -o "preallocation=${kind#*:}" "$tmp/odd" "$tmp/odd.$kind"
    same_content "$tmp/odd" "$tmp/odd.$kind" "has the content" -f raw -F "${kind%:*}"
done
done_testing
