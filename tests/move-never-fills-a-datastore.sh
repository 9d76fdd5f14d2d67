#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A datastore that runs full while a disk is moved: the machine never gets to know.  On the source the move is rolled
# back in time, on the target it parks.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_loop
need_free 2G

# files DIRECTORY: what is in it, in one line.
files()
{
    (cd "$1" && LC_ALL=C ls | grep -v lost+found | tr '\n' ' ')
}

# fill DIRECTORY LEAVE: leaves so many bytes free, in a file that nobody moves.
fill()
{
    local free
    sync -f "$1"
    free=$(df --output=avail -B1 "$1" | tail -n 1)
    must fallocate -l $((free - $(numfmt --from=iec "$2"))) "$1/ballast"
    sync -f "$1"
}

# machine NAME DIRECTORY FORMAT: it will write to all of a disk of 160 MiB with 128 MiB of data.
machine()
{
    must qemu-img create -q -f "$3" "$2/disk.$3" 160M
    must qemu-io -f "$3" -c 'write -P 7 0 128M' "$2/disk.$3"
    start_guest "$1" --libvirt-style --disk "$2/disk.$3:$3" --append 'flush=64 log=1 hold=1 rate=0'
    guest_wait_ready "$1"
}

unharmed()
{
    is "$(grep -c 'guest: vd.: ' "$tmp/$1/console")" 0 "$1: no write failed"
    is "$(grep -c BLOCK_IO_ERROR "$tmp/$1/events")" 0 "$1: nor did the machine see an error"
    is "$(guest_verdict "$1")" OK "$1: it misses nothing"
    stop_guest "$1"
    like "$(host_verdict "$1" 0 "$2" "$3")" '^OK [1-9]' "$1: and the host agrees"
}

# ---- the source ----
source_runs_full()
{
    local name=$1 format=$2 place
    small_filesystem ext4 400M -q
    place=$REPLY
    mkdir "$tmp/$name.b"
    machine "$name" "$place" "$format"
    fill "$place" 90M
    must guest_cmd "$name" start
    # The copy alone would take two minutes.
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json --bandwidth 1MiB/s
    is "$status" 4 "$name: the move is rolled back" || diag "$err"
    like "$err" "$place: only [0-9.]+ [KMG]iB are free: the machine's overlays \(.*/s more\) may need .*" \
        "$name: and says why, with the figures"
    diag "$err"
    is "$(jq -r .result <<<"$out")" rolled-back "$name: the result says so"
    is "$(files "$place")" "ballast disk.$format " "$name: nothing is left beside the source"
    is "$(files "$tmp/$name.b")" "" "$name: nor on the target"
    diag "free at the end: $(df --output=avail -BM "$place" | tail -n 1)"
    unharmed "$name" "$place/disk.$format" "$format"
}
source_runs_full qcow2 qcow2
source_runs_full raw raw

# ---- the source, while the move is parked ----
state()
{
    blockmig job list --json | jq -r '.jobs[0].state'
}

is_rolled_back()
{
    [ "$(state)" = rolled-back ]
}

small_filesystem ext4 400M -q
place=$REPLY
mkdir "$tmp/parked.b"
machine parked "$place" qcow2
run blockmig move "qmp:$tmp/parked/qmp" "$tmp/parked.b" --max-pause=1ms --json
is "$status" 5 "parked: the move parks" || diag "$err"
fill "$place" 90M
must guest_cmd parked start
wait_for 90 is_rolled_back && ok "parked: it is given up by itself" ||
    not_ok "parked: it is given up by itself: $(state); $(cat "$BLOCKMIG_STATE_DIR/keeper.log")"
like "$(cat "$BLOCKMIG_STATE_DIR/keeper.log")" "$place: only [0-9.]+ [KMG]iB are free: the machine's overlays" \
    "parked: the keeper's log says why"
is "$(files "$place")" "ballast disk.qcow2 " "parked: nothing is left beside the source"
is "$(files "$tmp/parked.b")" "" "parked: nor on the target"
unharmed parked "$place/disk.qcow2" qcow2

# ---- the target ----
# Somebody else takes the room that preflight had found.
small_filesystem ext4 400M -q
place=$REPLY
mkdir "$tmp/a"
machine target "$tmp/a" qcow2
must guest_cmd target "rate 50"
must guest_cmd target start
"$builddir/tools/blockmig" move "qmp:$tmp/target/qmp" "$place" "${patient[@]}" --json --bandwidth 8MiB/s \
    >"$tmp/json" 2>"$tmp/err" 3>&- </dev/null &
pid=$!
wait_for 20 test -e "$place/disk.qcow2"
fill "$place" 60M
slowed()
{
    grep -q 'the copy is slowed' "$tmp/err"
}
wait_for 10 slowed || not_ok "target: the copy is slowed first"
like "$(cat "$tmp/err")" "$place: .* are free and .* may be needed: the copy is slowed" "target: said with the figures"
wait "$pid"
is "$?" 5 "target: the move parks" || diag "$(cat "$tmp/err")"
like "$(cat "$tmp/err")" "$place: only .* are free, and .* may be needed" "target: and says why"
is "$(jq -r .result "$tmp/json")" parked "target: the result says so"
diag "$(cat "$tmp/err")"
unharmed target "$tmp/a/disk.qcow2" qcow2

# ---- the target, after the switch ----
# Others take what is left while it is proved: held still in that phase, so that they can.
is_switched()
{
    [ "$(guest_pauses after | wc -l)" -gt "$1" ]
}

phase()
{
    blockmig job list --json | jq -r '.jobs[0].phase'
}

mkdir "$tmp/c"
machine after "$tmp/c" qcow2
must guest_cmd after start
for attempt in 1 2 3 4 5; do
    small_filesystem ext4 400M -q
    place=$REPLY
    before=$(guest_pauses after | wc -l)
    "$builddir/tools/blockmig" move "qmp:$tmp/after/qmp" "$place" "${patient[@]}" --json --delete-source \
        >"$tmp/json" 2>"$tmp/err" 3>&- </dev/null &
    pid=$!
    wait_for 60 is_switched "$before" || not_ok "after: it is switched"
    kill -STOP "$pid"
    [ "$(phase)" = prove ] && break
    diag "attempt $attempt: too late, it is in its phase $(phase)"
    kill -CONT "$pid"
    wait "$pid"
    must blockmig move "qmp:$tmp/after/qmp" "$tmp/c" "${patient[@]}" --delete-source
done
fill "$place" 20M
kill -CONT "$pid"
wait "$pid"
is "$?" 4 "after: the move is rolled back" || diag "$(cat "$tmp/err")"
diag "$(cat "$tmp/err")"
like "$(cat "$tmp/err")" "$place: only .* are free, and .* may be needed for what the machine writes" "after: and says why"
is "$(jq -r .result "$tmp/json")" rolled-back "after: the result says so"
is "$(files "$place")" "ballast " "after: nothing is left on the target"
is "$(files "$tmp/c")" "disk.qcow2 " "after: the machine is back on the source, as before"
unharmed after "$tmp/c/disk.qcow2" qcow2
done_testing
