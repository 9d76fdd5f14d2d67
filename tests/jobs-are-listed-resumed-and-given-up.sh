#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# job: what is running, what was interrupted, going on with it, giving it up.
. "${srcdir:-.}/tests/lib.sh"
need_tool jq

random_file "$tmp/disk" 48M 3
program=$builddir/tools/blockmig

state_of()
{
    blockmig job show --json "$1" | jq -r .state
}

# interrupt SIGNAL TARGET: starts a slow copy, waits for a checkpoint or a while, sends the signal, sets id.
interrupt()
{
    "$program" copy -q -f raw --bandwidth=8MiB/s "$tmp/disk" "$2" 3>&- </dev/null &
    local pid=$!
    wait_for 10 test -e "$2.blockmig-part"
    sleep 1
    run blockmig job list --json
    id=$(jq -r '.jobs[0].job' <<<"$out")
    is "$(jq -r '.jobs[0] | .state, .pid' <<<"$out" | xargs)" "running $pid" "a copy that runs is listed with its process"
    kill -"$1" $pid
    wait $pid
    status=$?
}

# Whoever was suspended while it opened the journal keeps nobody else from it for ever.
mkdir "$tmp/held"
start flock --no-fork "$tmp/held" sleep 600
BLOCKMIG_STATE_DIR=$tmp/held timeout 100 "$program" job list 3>&- &
waiting=$!

run_ok "an empty journal" blockmig job list
is "$out" "" "lists nothing"

interrupt KILL "$tmp/one"
is "$(state_of "$id")" unfinished "after SIGKILL it is unfinished"
fails_with 2 "finish belongs to live moves" blockmig job finish "$id"
like "$err" 'copy' "and the message says that this is a copy"
fails_with 2 "so does failback" blockmig job failback "$id"
run_ok "resume finishes it" blockmig job resume --json "$id"
is "$(jq -r '.result, .job' <<<"$out" | xargs)" "done $id" "as the same job"
check "the copy is whole" cmp "$tmp/disk" "$tmp/one"
is "$(state_of "$id")" "done" "it is done"
fails_with 3 "what is done is not resumed" blockmig job resume "$id"
fails_with 3 "and not given up" blockmig job cancel "$id"

interrupt TERM "$tmp/two"
is "$status" 4 "SIGTERM stops a copy in order"
is "$(state_of "$id")" rolled-back "that is its state"
run_ok "resume without an identifier takes the newest unfinished job" blockmig job resume --json
is "$(jq -r .job <<<"$out")" "$id" "which is this one"
check "the copy is whole" cmp "$tmp/disk" "$tmp/two"

interrupt KILL "$tmp/three"
run_ok "cancel gives a job up" blockmig job cancel "$id"
is "$(ls "$tmp" | grep three)" "" "nothing of it is left on the target"
fails_with 2 "there is nothing to resume" blockmig job resume

"$program" copy -q -f raw --bandwidth=8MiB/s "$tmp/disk" "$tmp/four" 3>&- </dev/null &
pid=$!
wait_for 10 test -e "$tmp/four.blockmig-part"
sleep 0.5
id=$(blockmig job list --json | jq -r '.jobs[0].job')
run_ok "cancel stops a running job too" blockmig job cancel "$id"
wait $pid
is "$?" 4 "its process ended in order"
is "$(ls "$tmp" | grep four)" "" "nothing of it is left on the target"

run_ok "show" blockmig job show -v "$id"
like "$out" "^job +$id\$" "names the job"
run_ok "list" blockmig job list
is "$(wc -l <<<"$out")" 5 "four jobs under a heading"
wait $waiting
is $? 0 "a journal that somebody has locked all the time can be used, too"
done_testing
