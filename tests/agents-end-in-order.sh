#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An agent that is told to end does what it was asked before, within bounds, and nothing new.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"

random_file "$tmp/first" 1M 1
random_file "$tmp/second" 1M 2
"$srcdir/tests/make-frames.py" data 0 "$tmp/first" data 1048576 "$tmp/second" >"$tmp/stream"
cat "$tmp/first" "$tmp/second" >"$tmp/model"

# told_to_end cut|whole NAME: with a request under way, in the background; prints into $tmp/NAME.said.
told_to_end()
{
    open_file store "$2" create
    start timeout 120 "$srcdir/tests/helpers/ending-agent.py" "$1" "$tmp/agent.sock" "$agent" "$handle" "$tmp/stream" \
        "$tmp/store/$2" >"$tmp/$2.said"
    helper=$REPLY
}

# ends WHAT: the agent does, in order.
ends()
{
    local code
    wait_for 60 eval "! kill -0 $agent" || kill -KILL "$agent"
    wait "$agent"
    code=$?
    is $code 0 "$1"
    wait "$helper"
}

said()
{
    sed -n "s/^$2: //p" "$tmp/$1.said"
}

local_agent
told_to_end whole whole.raw
ends "an agent that is told to end does"
is "$(said whole.raw before)" 200 "it had answered"
is "$(said whole.raw new)" refused "then nobody is let in any more"
is "$(said whole.raw kept)" "503 connection: close retry-after: 1" "who is in is told to come back"
is "$(said whole.raw "under way")" 200 "what was under way is answered"
check "and done" cmp "$tmp/store/whole.raw" "$tmp/model"

local_agent
told_to_end cut cut.raw
before=$SECONDS
ends "what does not come to its end does not keep it"
is "$(said cut.raw kept)" "503 connection: close retry-after: 1" "though it waited for that"
is "$(said cut.raw "under way")" nothing "and is cut off"
check "but what has come is there" cmp -n 1048576 "$tmp/store/cut.raw" "$tmp/model"

patient=$((SECONDS - before))
local_agent
told_to_end cut impatient.raw
before=$SECONDS
must wait_for 30 grep -q '^kept' "$tmp/impatient.raw.said"
kill -TERM "$agent"
ends "a second signal ends it, too"
check "much earlier ($((SECONDS - before)) s, not $patient s)" test $((SECONDS - before)) -lt $((patient / 2))
is "$(said impatient.raw "under way")" nothing "whatever is under way"

# ---- a client rides over it -------------------------------------------------------------------------

mixed_file "$tmp/disk.raw" 100M 3
local_agent
start blockmig copy -q --bandwidth=40MiB/s "$tmp/disk.raw" "$store/disk.raw"
copy=$REPLY
wait_for 20 test -s "$tmp/store/disk.raw.blockmig-part"
for i in 1 2; do
    sleep 0.5
    kill -TERM "$agent"
    wait "$agent"
    is $? 0 "$i: it ends under a copy"
    local_agent
done
wait "$copy"
is $? 0 "which goes on with the next one"
check "and comes out right" cmp "$tmp/disk.raw" "$tmp/store/disk.raw"
done_testing
