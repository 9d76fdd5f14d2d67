#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The NVRAM of a machine goes with it, as it is at the switch, by every method; where it was, nothing is left
# under its name, so it may come back.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
two_hosts

random_file "$tmp/noise" $((16 << 20)) 5
must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$tmp/one/srv/store/disk.qcow2"
random_file "$tmp/one/srv/store/vars.fd" 131072 3
start_domain one web --disk disk.qcow2:qcow2 --nvram vars.fd --append 'rate=20 span=1M flush=32 log=1'

# spoil FILE: its last 512 bytes become something else.
spoil()
{
    printf %512s | dd of="$1" bs=512 seek=$(($(stat -c %s "$1") / 512 - 1)) conv=notrunc status=none
}

# is_copied: the NVRAM is on the other host, and other than here.
is_copied()
{
    cmp -s "$tmp/$from/srv/store/vars.fd" "$tmp/$to/srv/store/vars.fd" && spoil "$tmp/$to/srv/store/vars.fd"
}

# comes FROM TO OPTIONS...
comes()
{
    from=$1 to=$2
    shift 2
    local before
    before=$(sha256sum <"$tmp/$from/srv/store/vars.fd")
    on "$from" timeout 200 "$blockmig" migrate web "blockmig://$(address_of "$to")" --bandwidth=4MiB/s -v "$@" \
        >"$tmp/out" 2>"$tmp/err" 3>&- &
    local pid=$!
    case $* in
        *live* | *quick*) wait_for 30 is_copied ;;
        *restart*)
            wait_for 30 is_copied
            wait_for 60 grep -q 'waiting for the guest' "$tmp/err"
            domain_cmd "$from" web poweroff >/dev/null 2>&1 ;;
    esac
    wait "$pid"
    is $? 0 "$*: from $from to $to" || cat "$tmp/err" >&2
    is "$(sha256sum <"$tmp/$to/srv/store/vars.fd")" "$before" "  with the NVRAM as it was at the switch"
    is "$(on "$to" virsh dumpxml --inactive web | grep -c '<nvram>/srv/store/vars.fd<')" 1 "  which the definition names"
    is "$(ls "$tmp/$from/srv/store")" "$kept" "  and where it was it has no such name any more"
}

kept=$'disk.qcow2.blockmig-source\nvars.fd.blockmig-source' comes one two --method=live
must rm "$tmp"/one/srv/store/*
pick restart 'quick restart'
from=two
for method in $REPLY; do
    [ $from = two ] && to=one || to=two
    kept='' comes $from $to --method=$method --delete-source
    from=$to
done
must on "$from" virsh -q destroy web
[ "$from" = one ] || kept='' comes two one --method=cold --delete-source

# The way back: what is kept is the NVRAM, too, and goes when it is of no use any more.
window=(--keep-failback=1h --failback-to=blockmig://192.0.2.1/store --delete-source)
kept=$'disk.qcow2.blockmig-source\nvars.fd.blockmig-source' comes one two --method=cold "${window[@]}"
job=$(on one "$blockmig" job list --json | jq -r '.jobs[0].job')
run on one "$blockmig" job failback "$job"
is "$status" 0 "it is brought back" || diag "$err"
is "$(ls "$tmp/one/srv/store") $(ls "$tmp/two/srv/store")" $'disk.qcow2\nvars.fd ' "with its NVRAM, and nothing else is left"
kept=$'disk.qcow2.blockmig-source\nvars.fd.blockmig-source' comes one two --method=cold "${window[@]}"
run on one "$blockmig" job finish "$(on one "$blockmig" job list --json | jq -r '.jobs[0].job')"
is "$status $(ls "$tmp/one/srv/store")" "0 " "the way back is closed: nothing is kept"
must on two virsh -q start web

# Before its first start a machine has none.
must touch "$tmp/one/srv/store/new"
domain_xml new --disk new:raw --nvram new.fd | sed "s#<nvram>#<nvram template='/usr/share/seabios/vgabios.bin'>#" >"$tmp/one/srv/new.xml"
must on one virsh -q define /srv/new.xml
run on one "$blockmig" migrate new blockmig://192.0.2.2/store --delete-source
is "$status $(ls "$tmp/one/srv/store") $(ls "$tmp/two/srv/store")" $'0  disk.qcow2\nnew\nvars.fd' "one that was never started has none to bring" ||
    diag "$err"
done_testing
