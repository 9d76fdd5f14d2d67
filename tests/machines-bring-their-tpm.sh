#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The state of an emulated TPM goes with its machine by every method, back again, and after a kill; where it was, nothing is
# left under its name.  Judge: what tpm2-tools read in the NV memory of a swtpm on a copy of the state.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool swtpm swtpm_setup tpm2_nvread
need_free 1G
use_seed
two_hosts

random_file "$tmp/noise" $((4 << 20)) 5
must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$tmp/one/srv/store/disk.qcow2"
guest_kernel=vmlinuz # QEMU 7.2 lays the initramfs of an unpacked one over the ACPI tables, which a TPM makes larger
emulated="<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
domain_xml web --disk disk.qcow2:qcow2 --extra "$emulated" >"$tmp/one/srv/web.xml"
must on one virsh -q define /srv/web.xml
uuid=$(on one virsh domuuid web | head -n 1)
states=/var/lib/libvirt/swtpm state=/var/lib/libvirt/swtpm/$uuid

# with_tpm HOST DIRECTORY COMMAND: with a swtpm on the state in that directory.
with_tpm()
{
    on "$1" sh -c "mkdir -p '$2' && swtpm socket --tpm2 --tpmstate dir='$2' --server type=unixio,path=/run/tpm \
        --ctrl type=unixio,path=/run/tpm.ctrl --flags startup-clear --daemon &&
        export TPM2TOOLS_TCTI=swtpm:path=/run/tpm && $3; status=\$?; swtpm_ioctl --unix /run/tpm.ctrl -s; exit \$status"
}

# remember HOST TEXT: in the machine's TPM, while it is off.
remember()
{
    must with_tpm "$1" "$state/tpm2" "tpm2_nvdefine -Q 0x1500018 -C o -s 6 2>/dev/null
        printf %6s $2 | tpm2_nvwrite -Q 0x1500018 -C o -i -"
}

# remembered HOST
remembered()
{
    on "$1" sh -c "rm -rf /run/copy && cp -r '$state/tpm2' /run/copy"
    with_tpm "$1" /run/copy "tpm2_nvread -s 6 0x1500018 -C o" 2>&1 | tr -d ' '
}

# states_on HOST: the names there, in one line.
states_on()
{
    on "$1" ls "$states" 2>/dev/null | sed "s/$uuid/UUID/" | paste -sd' '
}

is_brought()
{
    on two test -s "$state/tpm2/tpm2-00.permall"
}

last_job()
{
    on one "$blockmig" job list --json | jq -r '.jobs[0].job'
}

# comes FROM TO OPTIONS...
comes()
{
    local from=$1 to=$2
    shift 2
    on "$from" timeout 200 "$blockmig" migrate web "blockmig://$(address_of "$to")" -v "$@" >"$tmp/out" 2>"$tmp/err" 3>&- &
    local pid=$!
    case $* in
        *restart*)
            wait_for 60 grep -q 'waiting for the guest' "$tmp/err"
            domain_cmd "$from" web poweroff >/dev/null 2>&1 ;;
    esac
    wait "$pid"
    is $? 0 "$*: from $from to $to" || cat "$tmp/err" >&2
    is "$(remembered "$to")" "$written" "  with what its TPM has"
}

# What is said before.
run on one "$blockmig" plan migrate web blockmig://192.0.2.2
like "$out$err" "there is no state of its TPM in $state" "one that was never started has no state"
written=first
remember one first
run on one env BLOCKMIG_TPM_DIRECTORY=/srv/tpms "$blockmig" plan migrate web blockmig://192.0.2.2
like "$out$err" "there is no state of its TPM in /srv/tpms/$uuid" "elsewhere there is none"
run on one "$blockmig" plan migrate web blockmig://192.0.2.2
like "$out" "the state of its TPM goes, too: $state to $state" "the plan has it"
is "$(states_on two)" "" "and makes nothing there"
domain_xml other --extra "${emulated/\/>/><encryption secret=\'6a3f5e0a-5d2c-4b7e-9a3e-0c4a6e1f2b3d\'\/><\/backend>}" |
    sed 's|</backend></backend>|</backend>|' >"$tmp/one/srv/other.xml"
must on one virsh -q define /srv/other.xml
run on one "$blockmig" plan migrate other blockmig://192.0.2.2
is "$status" 3 "a secret of the TPM's has to be there" || diag "$out"
like "$err" 'no secret "6a3f5e0a' "  and is named"
must on two mkdir -p "$state/tpm2"
on two touch "$state/tpm2/tpm2-00.permall"
migrate one web blockmig://192.0.2.2
is "$status" 3 "state that was left there is not written over"
like "$err" "192.0.2.2: $state/tpm2/tpm2-00.permall exists already" "  and is named"
must on two rm -r "$state"

# By every method; the newer one comes back.
comes one two --method=cold
is "$(states_on one)" UUID.blockmig-source "  and what it was is kept"
written=second
remember two second
start_again two web
is "$(on two stat -c %U "$state/tpm2/tpm2-00.permall")" tss "libvirt makes it its own"
comes two one --method=live
is "$(states_on two) $(states_on one)" "UUID.blockmig-source UUID UUID.blockmig-source" "  and nothing else is left"
must on two rm -r "$states/$uuid.blockmig-source" "/srv/store/disk.qcow2.blockmig-source"
must on one rm "/srv/store/disk.qcow2.blockmig-source"
comes one two --method=restart --delete-source
is "$(states_on one)" UUID.blockmig-source "  and what it was is deleted"
comes two one --method=quick --delete-source
is "$(states_on two)" '' "  and what it was is deleted"
must on one rm -r "$states/$uuid.blockmig-source"

# goes_off: as soon as it is asked to.
goes_off()
{
    grep -q 'waiting for the guest' "$tmp/killed.err" || return 1
    [ "$(on $from virsh domstate web | head -n 1)" = 'shut off' ] && return
    domain_cmd $from web poweroff 2 >/dev/null 2>&1
    return 1
}

# Killed, and run again; the way back.
from=one
pick '' 'live quick restart live quick restart'
for method in $REPLY; do
    [ $from = one ] && to=two || to=one
    at=+0.$((RANDOM % 9))
    [ $method != restart ] || at=:goes_off
    killed_in $from "switchover$at" migrate web "blockmig://$(address_of $to)" --method=$method --delete-source
    on $from "$blockmig" job list --json >"$tmp/list"
    if [ "$(jq '[.jobs[] | select(.phase != "done" and .result == null)] | length' "$tmp/list")" != 0 ]; then
        run on $from timeout 200 "$blockmig" job resume "$(jq -r '.jobs[0].job' "$tmp/list")"
        diag "$method from $from, killed: $status"
    fi
    [ "$(running_on web)" != "$to " ] || from=$to
    is "$(running_on web)$(states_on $from)" "$from UUID" "$method, killed in the switch: the state is where the machine is"
    is "$(remembered $from)" "$written" "  with what its TPM has"
    is "$(states_on one) $(states_on two)" "$([ $from = one ] && echo 'UUID ' || echo ' UUID')" "  and nowhere else"
done
[ $from = one ] || comes two one --method=live --delete-source
must on one virsh -q destroy web
written=third
remember one third
window=(--method=cold --bandwidth=2MiB/s --keep-failback=1h --failback-to=blockmig://192.0.2.1/store --delete-source)
killed_in one base:is_brought migrate web blockmig://192.0.2.2 "${window[@]}"
is $? 0 "killed when it was copied"
run on one "$blockmig" job cancel "$(last_job)"
is "$status $(on two find "$state" -type f)" "0 " "given up, nothing is left of it" || diag "$err"
killed_in one base:is_brought migrate web blockmig://192.0.2.2 "${window[@]}"
comes one two "${window[@]}"
written=fourth
remember two fourth
run on one "$blockmig" job failback "$(last_job)"
is "$status $(remembered one)" "0 fourth" "it is brought back, with what its TPM has now" || diag "$err"
is "$(states_on one) $(states_on two)" "UUID " "and nothing else is left"
comes one two "${window[@]}"
run on one "$blockmig" job finish "$(last_job)"
is "$status $(states_on one)" "0 " "the way back is closed: nothing is kept" || diag "$err"
must mkdir "$tmp/two/srv/other"
run on two "$blockmig" move web /srv/other
is "$status $(states_on two)$(remembered two)" "0 UUIDfourth" "one that moves on its host leaves it where it is" || diag "$err"

# Where both hosts see the same directory, the file that would be copied is the one that would be removed before.
must mkdir -p "$tmp/shared/$uuid/tpm2"
random_file "$tmp/shared/$uuid/tpm2/tpm2-00.permall" 1360 7
before=$(find "$tmp/shared" -type f -exec sha256sum {} +)
sed "s|16600|16601|; s|blockmig.sock|second.sock|; s|^program=.*|&\ntpm-directory=$tmp/shared|" "$tmp/one/srv/agent.conf" >"$tmp/one/srv/second.conf"
start on one "$builddir/tools/blockmigd" --config /srv/second.conf
wait_for 10 on one test -S /run/second.sock
run on two env BLOCKMIG_TPM_DIRECTORY="$tmp/shared" "$blockmig" migrate web blockmig://192.0.2.1:16601 --method=cold --delete-source
is "$status $(defined_on web)" "0 one " "to a host with the same directory" || diag "$err"
is "$(find "$tmp/shared" -type f -exec sha256sum {} +)" "$before" "  all stays in it as it is"
done_testing
