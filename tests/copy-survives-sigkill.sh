#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Killed with SIGKILL at any moment, as often as it takes: the same command again finishes the copy.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq python3 sqlite3
use_seed

make_source()
{
    must python3 "$srcdir/tests/make-qcow2.py" mixed "$tmp/source.qcow2" 160M 160M "$seed"
    must qemu-img convert -O raw "$tmp/source.qcow2" "$tmp/source.raw"
    must qemu-img create -q -f qcow2 -b "$tmp/source.qcow2" -F qcow2 "$tmp/overlay.qcow2"
    write_patterns "$tmp/overlay.qcow2" qcow2 $((160 << 20)) 100
}

# killed_after SECONDS COMMAND...: 0 if the command had ended in peace before.
killed_after()
{
    local seconds=$1 pid
    shift
    "$@" >"$tmp/$BASHPID.out" 2>&1 3>&- </dev/null &
    pid=$!
    sleep "$seconds"
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
}

# finish SOURCE TARGET FORMAT: the last run, without a limit; prints what is wrong, or nothing.
finish()
{
    local json code
    json=$("$blockmig" copy --json --chain=flatten -O "$3" "$1" "$2" 2>"$tmp/$BASHPID.err" 3>&-)
    code=$?
    # Killed between the last record in the journal and its own exit, it has nothing left to do.
    if [ "$code" -ne 0 ] && ! { [ "$code" -eq 3 ] && qemu-img compare -q "$1" "$2" 3>&-; }; then
        echo "exit status $code: $(cat "$tmp/$BASHPID.err")"
        return
    fi
    [ "$code" -ne 0 ] || jq -r 'select(.resumed) | "resumed"' <<<"$json" >>"$tmp/resumed"
    qemu-img compare "$1" "$2" 3>&- >"$tmp/$BASHPID.cmp" 2>&1 || cat "$tmp/$BASHPID.cmp"
    [ "$3" = raw ] || qemu-img check "$2" 3>&- >"$tmp/$BASHPID.cmp" 2>&1 || cat "$tmp/$BASHPID.cmp"
}

# checkpoints TARGET: how far the journal says that its copy is, in bytes; 0: nowhere.
checkpoints()
{
    sqlite3 -cmd '.timeout 5000' "$BLOCKMIG_STATE_DIR/journal.sqlite" \
        "SELECT coalesce(max(frontier), 0) FROM checkpoint JOIN disk USING (job, disk) WHERE target = '$1'" \
        2>/dev/null 3>&- || echo 0
}

# killed_behind_checkpoint TARGET COMMAND...: as soon as there is a new one, however slow the machine is.
killed_behind_checkpoint()
{
    local target=$1 before pid tries
    shift
    before=$(checkpoints "$target")
    "$@" >"$tmp/$BASHPID.out" 2>&1 3>&- </dev/null &
    pid=$!
    for ((tries = 0; tries < 600; tries++)); do
        [ "$(checkpoints "$target")" = "$before" ] || break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
}

# slow_worker SOURCE FORMAT: checkpoints are 5 s apart, so this run is slowed down, and killed twice.
slow_worker()
{
    local source=$1 format=$2 target=$tmp/slow-$BASHPID
    local copy=("$blockmig" copy -q --bandwidth=9MiB/s --chain=flatten -O "$format" "$source" "$target")
    killed_after 0.7 "${copy[@]}"
    killed_behind_checkpoint "$target" "${copy[@]}"
    finish "$source" "$target" "$format"
    rm -f "$target"
}

make_source
slow_worker "$tmp/source.qcow2" qcow2 >"$tmp/w1" &
slow_worker "$tmp/source.raw" qcow2 >"$tmp/w2" &
slow_worker "$tmp/overlay.qcow2" raw >"$tmp/w3" &
wait
for worker in 1:qcow2 2:raw-to-qcow2 3:chain-to-raw; do
    is "$(cat "$tmp/w${worker%%:*}")" "" "killed between checkpoints: ${worker#*:}"
done
is "$(sort -u "$tmp/resumed" 2>/dev/null)" resumed "runs went on from their checkpoints"
is "$(wc -l <"$tmp/resumed" 2>/dev/null || echo 0)" 3 "all of them did"

# At full speed, at any moment: before the first record, in the middle, in the proof, after the end.
begin=$(date +%s%N)
run "$blockmig" copy -q -O qcow2 "$tmp/source.qcow2" "$tmp/whole"
whole=$((($(date +%s%N) - begin) / 1000000))
is "$status" 0 "a run that nobody kills takes $whole ms"
wrong=
pick 8 500
count=$REPLY
for ((round = 0; round < count; round++)); do
    rm -f "$tmp/target"
    below 3
    kills=$((REPLY + 1))
    for ((k = 0; k < kills; k++)); do
        below $((whole + whole / 4))
        delay=$(printf '%d.%03d' $((REPLY / 1000)) $((REPLY % 1000)))
        killed_after "$delay" "$blockmig" copy -q --chain=flatten -O qcow2 "$tmp/overlay.qcow2" "$tmp/target"
    done
    got=$(finish "$tmp/overlay.qcow2" "$tmp/target" qcow2)
    [ -z "$got" ] || wrong+="round $round, last delay $delay: $got; "
done
is "$wrong" "" "killed at $count random moments: every copy was finished and is right"
is "$(ls "$tmp/target"* | wc -l)" 1 "nothing is left beside the target"
done_testing
