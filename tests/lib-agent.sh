# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Agents for tests.  Sourced after lib.sh.

need_tool curl jq

# local_agent: serves $tmp/store as "store" and, read-only, $tmp/frozen as "frozen", on a socket.  Sets agent to its
# pid.  Called again it starts anew.  $more_datastores is added to its configuration, $more_agent to its group [agent].
local_agent()
{
    must mkdir -p "$tmp/store" "$tmp/frozen"
    cat >"$tmp/agent.conf" <<END
[agent]
socket=$tmp/agent.sock
${more_agent:-}
[datastore store]
directory=$tmp/store
[datastore frozen]
directory=$tmp/frozen
read-only=true
${more_datastores:-}
END
    start_agent "$tmp/agent.conf"
    store=blockmig+unix:///store
    export BLOCKMIG_AGENT_SOCKET=$tmp/agent.sock
}

# start_agent CONFIG
start_agent()
{
    start "$builddir/tools/blockmigd" --config "$1"
    agent=$REPLY
    wait_for 10 agent_answers "$1" || must false "no agent: $1"
}

agent_answers()
{
    local socket listen
    socket=$(sed -n 's/^socket=//p' "$1")
    listen=$(sed -n 's/^listen=//p' "$1")
    if [ -n "$socket" ]; then
        curl -sf --unix-socket "$socket" http://agent/v1
    else
        (: </dev/tcp/"${listen%:*}/${listen#*:}") 2>/dev/null
    fi
}

# ask METHOD PATH [CURL-OPTIONS...]: of the local agent; out is its answer, http the status.
ask()
{
    local method=$1 path=$2
    shift 2
    run curl -s --path-as-is --max-time 60 --unix-socket "${BLOCKMIG_AGENT_SOCKET}" -X "$method" -w '\n%{http_code}' "$@" "http://agent$path"
    http=${out##*$'\n'}
    out=${out%$'\n'*}
}

# open_file DATASTORE PATH MODE: sets handle.
open_file()
{
    ask POST /v1/handles -d "{\"datastore\": \"$1\", \"path\": \"$2\", \"mode\": \"$3\", \"linger\": 60}"
    handle=$(jq -r '.handle // empty' <<<"$out")
}
