#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A wrong command line: status 2, the reason on standard error, nothing on standard output, nothing done.
. "${srcdir:-.}/tests/lib.sh"
need_tool jq

must truncate -s 1M "$tmp/a" "$tmp/b"
must mkdir "$tmp/empty"

# wrong REASON-REGEX ARGUMENTS...
wrong()
{
    local reason=$1
    shift
    run blockmig "$@"
    # --json prints an object for every failure; otherwise there is no result.
    [[ " $* " != *" --json "* ]] || out=$(jq -r 'select(.result == "refused" and has("error")) | empty' <<<"$out" 2>&1)
    if [ "$status" = 2 ] && [ -z "$out" ] && grep -Eq -e "^blockmig: .*$reason" <<<"$err" && [ "$(wc -l <<<"$err")" = 1 ]; then
        ok "blockmig $*"
    else
        not_ok "blockmig $*"
        diag "status $status, standard output \"$out\", standard error:"
        diag "$err"
    fi
}

wrong 'unknown command "inof"; did you mean "info"' inof "$tmp/a"
wrong 'unknown command "frobnicate"' frobnicate
wrong 'before a command' --json info "$tmp/a"
wrong 'unknown option --jsno; did you mean --json' info --jsno "$tmp/a"
wrong 'unknown option -Z' info -Z "$tmp/a"
wrong 'option --strict does not apply here' info --strict "$tmp/a"
wrong 'option -O does not apply here' info -O raw "$tmp/a"
wrong 'option --json takes no value' info --json=yes "$tmp/a"
wrong 'option --format needs a value' info "$tmp/a" --format
wrong 'option -f needs a value' info "$tmp/a" -f
wrong 'unknown option -Z' info --json -qZ "$tmp/a"
wrong 'option -f needs a value' info --json "$tmp/a" -qf
wrong 'copy: --verify: "all" is not one of full, written, none' copy --verify=all "$tmp/a" "$tmp/empty"
wrong '--bandwidth: .*unit' copy --bandwidth=100 "$tmp/a" "$tmp/empty"
wrong '"99" is not open|descriptor 99 is not open' copy --progress=99 "$tmp/a" "$tmp/empty"
wrong 'descriptor' copy --progress=x "$tmp/a" "$tmp/empty"
wrong '--delete-source .*--salvage' copy --salvage --delete-source "$tmp/a" "$tmp/empty"
wrong '--delete-source needs --verify=full' copy --verify=written --delete-source "$tmp/a" "$tmp/empty"
wrong 'paper' copy -O paper "$tmp/a" "$tmp/empty"
wrong '"size" |size' copy -O raw -o size=3 "$tmp/a" "$tmp/empty"
wrong '"rescue" cannot be planned' plan rescue "$tmp/a" "$tmp/empty"
wrong 'blockmig://HOST' migrate web "$tmp/empty"
wrong 'only machines of libvirt' migrate qmp:/x blockmig://host/store
wrong 'see blockmig migrate' move --method=live web "$tmp/empty"
wrong 'stays on this host' migrate --method=mirror web blockmig://host/store
wrong 'a machine is named qmp:SOCKET' plan move "$tmp/a" "$tmp/empty"
wrong 'too few arguments' plan copy "$tmp/a"
wrong '"pause" is not one of' job pause
wrong 'which job' job cancel
wrong 'no job "2026"' job show 2026
wrong 'no unfinished job' job resume
wrong 'too few arguments' info
wrong 'argument 2 is empty' copy "$tmp/a" ''
wrong 'copy: --state-dir: the value is empty' copy --state-dir= "$tmp/a" "$tmp/empty"
wrong 'job: --state-dir: the value is empty' job list --state-dir=
wrong 'info: --allow-root: the value is empty' info --json --allow-root= "$tmp/a"
wrong 'create: --parent: the value is empty' create -O qcow2 --parent '' "$tmp/empty/x"
wrong 'unexpected argument' info "$tmp/a" "$tmp/b"
wrong 'option -[a-z-]* could be several' info --ver "$tmp/a"
wrong '"paper" ' info -f paper "$tmp/a"
wrong '-q and -v contradict' map -q -v "$tmp/a"
wrong 'none for "tcsh"' completion tcsh
wrong 'unknown command "nothing"' help nothing

run blockmig
is "$status" 2 "no command at all"
like "$err" '^Usage: blockmig ' "shows the usage on standard error"
is "$out" "" "and nothing on standard output"

for command in "" $(blockmig help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
    run blockmig $command --help
    is "$status$err" 0 "blockmig $command --help is no error"
    run blockmig $command --version
    like "$out" '^blockmig [0-9]+\.[0-9]+' "blockmig $command --version"
done

for command in $(blockmig help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
    is "$(blockmig help "$command" | awk 'length > 80')" "" "help $command fits a terminal"
done

run bash -c '"$1" map "$2" >/dev/full' - "$builddir/tools/blockmig" "$tmp/a"
is "$status" 1 "a full standard output is a failure"
like "$err" 'standard output: No space' "that is said"

is "$(ls -A "$tmp/empty")" "" "nothing was written"
done_testing
