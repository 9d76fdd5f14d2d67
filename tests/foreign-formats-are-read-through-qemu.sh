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

# QEMU reads what lies behind the end of a file as zeros.
mv "$tmp/a, b.parallels" "$tmp/disk.parallels"
for name in parallels bochs cloop; do
    size=$(stat -c %s "$tmp/disk.$name") whole=''
    for ((part = 0; part < 8; part++)); do
        head -c $((size * part / 8 + 100)) "$tmp/disk.$name" >"$tmp/cut.$name"
        run timeout 30 "$blockmig" copy -q -f $name -O raw "$tmp/cut.$name" "$tmp/no"
        [[ $status =~ ^[1-5]$ ]] && grep -q "cut.$name" <<<"$err" && [ ! -e "$tmp/no" ] || whole+="$part of 8: exit $status: $err; "
    done
    is "$whole" "" "$name: what is cut off is not copied as zeros"
done

# patched NAME OFFSET BYTES WORDS: the table of a copy is changed, in a way that QEMU bears.
patched()
{
    cp "$tmp/disk.$1" "$tmp/patched.$1"
    printf '%b' "$3" | dd of="$tmp/patched.$1" bs=1 seek="$2" conv=notrunc status=none
    fails_with 3 "$1: $3 at $2" timeout 30 "$blockmig" copy -q -f "$1" -O raw "$tmp/patched.$1" "$tmp/no"
    like "$err" "$1: $4" "$1: field and value are named"
}
patched parallels 64 '\xff\xff\xff\x7f' "entry 0 of the table, 2147483647, leads to 1048576 bytes that are not"
patched parallels 32 '\1\0\0\0' "1 entries for pieces of 1048576 bytes do not make a disk of 25165824"
patched parallels 32 '\0\0\0\x10' "a table of 268435456 entries at offset 64 is not in the file"
patched bochs 512 '\x40\0\0\0' "entry 0 of the table, 64, leads to 1049088 bytes that are not"
patched bochs 72 '\0\0\0\1' "a table of 16777216 entries at offset 512 is not in the file"
patched bochs 76 '\0\0\0\0' "a bitmap of 0 bytes is too small for extents of 1048576"

# What the guest wrote does not decide what is done with it.
must qemu-img create -q -f qcow2 -b /etc/passwd -F raw -u "$tmp/trap.qcow2" 1M
must qemu-img convert -f raw -O qed "$tmp/trap.qcow2" "$tmp/trap.qed"
run_ok "a disk that begins like an image" blockmig copy -q "$tmp/trap.qed" "$tmp/trap.out"
same_content "$tmp/trap.qcow2" "$tmp/trap.out" "stays a disk" -f raw -F raw

must qemu-img create -q -f qed -b "$tmp/disk.raw" -F raw "$tmp/child.qed"
fails_with 3 "a QED image that names another one" blockmig copy -O raw "$tmp/child.qed" "$tmp/no"
like "$err" "backing file" "is refused"

# ---- what is no disk yet ----------------------------------------------------------------------------

truncate -s 1M "$tmp/small.raw"
for packer in gzip xz bzip2 zstd; do
    must sh -c "$packer -c <'$tmp/small.raw' >'$tmp/small.$packer'"
    fails_with 3 "a disk that $packer packed" blockmig copy "$tmp/small.$packer" "$tmp/no"
    like "$err" "looks like an? $packer file: unpack it first" "is not taken for a disk"
done
must tar -C "$tmp" -cf "$tmp/machine.ova" small.raw
fails_with 3 "an OVA" blockmig info "$tmp/machine.ova"
like "$err" "looks like a tar archive, as an OVA is" "is told"
run_ok "its bytes can be had" blockmig copy -q -f raw -O raw "$tmp/machine.ova" "$tmp/bytes"
check "as they are" cmp "$tmp/machine.ova" "$tmp/bytes"

# ---- a passphrase -----------------------------------------------------------------------------------

printf 'correct horse' >"$tmp/pass, word"
# On a busy host it sometimes cannot measure how fast it is.
wait_for 60 qemu-img create -q -f luks --object "secret,id=s,file=$tmp/pass,, word" -o key-secret=s,iter-time=200 "$tmp/disk.luks" 24M
must qemu-img convert -n --object "secret,id=s,file=$tmp/pass,, word" -f raw --target-image-opts "$tmp/disk.raw" \
    "driver=luks,key-secret=s,file.filename=$tmp/disk.luks"
read_through luks "$tmp/disk.luks" -f luks --secret "$tmp/pass, word"
printf 'wrong' >"$tmp/wrong"
fails_with 3 "a wrong passphrase" blockmig copy -f luks --secret "$tmp/wrong" -O raw "$tmp/disk.luks" "$tmp/no"
like "$err" "[Ii]nvalid password" "in QEMU's words"
unlike "$err" "horse|wrong$" "without the passphrase"
printf 'correct horse\n' >"$tmp/line"
fails_with 3 "one with a line end" blockmig copy -f luks --secret "$tmp/line" -O raw "$tmp/disk.luks" "$tmp/no"
like "$err" "[Ii]nvalid password.*ends with a line end, which counts" "and why it may be wrong"
mkfifo "$tmp/fifo"
: >"$tmp/empty"
for secret in fifo empty tmp; do
    fails_with 3 "$secret: not a passphrase" timeout 20 "$blockmig" copy -f luks --secret "$tmp/$secret" -O raw "$tmp/disk.luks" "$tmp/no"
    like "$err" "/$secret: a passphrase comes from a regular file" "$secret: which is told"
done
fails_with 3 "what never ends" timeout 20 "$blockmig" copy -f luks --secret /dev/zero -O raw "$tmp/disk.luks" "$tmp/no"
fails_with 3 "a passphrase that is not there" blockmig copy -f luks --secret "$tmp/nowhere" -O raw "$tmp/disk.luks" "$tmp/no"
like "$err" "nowhere: the passphrase: No such file" "is named"
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
