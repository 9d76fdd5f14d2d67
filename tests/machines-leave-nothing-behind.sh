#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What belongs to a machine of libvirt comes along, whatever it is on, or the machine is refused before anything is
# changed; and what others do with it meanwhile is noticed, and stays.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
use_seed
two_hosts
store=$tmp/one/srv/store
target=blockmig://192.0.2.2/store
must mkdir "$store/sub" "$tmp/one/srv/other"
# A machine whose disk has this much has to be copied slowly for something to happen meanwhile.
random_file "$tmp/noise" $((12 << 20)) 5

# new_disk NAME
new_disk()
{
    must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$store/$1"
}

# medium DEVICE FILE TARGET BUS [FORMAT]
medium()
{
    echo "<disk type='file' device='$1'><driver name='qemu' type='${5:-raw}'/><source file='/srv/store/$2'/>
        <target dev='$3' bus='$4'/>$([ "$1" = floppy ] || echo '<readonly/>')</disk>"
}

# define_changed SED-SCRIPT NAME ARGUMENTS OF domain_xml...
define_changed()
{
    local script=$1
    shift
    domain_xml "$@" | sed "$script" >"$tmp/one/srv/changed.xml"
    must on one virsh -q define /srv/changed.xml
}

# refused REGEX WHAT COMMAND...: and the machine "off" is forgotten.
refused()
{
    local wanted=$1 what=$2
    shift 2
    run on one timeout 100 "$blockmig" "$@"
    is "$status" 3 "$what is refused" || diag "$err"
    like "$err" "$wanted" "  which is said"
    must on one virsh -q undefine off --nvram
}

# ---- machines that are off ----------------------------------------------------------------------------

new_disk off
define_changed "s#<source file='/srv/store/off'/>#<source file='/srv/store/off'><slices><slice type='storage' offset='0' size='512'/></slices></source>#" off --disk off:raw
refused 'disk vda .* it is a part of its file' "a disk that is a part of its file" plan migrate off $target

define_changed '' off --disk off:qcow2 --extra "<hostdev mode='subsystem' type='pci' managed='yes'><source>
    <address domain='0' bus='0' slot='5' function='0'/></source></hostdev>
    <channel type='pty'><target type='virtio' name='x'/><log file='/srv/channel-log'/></channel>"
run on one "$blockmig" plan migrate off $target
is "$(grep -Ec '^(/srv/channel-log|.*/off-console) stays here' <<<"$out")" 2 "the files of ports and channels stay behind, which is said, once" ||
    diag "$out"
like "$err" 'a device of the host' "  and that the target needs a device"
must on one virsh -q undefine off

long=$(printf %0240d 0)
must touch "$store/$long"
define_changed '' off --disk "$long:raw"
refused "blockmig-source: File name too long" "a disk that could not be kept" plan move off /srv/other

must ln -s off "$store/link"
define_changed '' off --disk link:qcow2
refused 'link is a symbolic link' "to delete a link" plan move off /srv/other --delete-source

must qemu-img create -q -f qcow2 -F qcow2 -b off "$store/upper"
define_changed '' off --disk off:qcow2 --extra "$(medium disk upper vdb virtio qcow2)"
refused 'medium vdb: /srv/store/upper needs off' "a medium that stands on another file" plan migrate off $target

must touch "$store/sub/off"
define_changed '' off --disk off:qcow2 --extra "$(medium cdrom sub/off hda ide)"
refused 'two images would both become .*/off' "a medium with the disk's name" plan migrate off $target

define_changed "s#<nvram>.*</nvram>#<nvram type='network'><source protocol='nbd' name='x'><host name='192.0.2.1'/></source></nvram>#" \
    off --disk off:qcow2 --nvram x
refused 'its NVRAM is in no file' "NVRAM in no file" plan migrate off $target

must qemu-img create -q -f qed "$store/old" 1M
define_changed 's/cache=.none. discard=.unmap.//' off --disk old:qed
refused 'unknown format "qed"' "a format that the definition names" plan migrate off $target

# An empty drive; one file in two drives.
must sh -c "echo setup >'$store/setup.iso'"
define_changed "s#file='/srv/store/off'#& startupPolicy='optional'#" off --disk off:qcow2 --extra "<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    $(medium cdrom setup.iso hda ide)$(medium cdrom setup.iso hdb ide)"
must fallocate -l 512M "$store/setup.iso"
run on one "$blockmig" plan migrate off $target
like "$out$err" 'space: about 58[0-9] MiB' "the room for a medium is known" || diag "$out$err"
must truncate -s 6 "$store/setup.iso"
migrate one off $target
is "$status" 0 "one medium in two drives" || diag "$err"
is "$(files "$tmp/two/srv/store")" "off setup.iso " "is copied once"
like "$(on two virsh dumpxml off)" "startupPolicy='optional'" "and its disk may still be missing"
must on two virsh -q undefine off

# Looked at piece by piece it would take minutes.
must truncate -s 12T "$store/huge"
define_changed '' off --disk huge:raw
run on one timeout 60 "$blockmig" migrate off $target --delete-source
is "$status" 0 "a huge disk with nothing in it is proved at once" || diag "$err"
must on two virsh -q undefine off
must rm "$tmp/two/srv/store/huge"

# ---- one that runs ------------------------------------------------------------------------------------

new_disk disk
must qemu-img snapshot -c before "$store/disk"
random_file "$store/floppy.img" 1474560 7
must cp "$store/floppy.img" "$tmp/floppy.img"
start_domain one web --disk disk:qcow2 --append 'rate=50 span=1M flush=8 log=1' \
    --extra "$(medium floppy floppy.img fda fdc)$(medium cdrom setup.iso hda ide)"
must on one virsh -q change-media web hda --eject --live
on one timeout 200 "$blockmig" migrate web $target --delete-source -v >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
wait_for 60 grep -q '^blockmig: base  vda' "$tmp/err"
must on one virsh -q desc web --config --title 'other words'
must on one virsh -q autostart web
wait $!
is "$?" 0 "a machine with a floppy, and a medium that was taken out" || diag "$(cat "$tmp/err")"
like "$(cat "$tmp/err")" '1 internal snapshots' "what stays behind of its image is told"
is "$(domain_verdict two web)" OK "it misses nothing"
must domain_cmd two web start
check "the floppy came along, as a disk" cmp "$tmp/floppy.img" "$tmp/two/srv/store/floppy.img"
is "$(files "$store" | grep -c floppy)" 0 "  and is deleted where it was"
is "$(on two virsh -q domblklist web | awk '$1 == "hda" { print $2 }')$(on two virsh -q domblklist --inactive web |
    awk '$1 == "hda" { print $2 }')" "-/srv/store/setup.iso" "the drive is empty, and will have its medium when it is started"
like "$(on two virsh desc web --config --title)" "other words" "what was changed meanwhile is there"
like "$(on two virsh dominfo web)" "Autostart: +enable" "  also that it starts with its host"

migrate two web blockmig://192.0.2.1 --method=quick --delete-source --cdrom=eject
is "$status" 0 "it comes back without its medium" || diag "$err"
is "$(on one virsh -q domblklist --inactive web | awk '$1 == "hda" { print $2 }')" - "which its definition does not name"
is "$(domain_verdict one web)" OK "and misses nothing"
must domain_cmd one web start

# ---- both definitions ---------------------------------------------------------------------------------

new_disk data
must on one virsh -q attach-disk web /srv/store/data vdb --subdriver qcow2 --config
run on one "$blockmig" plan migrate web $target
is "$status" 3 "a disk that it will only have when it is started" || diag "$err"
like "$err" 'disk vdb will be on /srv/store/data .* is not there now' "  would stay behind"
run on one "$blockmig" plan move web /srv/other
is "$status" 0 "  on one host it does not matter" || diag "$err"
must on one virsh -q detach-disk web vdb --config

# ---- what happens meanwhile ---------------------------------------------------------------------------

# meanwhile STATUS WHAT COMMAND BLOCKMIG-ARGUMENTS...
meanwhile()
{
    local wanted=$1 what=$2 command=$3
    shift 3
    : >"$tmp/err"
    on one timeout 200 "$blockmig" "$@" --bandwidth=12MiB/s --delete-source -v >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
    local pid=$!
    wait_for 60 grep -q '^blockmig: base  vda' "$tmp/err"
    eval "must $command"
    wait "$pid"
    is "$?" "$wanted" "$what" || diag "$(cat "$tmp/err")"
}

must on one virsh -q suspend web
run on one "$blockmig" plan migrate web $target
is "$status" 3 "one that stands still does not go to another host" || diag "$err"
like "$err" 'live: it stands still.*restart: it stands still' "  which is said"

# elsewhere: sets REPLY to the directory that the disk is not in.
elsewhere()
{
    REPLY=/srv/other
    [ "$(domain_file one web)" = /srv/store/disk ] || REPLY=/srv/store
}

resumed()
{
    elsewhere
    must on one virsh -q suspend web
    meanwhile 0 "one that stands still, and goes on while it is moved" "on one virsh -q resume web" move web "$REPLY"
    is "$(on one virsh domstate web | head -n 1)" running "  runs on"
}

suspended()
{
    elsewhere
    meanwhile 0 "one that is stopped while it is moved" "on one virsh -q suspend web" move web "$REPLY"
    is "$(on one virsh domstate web --reason | head -n 1)" "paused (user)" "  stays so"
    must on one virsh -q resume web
}

suspended_here()
{
    meanwhile 4 "one that is stopped while it is copied to another host" "on one virsh -q suspend web" migrate web $target
    is "$(on one virsh domstate web --reason | head -n 1)" "paused (user)" "  stays where it is"
    must on one virsh -q resume web
}

given()
{
    meanwhile 4 "one that gets another disk" \
        "on one virsh -q attach-disk web /srv/store/data vdb --subdriver qcow2 --live --config" migrate web $target
    like "$(cat "$tmp/err")" 'disk vdb was given to the machine meanwhile' "  which is said"
    must on one virsh -q detach-disk web vdb --live --config
}

taken()
{
    elsewhere
    must on one virsh -q attach-disk web /srv/store/data vdb --subdriver qcow2 --live --config
    meanwhile 4 "one that loses a disk" "on one virsh -q detach-disk web vdb --live --config" move web "$REPLY" --disk vda --disk vdb
    like "$(cat "$tmp/err")" 'disk vdb was taken from the machine meanwhile' "  which is said"
}

must on one virsh -q resume web
some 1 resumed suspended suspended_here given taken
for case in "${chosen[@]}"; do
    $case
    is "$(domain_verdict one web)" OK "  and it misses nothing"
    must domain_cmd one web start
done
meanwhile 4 "one whose state is saved" "on one virsh -q managedsave web" migrate web $target
must on one virsh -q start web
is "$(domain_verdict one web)" OK "  goes on from there, with its own disks"
must domain_cmd one web start
meanwhile 4 "one that goes off" "domain_cmd one web poweroff" migrate web $target
like "$(cat "$tmp/err")" 'the machine is off, on the source; nothing is left' "  which is said"
is "$( (ls "$store"; ls "$tmp/one/srv/other") | LC_ALL=C sort | tr '\n' ' ')$(files "$tmp/two/srv/store")" \
    "$long data disk floppy.img link off.blockmig-source old setup.iso sub upper off setup.iso " "nothing is left of all that"

# ---- files that are not what they seem ----------------------------------------------------------------

define_changed "s/cache='none'/copy_on_read='on'/" off --disk data:qcow2
must on one virsh -q start off
run on one "$blockmig" move off /srv/other
is "$status" 3 "a disk whose overlays would not be merged" || diag "$err"
must cp "$store/data" "$store/moved"
must on one virsh -q destroy off
must on one virsh -q undefine off
define_changed '' off --disk moved:qcow2
must on one virsh -q start off
must mv "$store/moved" "$store/other"
must mv "$store/data" "$store/moved"
run on one "$blockmig" move off /srv/other
is "$status" 3 "a file that took the place of the machine's own" || diag "$err"
like "$err" 'no hypervisor has /srv/store/moved open' "  is not taken for it"
must on one virsh -q destroy off
must truncate -s 1000100 "$store/odd"
define_changed "s/cache='none'/cache='writeback'/" odd --disk odd:raw
must on one virsh -q start odd
run on one "$blockmig" move odd /srv/other
is "$status" 3 "a disk of no whole number of sectors" || diag "$err"
must on one virsh -q destroy odd
run on one "$blockmig" move odd /srv/other
is "$status" 0 "  while its machine is off it is moved" || diag "$err"
is "$(stat -c %s "$tmp/one/srv/other/odd")" 1000100 "  as it is"
must on one mount -t tmpfs -o ro tmpfs /srv/other
run on one "$blockmig" plan move off /srv/other
is "$status" 3 "a directory that cannot be written to" || diag "$err"
done_testing
