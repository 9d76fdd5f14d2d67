#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Disks of a libvirt domain are moved between directories of one host while it runs; both of its definitions follow.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
emulator=$tmp/run-qemu
slow_syncs run-qemu /usr/bin/qemu-system-x86_64 "$tmp/slow"
new_host one
libvirt_up one
must mkdir "$tmp/one/srv/other"
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
must qemu-img create -q -f raw "$tmp/one/srv/store/data.img" 32M
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=300 span=16M flush=32 log=1'

# files_of: of both disks, as it runs and as it will be started.
files_of()
{
    { on one virsh dumpxml web; on one virsh dumpxml --inactive web; } |
        sed -n "s/.*<source file='\([^']*\)'.*/\1/p" | tr '\n' ' '
}

# What --guest-share goes by.
least=$( (on one virsh domblkstat web vda; on one virsh domblkstat web vdb) |
    awk '$2 == "rd_req" || $2 == "wr_req" { sum += $3 } END { print sum }')
read -r requests time < <(on one "$builddir/tests/helpers/domain-stats" web)
check "the requests to both disks are counted, and what they cost" \
    test "$least" -gt 0 -a "$requests" -ge "$least" -a "$time" -gt 0

move()
{
    run on one timeout 200 "$blockmig" move web "$@"
}

move /srv/other --json
is "$status" 0 "both disks are moved" || diag "$err"
is "$(jq -c '[.result, .method, .pause_ms > 0, (.disks | length)]' <<<"$out")" '["done","mirror",true,2]' \
    "and the report says how"
diag "pause $(jq .pause_ms <<<"$out") ms"
is "$(files_of)" "/srv/other/disk.qcow2 /srv/other/data.img /srv/other/disk.qcow2 /srv/other/data.img " \
    "both definitions name the new files"
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start
is "$(files "$tmp/one/srv/other")" "data.img disk.qcow2 " "nothing else is on the target"
is "$(files "$tmp/one/srv/store")" "data.img.blockmig-source disk.qcow2.blockmig-source " "the source is kept"
must rm "$tmp"/one/srv/store/*

first_is_merged()
{
    [ "$(on one virsh domblklist web | awk '$1 == "vda" { print $2 }')" = "/srv/$to/disk.qcow2" ]
}

for phase in base switchover settle settle:first_is_merged; do
    to=store
    [ -z "$(files "$tmp/one/srv/store")" ] || to=other
    [ "$phase" = "${phase#*:}" ] || must touch "$tmp/slow"
    killed_in one "$phase" move web "/srv/$to" --delete-source || diag "not killed in time"
    rm -f "$tmp/slow"
    is "$(on one virsh domstate web | head -n 1)" running "killed in $phase: the machine runs"
    move "/srv/$to" --delete-source
    is "$status" 0 "$phase: the same command ends it" || diag "$err"
    is "$(files_of)" "/srv/$to/disk.qcow2 /srv/$to/data.img /srv/$to/disk.qcow2 /srv/$to/data.img " \
        "$phase: both definitions name the new files"
    is "$(domain_verdict one web)" OK "$phase: the guest misses nothing"
    must domain_cmd one web start
    is "$(files "$tmp/one/srv/store")$(files "$tmp/one/srv/other")" "data.img disk.qcow2 " "$phase: nothing is left"
done

move /srv/nowhere
is "$status" 3 "a directory that is not there is refused"
to=/srv/store
[ -z "$(files "$tmp/one/srv/store")" ] || to=/srv/other
move "$to" --disk vdb --delete-source
is "$status" 0 "one of two disks" || diag "$err"
like "$(files_of)" "$to/data.img" "is where it was to go"
unlike "$(files_of)" "$to/disk.qcow2" "and the other is where it was"
is "$(domain_verdict one web)" OK "the guest misses nothing"

# guarded WORD: the machine is suspended under a guard that was told this, and whose owner is gone then.
guarded()
{
    must on one python3 -c '
import os, socket, subprocess, sys
program, uuid, word = sys.argv[1:]
ours, theirs = socket.socketpair()
if os.fork() == 0:
    os.dup2(theirs.fileno(), 3)
    os.closerange(4, 100)
    os.execv(program, ["blockmig-domain-guard", "-", uuid])
theirs.close()
ours.send(b"a")
ours.recv(1)
subprocess.run(["virsh", "-q", "suspend", uuid], check=True)
if word == "d":
    ours.send(b"d")
    ours.recv(1)
ours.close()
os.wait()' "$builddir/tools/blockmig" "$(on one virsh domuuid web | head -n 1)" "$1"
    on one virsh domstate web | head -n 1
}

is "$(guarded a)" running "whose owner dies while it stands still goes on"
is "$(guarded d)" paused "but not who was told to stay"
must on one virsh -q resume web
must on one virsh -q destroy web
must qemu-img check -q "$tmp/one$(domain_file one web --inactive)"

# ---- others who do something with the machine --------------------------------------------------------

start_again one web
was=$(files_of)
must mkdir "$tmp/one/srv/third"
on one timeout 200 "$blockmig" move web /srv/third --bandwidth=4MiB/s -v >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
wait_for 60 grep -q '^blockmig: base  vda' "$tmp/err"
run on one "$blockmig" move "$(on one virsh domuuid web | head -n 1)" /srv/other
is "$status" 3 "another command does not touch it, whatever it calls the machine"
like "$err" "job .* moves this machine" "which is said"
run on one env BLOCKMIG_STATE_DIR=/srv/state2 "$blockmig" move web /srv/other
is "$status" 3 "nor does one that does not know of the move"
like "$err" "blockmig-1, the overlay of another move" "which is said"
must on one virsh -q snapshot-create-as web mine --disk-only --no-metadata
wait $!
is "$?" 4 "a snapshot that somebody makes ends the move" || diag "$(cat "$tmp/err")"
like "$(cat "$tmp/err")" "somebody else has changed its layers: .*\.mine is where .*blockmig-1 was" "which is told"
is "$(files_of)" "$was" "the machine is on its own disks"
is "$(domain_verdict one web)" OK "and misses nothing"
must on one virsh -q destroy web

# ---- a datastore that the overlays would fill ---------------------------------------------------------

must mkdir "$tmp/one/srv/small"
must on one mount -t tmpfs -o size=112M tmpfs /srv/small
must on one qemu-img create -q -f qcow2 /srv/small/full.qcow2 128M
must on one qemu-io -f qcow2 -c 'write -P 3 100M 20M' /srv/small/full.qcow2
start_domain one full --disk /srv/small/full.qcow2:qcow2 --append 'rate=5 span=72M flush=8 log=1'
on one timeout 200 "$blockmig" move full /srv/other --bandwidth=1MiB/s -v >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
wait_for 60 grep -q '^blockmig: base  vda' "$tmp/err"
must domain_cmd one full 'rate 0'
wait $!
is "$?" 4 "a source that runs full ends the move" || diag "$(cat "$tmp/err")"
like "$(cat "$tmp/err")" "/srv/small: only .* are free: the machine's overlays .* to be rolled back" "which is told"
is "$(on one virsh domstate full --reason | head -n 1)" "running (booted)" "the machine never met a full datastore"
is "$(on one ls /srv/small) $(domain_file one full)" "full.qcow2 /srv/small/full.qcow2" "it is on its own disk, and nothing is left"
is "$(domain_verdict one full)" OK "it misses nothing"
must on one virsh -q destroy full
done_testing
