#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What would pass the largest size of a file (ulimit -f) fails and is told: no signal ends the command, and what create
# began is gone.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
need_tool qemu-img qemu-io jq prlimit
cd "$tmp" || exit

# limited KIB COMMAND...
limited()
{
    (ulimit -f "$1" && shift && exec "$@")
}

for options in '-O raw' '-O qcow2 -o preallocation=full' '-O vmdk -o subformat=twoGbMaxExtentFlat'; do
    # shellcheck disable=SC2086
    fails_with 1 "create $options" limited 4000 "$blockmig" create --json $options big.image 1G
    is "$(jq -r .result <<<"$out")" failed "fails with a report"
    like "$err" '^blockmig: .*: File too large' "that says why"
    is "$(ls -d big* 2>/dev/null)" '' "and leaves nothing"
done

must qemu-img create -q -f qcow2 source.qcow2 32M
fails_with 3 "a copy without room for its journal" limited 10 "$blockmig" copy --json source.qcow2 target.qcow2
is "$(jq -r .result <<<"$out")" refused "is refused with a report"
run_ok "without the limit it is done" blockmig copy -q source.qcow2 target.qcow2

must qemu-img create -q -f qcow2 base.qcow2 20M
must qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
must qemu-io -c 'write -P 5 0 15M' overlay.qcow2
fails_with 1 "a merge that comes to the limit" limited 4000 "$blockmig" commit --json overlay.qcow2
is "$(jq -r .result <<<"$out")" failed "fails with a report"
run_ok "the same command finishes it" blockmig commit -q overlay.qcow2
same_content base.qcow2 overlay.qcow2 "with nothing lost"

local_agent
must prlimit --pid "$agent" --fsize=4000000
fails_with 1 "a file that is too large for an agent" blockmig create --json -O raw "$store/big.raw" 1G
like "$err" 'File too large' "is told"
check "by an agent that goes on" kill -0 "$agent"
done_testing
