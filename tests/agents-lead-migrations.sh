#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An agent has migrations led for who may move machines, by a program with arguments that can be nothing else; each once,
# whoever dies meanwhile, and what becomes of it can be asked for as often as one likes.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"

cat >"$tmp/blockmig-for-tests" <<END
#!/bin/bash
printf '%s\n' "\$@" >>'$tmp/arguments'
echo \$\$ >'$tmp/pid'
echo 'blockmig: base' >&2
trap 'echo "blockmig: told to stop" >&2; echo "{\"result\": \"rolled-back\"}"; exit 4' TERM
[ ! -e '$tmp/slow' ] || until [ -e '$tmp/go' ]; do sleep 0.1; done
printf 'no end of line' >&2
echo '{"result": "done"}'
END
must chmod 755 "$tmp/blockmig-for-tests"
more_datastores="[machines]
libvirt=$tmp/libvirt-sock
directory=$tmp/sockets
program=$tmp/blockmig-for-tests"
local_agent

# id N: a number of a migration
id()
{
    printf '%032x' "$1"
}

# begin N JSON
begin()
{
    ask POST /v1/machines/migrations -d "{\"id\": \"$(id "$1")\", $2}"
}

# look N [OFFSET]
look()
{
    ask GET "/v1/machines/migrations/$(id "$1")?offset=${2:-0}"
}

is_over()
{
    look "$1"
    [ "$(jq .running <<<"$out")" = false ]
}

leader_is_gone()
{
    ! kill -0 "$1" 2>/dev/null
}

look 1
is "$http/$(jq -c . <<<"$out")" '200/{"running":false,"log":"","offset":0}' "of what was not begun nothing is known"
begin 1 '"machine": "we b", "target": "blockmig://host/store", "delete_source": true, "max_pause": 7, "bandwidth": 0, "cdrom": "keep"'
is "$http" 200 "a migration is begun"
wait_for 10 is_over 1 || not_ok "it comes to its end"
is "$(cat "$tmp/arguments")" "migrate
--json
--verbose
--connect
qemu+unix:///system?socket=$tmp/libvirt-sock
--bandwidth=0B/s
--max-pause=7ms
--cdrom=keep
--delete-source
--
we b
blockmig://host/store" "by these arguments"
is "$(jq -c '[.status, .report, .log]' <<<"$out")" '[0,{"result":"done"},"blockmig: base\nno end of line"]' "and it is told what became of it"
look 1 15
is "$(jq -r .log <<<"$out")" 'no end of line' "and from an offset on"
must rm "$tmp/arguments"
begin 1 '"machine": "web", "target": "blockmig://host/store"'
is "$http/$(ls "$tmp/arguments" 2>/dev/null)" 200/ "begun once more it does nothing"

n=10
for wrong in '"machine": "-c", "target": "x"' '"machine": "a\nb", "target": "x"' '"machine": "", "target": "x"' '"machine": "web"' \
    '"machine": "web", "target": "--help"' '"machine": "web", "target": "x", "cdrom": "keep --force"' '"machine": 7, "target": "x"' \
    '"machine": "web", "target": "x", "max_pause": "1s"' '"machine": "web", "target": "x", "max_pause": -1'; do
    begin $n "$wrong"
    is "$http" 400 "refused: $wrong"
    n=$((n + 1))
done
for wrong in ../../x "$(id 1)/../x" 1 "$(id 1)x" ABCDEFABCDEFABCDEFABCDEFABCDEFAB; do
    ask POST /v1/machines/migrations -d "{\"id\": \"$wrong\", \"machine\": \"web\", \"target\": \"x\"}"
    is "$http" 400 "no id: $wrong"
done
ask POST /v1/machines/reach -d '{"file": "/etc/passwd"}'
is "$http" 400 "what is on this host is not looked at"
is "$(ls "$tmp/arguments" 2>/dev/null)" "" "nothing of that was run"

# ---- who dies ---------------------------------------------------------------------------------------

must touch "$tmp/slow"
begin 2 '"machine": "web", "target": "blockmig://host/store"'
wait_for 10 test -s "$tmp/arguments" || not_ok "it runs"
look 2
is "$(jq -c '[.running, .log, has("status")]' <<<"$out")" '[true,"blockmig: base\n",false]' "while it runs it is told what it says"
must kill "$agent"
wait "$agent"
is $? 0 "the agent ends without waiting for it"
is "$(kill -0 "$(cat "$tmp/pid")" && echo lives)" lives "and it lives on"
local_agent
look 2
is "$(jq .running <<<"$out")" true "the next agent knows of it"
kill -KILL "$agent"
wait "$agent" 2>/dev/null
must rm -f "$tmp/agent.sock"
local_agent
must touch "$tmp/go"
wait_for 10 is_over 2 || not_ok "it comes to its end"
is "$(jq -c '[.status, .report.result]' <<<"$out")" '[0,"done"]' "and what became of it, too"

must rm "$tmp/go" "$tmp/arguments"
begin 3 '"machine": "web", "target": "blockmig://host/store"'
wait_for 10 test -s "$tmp/arguments" || not_ok "it runs"
ask DELETE "/v1/machines/migrations/$(id 3)"
is "$http" 200 "one that is under way is asked to stop"
wait_for 10 is_over 3 || not_ok "it stops"
is "$(jq -c '[.status, .report.result]' <<<"$out")" '[4,"rolled-back"]' "in order"
like "$(jq -r .log <<<"$out")" "told to stop" "as it says"

must rm "$tmp/arguments"
begin 4 '"machine": "web", "target": "blockmig://host/store"'
wait_for 10 test -s "$tmp/arguments" || not_ok "it runs"
leader=$(cat "$BLOCKMIG_STATE_DIR/led/$(id 4)/leader")
must kill -KILL "$leader"
wait_for 10 leader_is_gone "$leader"
look 4
is "$(jq .running <<<"$out")" true "without who waits for its end it is still running"
must touch "$tmp/go"
wait_for 10 is_over 4 || not_ok "it comes to its end"
is "$(jq 'has("status")' <<<"$out")" false "but nobody knows how it ended"
must rm "$tmp/slow" "$tmp/blockmig-for-tests"
begin 5 '"machine": "web", "target": "blockmig://host/store"'
is "$http" 409 "without the program nothing is begun"
like "$out" 'blockmig-for-tests: No such file' "and that is told"
must kill "$agent"
wait "$agent"

more_datastores=
local_agent
begin 6 '"machine": "web", "target": "blockmig://host/store"'
is "$http" 409 "who takes no machines leads none"
done_testing
