#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A block device that the other host does not reach is copied into its datastore, beside a disk that it does reach; the
# guest itself says that nothing is lost, also when blockmig is killed.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool losetup
need_free 2G
units='/dev/loop*'
two_hosts

must truncate -s 64M "$tmp/own"
must truncate -s 32M "$tmp/lun"
must truncate -s 64M "$tmp/stranger"
loop_device "$tmp/own"
own=$REPLY
at_exit blockdev --setrw "$own" # whoever gets that number next would find it read-only
loop_device "$tmp/lun"
lun=$REPLY
loop_device "$tmp/stranger"
must on two mount --bind "$REPLY" "$own"
must mkdir "$tmp/one/srv/scratch"

start_domain one web --on "block:<source dev='$own'/>" --on "block:<source dev='$lun'/>" \
    --append 'rate=300 span=16M flush=32 log=1'

migrate one web blockmig://192.0.2.2
is "$status" 3 "a device that the other host does not have is refused" || diag "$err"
like "$err" "not the same for both hosts .*--scratch names a directory" "with the reason, and the way"
migrate one web blockmig://192.0.2.2 --scratch=/srv/scratch --delete-source
is "$status" 3 "a device cannot be deleted"
like "$err" "$own is a block device: --delete-source" "which is said"

# brought TO [OPTION]...: killed first in the phases $phases
brought()
{
    local phase
    for phase in $phases; do
        killed_in one "$phase" migrate web blockmig://192.0.2.2 --scratch=/srv/scratch || diag "not killed in $phase"
        check "$phase: killed there, it does not run on both" test "$(running_on web)" != "one two "
    done
    migrate one web blockmig://192.0.2.2 --scratch=/srv/scratch --json
}

phases='converge prove'
brought
is "$status" 0 "the machine is brought to the other host" || diag "$err"
is "$(running_on web)$(defined_on web)" "two two " "and is there alone"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start
for view in '' --inactive; do
    xml=$(on two virsh dumpxml $view web)
    is "$(grep -o "<source file='[^']*'\|<source dev='[^']*'" <<<"$xml" | paste -sd' ')" \
        "<source file='/srv/store/${own##*/}' <source dev='$lun'" "its disks are the file and the LUN ${view:-now}"
done
is "$(files "$tmp/two/srv/store")$(files "$tmp/one/srv/scratch")" "${own##*/} " "no overlay is left"
is "$(blockdev --getro "$own")$(blockdev --getro "$lun")" 10 "the device that was left is read-only, the LUN is not"
must blockdev --setrw "$own"

# Rolled back: it goes on with the device that it had.
must on two virsh -q destroy web
must on two virsh -q undefine web
must rm "$tmp/two/srv/store/${own##*/}"
start_domain one again --on "block:<source dev='$own'/>" --append 'rate=300 span=16M flush=32 log=1'
on one timeout 100 "$blockmig" migrate again blockmig://192.0.2.2 --scratch=/srv/scratch --bandwidth=8MiB/s -v \
    >/dev/null 2>"$tmp/cut.err" 3>&- </dev/null &
wait_for 60 grep -q '^blockmig: base  vda' "$tmp/cut.err"
on one pkill -INT -x blockmig
wait $!
is $? 4 "Ctrl-C rolls it back" || diag "$(cat "$tmp/cut.err")"
is "$(running_on again)" "one " "it runs on here"
is "$(domain_verdict one again)" OK "and misses nothing"
for view in '' --inactive; do
    like "$(on one virsh dumpxml $view again)" "<source dev='$own'" "on its device ${view:-now}"
done
is "$(files "$tmp/two/srv/store")$(files "$tmp/one/srv/scratch")" "" "nothing is left of it"

# One that is off.
must on one virsh -q destroy again
migrate one again blockmig://192.0.2.2 --scratch=/srv/scratch --json
is "$status" 0 "one that is off goes, too" || diag "$err"
is "$(jq -r .method <<<"$out")$(defined_on again)" "coldtwo " "and is defined there"
start_again two again
is "$(domain_verdict two again)" OK "when it is started it misses nothing"
done_testing
