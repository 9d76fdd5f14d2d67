#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# SIGINT and SIGTERM stop a copy in order: exit 4, the way to go on, and then it goes on.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq python3

must python3 "$srcdir/tests/make-qcow2.py" mixed "$tmp/source.qcow2" 64M 64M 4
sum=$(sha256sum <"$tmp/source.qcow2")
for signal in INT TERM; do
    target=$tmp/target-$signal.qcow2
    # A background process of a script ignores SIGINT unless it is told otherwise.
    env --default-signal=INT "$blockmig" copy --json --bandwidth=10MiB/s "$tmp/source.qcow2" "$target" \
        >"$tmp/out" 2>"$tmp/messages" 3>&- </dev/null &
    pid=$!
    sleep 1.5
    begin=$(date +%s%N)
    kill -s "$signal" "$pid"
    wait "$pid"
    is $? 4 "SIG$signal: exit status 4"
    check "SIG$signal: within two seconds" test $((($(date +%s%N) - begin) / 1000000)) -lt 2000
    like "$(cat "$tmp/messages")" "job resume|same command|continue" "SIG$signal: it says how to go on"
    job=$(jq -r .job "$tmp/out")
    is "$(jq -r .result "$tmp/out")" rolled-back "SIG$signal: the result is in the report"
    is "$(sha256sum <"$tmp/source.qcow2")" "$sum" "SIG$signal: the source is as it was"
    if [ "$signal" = INT ]; then
        run_ok "SIG$signal: the same command finishes it" blockmig copy --json "$tmp/source.qcow2" "$target"
    else
        run_ok "SIG$signal: job resume finishes it" blockmig job resume --json "$job"
    fi
    is "$(jq -r .resumed <<<"$out")" true "SIG$signal: from where it was"
    same_content "$tmp/source.qcow2" "$target" "SIG$signal: the copy is right"
    image_clean "$target" "SIG$signal: and clean"
done
done_testing
