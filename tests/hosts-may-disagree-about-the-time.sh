#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The other host's clock (blockmig's and its agent's) is a hundred days ahead: machines go there and come back, ways back end when they should, copies
# go on, and journals and receipts are in order.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool faketime
need_free 1G
two_hosts

ahead=(faketime -f +100d)
on two pkill -x blockmigd
wait_for 20 on two bash -c '! pgrep -x blockmigd'
printf '#!/bin/sh\nexec %s %s "$@"\n' "${ahead[*]}" "$builddir/tools/blockmigd" >"$tmp/run-agent"
must chmod 755 "$tmp/run-agent"
blockmigd=$tmp/run-agent
host_agent two 192.0.2.2
says=$(on two curl -s --unix-socket /run/blockmig.sock http://agent/v1 | jq '.time | floor')
check "the other host's clock is ahead" test $((says - $(date +%s))) -gt $((99 * 86400))

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 64M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'
migrate one web blockmig://192.0.2.2 --json --keep-failback=1h --failback-to=blockmig://192.0.2.1/store
is "$status" 0 "a machine goes there" || diag "$err"
id=$(jq -r .job <<<"$out")
at_exit end_keeper_of "$id"
is "$(running_on web)$(defined_on web)" "two two " "and is there alone"
is "$(domain_verdict two web)" OK "it misses nothing"
must domain_cmd two web start
run on one "$blockmig" job show --json "$id"
is "$(jq -r '.state + " " + .phase' <<<"$out")" "failback window" "its way back is not over yet"
job failback "$id" --json
is "$status" 0 "it is brought back by the other host" || diag "$err"
is "$(running_on web)$(defined_on web)" "one one " "and is here alone"
is "$(domain_verdict one web)" OK "it misses nothing"
must domain_cmd one web start
must rm "$tmp"/two/srv/store/*.blockmig-source

migrate one web blockmig://192.0.2.2 --json --keep-failback=3s --failback-to=blockmig://192.0.2.1/store
is "$status" 0 "there again, with three seconds to come back" || diag "$err"
id=$(jq -r .job <<<"$out")
is_over()
{
    [ "$(on one "$blockmig" job show --json "$id" | jq -r .result)" = done ]
}
wait_for 30 is_over
is "$(on one "$blockmig" job show --json "$id" | jq -r '.result + " " + .phase')" "done done" "they are over when they are here"
is "$(domain_verdict two web)" OK "the machine misses nothing"

# A copy that is killed goes on, from the host that is ahead.
size=$((96 << 20))
random_file "$tmp/two/srv/store/noise.raw" $size 3
on two "${ahead[@]}" "$blockmig" copy --bandwidth=24MiB/s -v /srv/store/noise.raw blockmig://192.0.2.1/store/ \
    >"$tmp/killed.out" 2>"$tmp/killed.err" 3>&- </dev/null &
sleep 2.5
on two pkill -KILL -x blockmig
wait $! 2>/dev/null
run on two "${ahead[@]}" "$blockmig" copy --json /srv/store/noise.raw blockmig://192.0.2.1/store/
is "$status" 0 "a copy that was killed is gone on with" || diag "$err"
run cmp "$tmp/two/srv/store/noise.raw" "$tmp/one/srv/store/noise.raw"
is "$status" 0 "and is right"
done_testing
