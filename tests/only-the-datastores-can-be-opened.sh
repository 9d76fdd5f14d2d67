#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whatever an image says, only the directories of the job can be opened; and every command works all the same.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_root
need_loop
need_tool chattr getfattr jq mkfs.ext4 mkfs.xfs nbdinfo nbdkit python3 qemu-img setfattr setpriv unshare

version=$(python3 -c 'import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))')
[ "$version" -gt 0 ] || skip_all "this kernel has no Landlock"
sandbox=landlock-$version
chmod 755 "$tmp"
user=(setpriv --reuid=65534 --regid=65534 --clear-groups env "HOME=$tmp/home")

# ---- names in images, with blockmig's own rules about them switched off ----

store=$tmp/store secret=$tmp/secret
mkdir "$store" "$secret"
truncate -s 1M "$secret/data"

# cannot_escape NAME IMAGE SECRET: the helper can open it (or this would prove nothing), but not in the sandbox.
cannot_escape()
{
    run "$builddir/tests/helpers/hostile-chain" loose "$2"
    like "$status $out" "$3" "$1: without the sandbox it is opened"
    fails_with 1 "$1: in the sandbox it is not" "$builddir/tests/helpers/hostile-chain" confined "$2"
    like "$err" "Permission denied" "$1: because the kernel refuses"
}

must qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw "$store/a.qcow2" 1M
cannot_escape "backing file of a qcow2" "$store/a.qcow2" /etc/passwd
must qemu-img create -q -f qcow2 -o "data_file=$secret/data,data_file_raw=on" "$store/b.qcow2" 1M
cannot_escape "data file of a qcow2" "$store/b.qcow2" "$secret/data"
ln -s "$secret/data" "$store/link"
must qemu-img create -q -f qcow2 -u -b link -F raw "$store/c.qcow2" 1M
cannot_escape "link beside a qcow2" "$store/c.qcow2" "$store/link"
printf '%s\n' '# Disk DescriptorFile' 'version=1' 'CID=12345678' 'parentCID=ffffffff' 'createType="monolithicFlat"' \
    "RW 2048 FLAT \"$secret/data\" 0" >"$store/d.vmdk"
cannot_escape "extent of a VMDK" "$store/d.vmdk" "$secret/data"
for format in vhd vhdx vmdk; do
    must blockmig create -O $format "$secret/parent.$format" 4M
    must blockmig create -O $format --parent "$secret/parent.$format" "$store/child.$format"
    cannot_escape "parent of a ${format^^}" "$store/child.$format" "$secret/parent.$format"
done

# ---- every command on every format ----

# confined WHAT COMMAND...: it works, and says how it is confined.
confined()
{
    local what=$1
    shift
    run_ok "$what" "$@" --json
    is "$(jq -r .sandbox <<<"$out")" "$sandbox" "$what: confined"
}

# work_through WHO FORMAT: with relative names, links, and each thing in another directory.
work_through()
{
    local who="$1 $2" format=$2 base
    base=$(mktemp -d "$tmp/$1.XXXXXX")
    mkdir "$base/from" "$base/to" "$base/links" "$base/roots"
    chown -R "$(stat -c %u "$tmp/home")" "$base"
    [ "$1" = root ] && chown -R 0 "$base"
    cd "$base/links" || exit
    ln -s ../from/disk source
    ln -s ../to target
    confined "$who: create" "${as[@]}" "$blockmig" create -O "$format" ../from/disk 4M
    must qemu-io -f "$(qemu_name "$format")" -c "write -P 5 1M 64k" ../from/disk
    confined "$who: info" "${as[@]}" "$blockmig" info -f "$format" source
    confined "$who: map" "${as[@]}" "$blockmig" map -f "$format" source
    confined "$who: plan copy" "${as[@]}" "$blockmig" plan copy -f "$format" source target/copy
    confined "$who: copy" "${as[@]}" "$blockmig" copy -f "$format" source target/copy
    receipt=$(jq -r .receipt <<<"$out")
    confined "$who: copy to a directory" "${as[@]}" "$blockmig" copy -f "$format" -O qcow2 source target
    confined "$who: verify" "${as[@]}" "$blockmig" verify -f "$format" -F "$format" source ../to/copy
    confined "$who: verify by a receipt" "${as[@]}" "$blockmig" verify -f "$format" target/copy --receipt "$receipt"
    confined "$who: copy and delete" "${as[@]}" "$blockmig" copy -f "$format" --delete-source --force source ../to/copy
    is "$(ls ../from)" "" "$who: the source is deleted"
    cd /
}

# work_on_chain WHO FORMAT: children, whose parents lie elsewhere.
work_on_chain()
{
    local who="$1 $2 chain" format=$2 base
    base=$(mktemp -d "$tmp/$1.XXXXXX")
    mkdir "$base/top" "$base/below" "$base/to"
    chown -R "$(stat -c %u "$tmp/home")" "$base"
    [ "$1" = root ] && chown -R 0 "$base"
    cd "$base" || exit
    must "${as[@]}" "$blockmig" create -O "$format" below/parent 4M
    confined "$who: create" "${as[@]}" "$blockmig" create -O "$format" --parent "$format:below/parent" top/child
    confined "$who: info" "${as[@]}" "$blockmig" info --allow-root below top/child
    confined "$who: copy" "${as[@]}" "$blockmig" copy --allow-root below --chain=keep top/child to
    confined "$who: flattened" "${as[@]}" "$blockmig" copy --allow-root below -O raw top/child to/flat
    confined "$who: verify" "${as[@]}" "$blockmig" verify -F raw --allow-root below top/child to/flat
    confined "$who: commit" "${as[@]}" "$blockmig" commit --allow-root below --delete-source top/child
    is "$(ls top)" "" "$who: the child is deleted"
    cd /
}

qemu_name()
{
    [ "$1" = vhd ] && echo vpc || echo "$1"
}

mkdir "$tmp/home"
chown 65534 "$tmp/home"
for who in root user; do
    as=(env)
    [ $who = user ] && as=("${user[@]}" "BLOCKMIG_STATE_DIR=$tmp/home/state")
    formats=(raw qcow2 vhd vhdx vdi vmdk)
    [ $who = user ] && formats=(raw qcow2 vmdk)
    for format in "${formats[@]}"; do
        work_through $who "$format"
    done
    for format in qcow2 vhd vhdx vmdk; do
        work_on_chain $who $format
    done
done

# ---- devices, and another file system ----

small_filesystem ext4 64M
mnt=$REPLY
truncate -s 4M "$tmp/one" "$tmp/two"
loop_device "$tmp/one"
one=$REPLY
loop_device "$tmp/two"
two=$REPLY
ln -s "$two" "$tmp/device"
random_file "$tmp/noise" 4M 1
must dd if="$tmp/noise" of="$one" bs=1M status=none
confined "info of a device" blockmig info -f raw "$one"
confined "from a device to another by a link" blockmig copy -f raw "$one" "$tmp/device"
check "it has arrived" cmp "$one" "$two"
confined "from a device to another file system" blockmig copy -f raw -O qcow2 "$one" "$mnt/disk.qcow2"
confined "and back" blockmig copy -O raw --force "$mnt/disk.qcow2" "$two"
confined "verify" blockmig verify -F raw "$mnt/disk.qcow2" "$two"
confined "an image is made on a device" blockmig create -O qcow2 "$two" 1M
fails_with 3 "a device and the file under it are still told apart" blockmig copy -f raw "$tmp/one" "$one"
like "$err" "share storage|in use" "and why is said"

# ---- a server, by its host's name and with a key ----

mkdir "$tmp/keys"
echo "alice:$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')" >"$tmp/keys/psk"
truncate -s 4M "$tmp/served"
free_port
nbds=$REPLY
start nbdkit -f -i 127.0.0.1 -p "$nbds" --tls=require --tls-psk="$tmp/keys/psk" file "$tmp/served"
uri="nbds://alice@localhost:$nbds/?tls-psk-file=$tmp/keys/psk"
wait_for 10 nbdinfo "$uri"
confined "to a server" blockmig copy -f raw "$tmp/one" "$uri"
check "it has arrived there" cmp "$tmp/one" "$tmp/served"
confined "verify a server's" blockmig verify -f raw -F raw "$uri" "$tmp/one"

must qemu-img create -q -f qcow2 "$tmp/bitmap.qcow2" 4M
must qemu-img bitmap --add "$tmp/bitmap.qcow2" dirty
serve_qemu bitmap qcow2 "$tmp/bitmap.qcow2" -r -B dirty
confined "a bitmap of a server" blockmig map --bitmap=dirty "$uri"

# ---- a unit of an iSCSI target ----

start_tgtd
make_target
truncate -s 4M "$tmp/unit"
add_lun 1 "$tmp/unit"
confined "to an iSCSI unit" blockmig copy -f raw "$tmp/one" "$REPLY"
check "it has arrived there, too" cmp "$tmp/one" "$tmp/unit"
confined "verify a unit" blockmig verify -f raw -F raw "$REPLY" "$tmp/one"

# ---- what takes more of root's power ----

# has_admin CAPABILITIES: is CAP_SYS_ADMIN among them?
has_admin()
{
    local word
    for word; do
        [ ${#word} -eq 16 ] && [ $((0x$word >> 21 & 1)) -eq 1 ] && return 0
    done
    return 1
}

must setfattr -n trusted.note -v kept "$tmp/noise"
confined "an image with an attribute that only root sees" blockmig copy -f raw "$tmp/noise" "$mnt/noise"
is "$(getfattr --only-values --absolute-names -n trusted.note "$mnt/noise")" kept "and it has that"

# ---- a copy that runs ----

# task_fields PID: capabilities of every thread, also of those that the kernel made for io_uring.
task_fields()
{
    cat /proc/"$1"/task/*/status | awk '/^(CapEff|CapPrm|NoNewPrivs)/ { print $2 }' | sort -u | xargs
}

random_file "$store/large" 24M 2
BLOCKMIG_STATE_DIR=$tmp/state start "$blockmig" copy -f raw --bandwidth=6MiB/s "$store/large" "$tmp/large"
copy=$REPLY
wait_for 20 test -s "$tmp/large.blockmig-part"
# chown, dac_override, dac_read_search, fowner, fsetid, ipc_lock, sys_resource; of what root has here
mine=$(awk '/^CapPrm/ { print $2 }' /proc/$$/status)
is "$(task_fields "$copy")" "$(printf '%016x 1' $((0x$mine & 0x100401f)))" "root keeps what it takes to open and make files"
fails_with 3 "who else writes the target is still seen" blockmig copy -f raw "$store/large" "$tmp/large"
like "$err" "process $copy" "and named"
check "not CAP_SYS_ADMIN" eval '! has_admin $(task_fields "$copy")'
stop_process "$copy"
confined "resumed" blockmig job resume
run_ok "and right" cmp "$store/large" "$tmp/large"

small_filesystem xfs 320M
mkdir "$REPLY/project"
must chattr -p 7 +P "$REPLY/project"
project=$REPLY/project
start "$blockmig" copy -f raw --bandwidth=6MiB/s "$store/large" "$project/large"
copy=$REPLY
wait_for 20 test -s "$project/large.blockmig-part"
check "but where quotas of projects are possible it is kept" eval 'has_admin $(task_fields "$copy")'
stop_process "$copy"

# Where /proc hides processes, it hides those of the same user, too, from who is confined.
hidden()
{
    mount -t proc -o hidepid=2 proc /proc
    "${user[@]}" "BLOCKMIG_STATE_DIR=$tmp/home/state" "$blockmig" copy -f raw "$store/large" "$tmp/home/large"
}
export -f hidden
export store tmp blockmig
start "${user[@]}" "BLOCKMIG_STATE_DIR=$tmp/home/state" "$blockmig" copy -f raw --bandwidth=6MiB/s "$store/large" "$tmp/home/large"
copy=$REPLY
wait_for 20 test -s "$tmp/home/large.blockmig-part"
is "$(task_fields "$copy")" "0000000000000000 1" "others have no capabilities"
printf 'user=(%s)\n' "${user[*]}" >"$tmp/user"
fails_with 3 "a copy that /proc hides is not taken over" unshare -m bash -c ". '$tmp/user'; hidden"
like "$err" "process $copy" "but named"
stop_process "$copy"

# ---- in words ----

run_ok "-v" blockmig info -v "$store/large" -f raw
like "$err" "^blockmig: sandbox: $sandbox\$" "says it, too"
done_testing
