#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An image that reserves space is begun only where there is enough; the others may grow later.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
need_root
need_tool mount jq

mkdir "$tmp/store"
must mount -t tmpfs -o size=40m,mode=700 none "$tmp/store"
at_exit unmount "$tmp/store"
local_agent

for place in "$tmp/store" "$store"; do
    for options in 'raw -o preallocation=falloc' 'raw -o preallocation=full' 'qcow2 -o preallocation=falloc' \
        'qcow2 -o preallocation=full'; do
        # shellcheck disable=SC2086
        fails_with 5 "${place%%:*}: $options without room" "$blockmig" create --json -O $options "$place/x" 1G
        like "$(jq -r 'select(.result == "parked").error' <<<"$out")" \
            "/store/x: no room: 1 GiB \([0-9]+ bytes\) needed, the .* allows 40 MiB" "is told before"
    done
    is "$(ls -A "$tmp/store")" '' "nothing was made"
    run_ok "with room it is" blockmig create -q -O qcow2 -o preallocation=full "$place/x" 20M
    must rm "$tmp/store/x"
done
run_ok "tables alone need little" blockmig create -q -O qcow2 -o preallocation=metadata "$tmp/store/x" 1G
done_testing
