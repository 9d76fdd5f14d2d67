#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# job cancel and --restart: what an unfinished copy left on the target goes, also what has its name already; and
# nothing else goes.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq strace
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

must qemu-img create -q -f qcow2 "$tmp/base.qcow2" 8M
must qemu-io -f qcow2 -c "write -P 3 1M 5M" "$tmp/base.qcow2"
must qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$tmp/top.qcow2"
must qemu-io -f qcow2 -c "write -P 4 3M 100k" "$tmp/top.qcow2"

# killed CALL COUNT ARGUMENTS...: a copy into an empty $tmp/t, killed at its COUNTth CALL ($only: of that file); sets id.
only=
killed()
{
    rm -rf "$tmp/t"
    mkdir "$tmp/t"
    strace -f -qq -o /dev/null ${only:+-P "$only"} -e trace="$1" -e inject="$1:signal=SIGKILL:when=$2" \
        "$blockmig" copy -q "${@:3}" >/dev/null 2>&1 3>&-
    id=$("$blockmig" job list --json | jq -r '.jobs[0].job')
}

left()
{
    (cd "$tmp/t" && echo *)
}

keep=(--chain=keep "$tmp/top.qcow2" "$tmp/t/")
sparse=(-O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/top.qcow2" "$tmp/t/x.vmdk")
flat=(-O vmdk -o subformat=monolithicFlat "$tmp/top.qcow2" "$tmp/t/x.vmdk")
single=(-O raw "$tmp/top.qcow2" "$tmp/t/x")
for case in "keep 2:base.qcow2 top.qcow2.blockmig-part" "sparse 2:x-s001.vmdk x.vmdk.blockmig-part" \
    "flat 2:x-flat.vmdk x.vmdk.blockmig-part" "single :x"; do
    read -r name when <<<"${case%%:*}"
    declare -n arguments=$name
    for how in cancel restart; do
        if [ "$when" ]; then
            killed renameat2 "$when" "${arguments[@]}"
        else
            only=$tmp/t
            killed fsync 1 "${arguments[@]}"
            only=
        fi
        is "$(left)" "${case#*:}" "$name: killed between two names"
        if [ $how = cancel ]; then
            run_ok "$name: it is given up" "$blockmig" job cancel "$id"
            is "$(left)" "*" "$name: nothing is left"
            check "$name: the same command begins anew" "$blockmig" copy -q "${arguments[@]}"
        else
            check "$name: --restart begins anew" "$blockmig" copy -q --restart "${arguments[@]}"
        fi
        unlike "$(left)" "blockmig-part|\*" "$name: and is done"
    done
done

killed renameat2 2 "${keep[@]}"
check "the same command goes on as well" "$blockmig" copy -q "${keep[@]}"

# What is not, or may not be, what the job left.
killed renameat2 2 "${keep[@]}"
must qemu-io -f qcow2 -c "write -P 9 1M 64k" "$tmp/t/base.qcow2"
must cp "$tmp/t/base.qcow2" "$tmp/changed"
fails_with 3 "what was changed since is not replaced by --restart" "$blockmig" copy -q --restart "${keep[@]}"
like "$err" "base.qcow2 exists already" "which says so"
fails_with 1 "nor removed by job cancel" "$blockmig" job cancel "$id"
like "$err" "$tmp/t/base.qcow2" "which names it"
is "$(left)" "base.qcow2" "the rest is removed"
check "it is what it was" cmp "$tmp/changed" "$tmp/t/base.qcow2"
is "$("$blockmig" job show --json "$id" | jq -r .state)" discarded "the job is given up"

killed renameat2 2 "${keep[@]}"
must mv "$tmp/t/base.qcow2" "$tmp/t/mine"
must cp "$tmp/t/mine" "$tmp/t/base.qcow2"
fails_with 1 "another file of that name is not removed" "$blockmig" job cancel "$id"
is "$(left)" "base.qcow2 mine" "nor the one that was renamed"

killed renameat2 1 "${single[@]}"
must mv "$tmp/changed" "$tmp/t/x.blockmig-part"
fails_with 1 "another file under the name of the part is not removed" "$blockmig" job cancel "$id"
like "$err" "x.blockmig-part" "which is told"
is "$(left)" "x.blockmig-part" "it stays"

# With --force the name is the old file's until the end.
killed renameat2 1 --force "${single[@]}"
must cp "$tmp/base.qcow2" "$tmp/t/x"
run_ok "a job that was to replace a file is given up" "$blockmig" job cancel "$id"
is "$(left)" "x" "the old file stays"

# Where the parts cannot be looked for it is not said that they are removed.
for how in renamed hidden; do
    killed renameat2 1 "${single[@]}"
    mv "$tmp/t" "$tmp/away"
    [ $how != hidden ] || mkdir "$tmp/t"
    fails_with 1 "the directory of the target is gone ($how): the job is not given up" "$blockmig" job cancel "$id"
    like "$err" " $tmp/t(:| is not) " "which names the directory"
    unlike "$out" "removed" "and not that anything is removed"
    unlike "$("$blockmig" job show --json "$id" | jq -r .state)" "discarded" "the job stays"
    rm -rf "$tmp/t"
    mv "$tmp/away" "$tmp/t"
    if [ $how = renamed ]; then
        check "it goes on when it is back" "$blockmig" job resume "$id"
    else
        check "it is given up when it is back" "$blockmig" job cancel "$id"
        is "$(left)" "*" "and what it left is removed"
    fi
done
killed renameat2 1 "${single[@]}"
rm -rf "$tmp/t"
mkdir "$tmp/t"
check "a directory that was made anew can be copied to" "$blockmig" copy -q "${single[@]}"
done_testing
