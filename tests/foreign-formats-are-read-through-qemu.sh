#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Images of formats that QEMU has and we have not are read through qemu-nbd, never copied as if their bytes were the
# disk; nothing of the server is left, however we end.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io qemu-nbd jq
use_seed

mixed_file "$tmp/disk.raw" 24M 1

# Our qemu-nbd are those that have this test's directory on their command line.
servers()
{
    pgrep -f "qemu-nbd --read-only.*$tmp"
}

export TMPDIR=$tmp/tmp
mkdir "$TMPDIR"

# read_through NAME FILE [-f FORMAT ...]: copied, it is what QEMU says it is.
read_through()
{
    local name=$1 file=$2
    shift 2
    rm -f "$tmp/copy.qcow2"
    run_ok "$name: copied" blockmig copy -O qcow2 "$@" "$file" "$tmp/copy.qcow2"
    like "$err" "format $name, read through qemu-nbd" "$name: and it is said how"
    same_content "$tmp/disk.raw" "$tmp/copy.qcow2" "$name: the same" -f raw -F qcow2
    run_ok "$name: verified" blockmig verify -q "$@" "$file" "$tmp/copy.qcow2"
    run_ok "$name: looked at" blockmig info --json "$@" "$file"
    is "$(jq -r .virtual_size <<<"$out")" $((24 << 20)) "$name: its size"
    is "$(ls "$TMPDIR")" "" "$name: no socket is left"
    fails_with 1 "$name: nor a server" servers
}

for name in qed parallels; do
    must qemu-img convert -f raw -O $name "$tmp/disk.raw" "$tmp/a, b.$name"
    read_through $name "$tmp/a, b.$name"
    run_ok "$name: its bytes, if the user says so" blockmig copy -q -f raw "$tmp/a, b.$name" "$tmp/bytes.$name"
    check "$name: to the last one" cmp "$tmp/a, b.$name" "$tmp/bytes.$name"
    fails_with 2 "$name: is not written" blockmig copy -O $name "$tmp/disk.raw" "$tmp/no"
done

# Nothing here writes these; whether ours are what they should be is for QEMU to say, before we read them.
for name in bochs cloop dmg; do
    must "$srcdir/tests/make-foreign-image.py" $name "$tmp/disk.raw" "$tmp/disk.$name"
    same_content "$tmp/disk.raw" "$tmp/disk.$name" "$name: QEMU reads it" -f raw -F $name
    if [ $name = dmg ]; then
        read_through $name "$tmp/disk.$name" -f dmg
    else
        read_through $name "$tmp/disk.$name"
    fi
done
size=$(stat -c %s "$tmp/disk.dmg")
must truncate -s $((size / 2)) "$tmp/disk.dmg"
fails_with 3 "half a dmg" blockmig copy -f dmg -O raw "$tmp/disk.dmg" "$tmp/no"
must truncate -s $(($(stat -c %s "$tmp/disk.cloop") / 2)) "$tmp/disk.cloop"
run blockmig copy -O raw "$tmp/disk.cloop" "$tmp/no"
check "half a cloop is not copied" test "$status" -ne 0
check "and there is no target" test ! -e "$tmp/no"

# What the guest wrote does not decide what is done with it.
must qemu-img create -q -f qcow2 -b /etc/passwd -F raw -u "$tmp/trap.qcow2" 1M
must qemu-img convert -f raw -O qed "$tmp/trap.qcow2" "$tmp/trap.qed"
run_ok "a disk that begins like an image" blockmig copy -q "$tmp/trap.qed" "$tmp/trap.out"
same_content "$tmp/trap.qcow2" "$tmp/trap.out" "stays a disk" -f raw -F raw

must qemu-img create -q -f qed -b "$tmp/disk.raw" -F raw "$tmp/child.qed"
fails_with 3 "a QED image that names another one" blockmig copy -O raw "$tmp/child.qed" "$tmp/no"
like "$err" "backing file" "is refused"

# ---- a passphrase -----------------------------------------------------------------------------------

printf 'correct horse' >"$tmp/pass, word"
must qemu-img create -q -f luks --object "secret,id=s,file=$tmp/pass,, word" -o key-secret=s,iter-time=200 "$tmp/disk.luks" 24M
must qemu-img convert -n --object "secret,id=s,file=$tmp/pass,, word" -f raw --target-image-opts "$tmp/disk.raw" \
    "driver=luks,key-secret=s,file.filename=$tmp/disk.luks"
read_through luks "$tmp/disk.luks" -f luks --secret "$tmp/pass, word"
printf 'wrong' >"$tmp/wrong"
fails_with 3 "a wrong passphrase" blockmig copy -f luks --secret "$tmp/wrong" -O raw "$tmp/disk.luks" "$tmp/no"
like "$err" "[Ii]nvalid password" "in QEMU's words"
unlike "$err" "horse|wrong$" "without the passphrase"
fails_with 3 "and none" blockmig copy -f luks -O raw "$tmp/disk.luks" "$tmp/no"
fails_with 3 "nor is one given for nothing" blockmig copy --secret "$tmp/pass, word" -O raw "$tmp/disk.luks" "$tmp/no"
like "$err" "-f luks decrypts it" "and it says what to do"
check "nothing was written" test ! -e "$tmp/no"
run_ok "without one it is copied as it is" blockmig copy -q "$tmp/disk.luks" "$tmp/disk2.luks"
check "then encrypted" cmp "$tmp/disk.luks" "$tmp/disk2.luks"
is "$(grep -rl "horse" "$BLOCKMIG_STATE_DIR")" "" "the passphrase is nowhere in the journal"

# ---- ends -------------------------------------------------------------------------------------------

"$builddir/tools/blockmig" copy -q --bandwidth=8MiB/s -O raw "$tmp/a, b.qed" "$tmp/killed" 3>&- </dev/null &
pid=$!
wait_for 10 test -e "$tmp/killed.blockmig-part"
run_ok "while it copies there is a server" servers
server=$out
is "$(ls "$TMPDIR")" "" "at a socket without a name"
unlike "$(tr '\0' ' ' <"/proc/$server/cmdline")" "horse" "nothing secret on its command line"
kill -KILL $pid
wait $pid
wait_for 5 eval "! kill -0 $server"
is $? 0 "after SIGKILL of ours the server ends"
is "$(ls "$TMPDIR")" "" "and leaves nothing"
run_ok "the copy goes on" blockmig job resume --json
check "and is whole" cmp "$tmp/disk.raw" "$tmp/killed"

"$builddir/tools/blockmig" copy -q --salvage --bandwidth=8MiB/s -O raw "$tmp/a, b.qed" "$tmp/gone" 3>&- 2>"$tmp/gone.err" </dev/null &
pid=$!
wait_for 10 test -e "$tmp/gone.blockmig-part"
kill -KILL "$(servers)"
wait $pid
is $? 8 "a server that dies ends the copy, whatever is to be salvaged"
like "$(cat "$tmp/gone.err")" "the server is gone" "in order"

mkdir "$tmp/bin"
for tool in sh; do ln -s "$(command -v $tool)" "$tmp/bin/"; done
fails_with 3 "without qemu-nbd" env PATH="$tmp/bin" "$builddir/tools/blockmig" info "$tmp/a, b.qed"
like "$err" "qemu-nbd, which is not installed" "is told"
done_testing
