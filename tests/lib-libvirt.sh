# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Hosts with a libvirt each, which share nothing but the network between them.  Sourced after lib.sh:
#
#     . "$srcdir/tests/lib-libvirt.sh"
#     two_hosts                       # "one" and "two", 192.0.2.1 and 192.0.2.2, an agent on each
#     on one virsh list
#     start_domain one web --disk disk.qcow2:qcow2
#
# A host NAME is namespaces (mount, UTS, network, processes) of which $tmp/NAME/pid is the first process.  What
# it has of its own: /run, /etc/libvirt, /etc/pki, /var/lib/libvirt, what swtpm keeps, and /srv, which is $tmp/NAME/srv.

. "$srcdir/tests/guest/lib-guest.sh"
. "$srcdir/tests/lib-agent.sh"
. "$srcdir/tests/lib-tls.sh"

need_tool libvirtd virsh ip unshare nsenter pgrep pkill
need_root
need_guest

# For migrations and moves that are to succeed: how long a pause takes on a busy machine decides no test.
patient_blockmig()
{
    [ "$blockmig" != "$tmp/patient-blockmig" ] || return 0
    cat >"$tmp/patient-blockmig" <<END
#!/bin/sh
case "\$1 \$*" in
    *--max-pause* | *--method=quick* | *--method=restart*) ;;
    migrate* | move*) set -- "\$@" --max-pause=30s ;;
esac
exec $blockmig "\$@"
END
    must chmod 755 "$tmp/patient-blockmig"
    blockmig=$tmp/patient-blockmig
}

# on HOST COMMAND...
on()
{
    local host=$1
    shift
    nsenter --target "$(cat "$tmp/$host/pid")" --mount --uts --net --pid -- \
        env BLOCKMIG_STATE_DIR=/srv/state BLOCKMIG_AGENT_TLS=/srv/tls "$@"
}

# What the first process of a host does before it waits for its end.
host_set_up()
{
    set -e
    local name=$1 base=$2 directory
    hostname "$name"
    ip link set lo up
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /dev/shm # its processes have numbers of their own, which are names there
    for directory in /etc/libvirt /etc/pki /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /var/lib/swtpm-localca \
        /var/log/swtpm; do
        [ -d "$directory" ] || continue
        mount -t tmpfs tmpfs "$directory"
    done
    # What libvirtd wants although nothing runs as that user.
    for directory in passwd group; do
        cp "/etc/$directory" "$base/$directory"
        grep -q '^libvirt-qemu:' "$base/$directory" || case $directory in
            passwd) echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' ;;
            group) echo 'libvirt-qemu:x:64055:' ;;
        esac >>"$base/$directory"
        mount --bind "$base/$directory" "/etc/$directory"
    done
    mount --bind "$base/srv" /srv
    printf '%s\n' 'auth_unix_rw = "none"' "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" 'log_outputs = "4:stderr"' \
        >/etc/libvirt/libvirtd.conf
    printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'namespaces = []' \
        'cgroup_controllers = []' 'stdio_handler = "file"' 'remember_owner = 0' >/etc/libvirt/qemu.conf
}

# new_host NAME
new_host()
{
    local base=$tmp/$1
    patient_blockmig
    must mkdir -p "$base/srv/state" "$base/srv/store"
    start unshare --mount --uts --net --pid --fork --kill-child --propagation private bash -c \
        "set -u; $(declare -f host_set_up); host_set_up '$1' '$base'; touch '$base/ready'; sleep infinity & wait"
    local outer=$REPLY
    wait_for 20 test -e "$base/ready" || must false "host $1"
    pgrep -P "$outer" >"$base/pid"
}

# libvirt_up HOST: also again, after it was killed.
libvirt_up()
{
    start on "$1" libvirtd --timeout 0
    wait_for 30 on "$1" virsh -q list || must false "libvirtd on $1"
}

# slow_syncs NAME PROGRAM FILE: $tmp/NAME runs it so that its syncs take long as long as that file is there.
slow_syncs()
{
    printf '#!/bin/sh\nexport SLOW_SYNCS=%s LD_PRELOAD=%s\nexec %s "$@"\n' \
        "$3" "$builddir/tests/helpers/slow-syncs.so" "$2" >"$tmp/$1"
    must chmod 755 "$tmp/$1"
}

# host_agent HOST ADDRESS: serves /srv/store as "store", and machines, on $units if that is set.
host_agent()
{
    cat >"$tmp/$1/srv/agent.conf" <<END
[agent]
listen=$2:16600
socket=/run/blockmig.sock
tls-directory=/srv/tls
allow=*
[datastore store]
directory=/srv/store
[machines]
allow=*
program=$blockmig
units=${units:-}
END
    start on "$1" "${blockmigd:-$builddir/tools/blockmigd}" --config /srv/agent.conf
    wait_for 10 on "$1" curl -sf --unix-socket /run/blockmig.sock http://agent/v1 || must false "the agent of $1"
}

# address_of HOST
address_of()
{
    [ "$1" = one ] && echo 192.0.2.1 || echo 192.0.2.2
}

# two_hosts
two_hosts()
{
    local host address
    new_host one
    new_host two
    must ip link add eth0 netns "$(cat "$tmp/one/pid")" type veth peer name eth0 netns "$(cat "$tmp/two/pid")"
    authority "$tmp/ca"
    for host in one two; do
        address=$(address_of "$host")
        must on "$host" ip address add "$address/24" dev eth0
        must on "$host" ip link set eth0 up
        server_certificate "$tmp/$host/srv/tls" "$address"
        client_certificate "$tmp/$host/srv/tls" "$host"
        libvirt_up "$host"
        host_agent "$host" "$address"
    done
}

# domain_xml NAME [--disk FILE:FORMAT | --on TYPE:SOURCE-XML]... [--append KERNEL-ARGUMENTS] [--extra DEVICE-XML] [--nvram FILE]:
# prints a definition; files are below /srv/store, unless named absolutely.  With NVRAM the firmware is in flash.
domain_xml()
{
    local name=$1 append='' extra='' disks='' firmware='' letter file format
    local letters=({a..z})
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --disk)
                IFS=: read -r file format <<<"$2"
                [ "${file:0:1}" = / ] || file=/srv/store/$file
                letter=${letters[0]}
                letters=("${letters[@]:1}")
                disks+="<disk type='file' device='disk'><driver name='qemu' type='$format' cache='none' discard='unmap'/>
                    <source file='$file'/><target dev='vd$letter' bus='virtio'/></disk>"
                shift ;;
            --on)
                letter=${letters[0]}
                letters=("${letters[@]:1}")
                disks+="<disk type='${2%%:*}' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>
                    ${2#*:}<target dev='vd$letter' bus='virtio'/></disk>"
                shift ;;
            --append) append=$2; shift ;;
            --extra) extra+=$2; shift ;;
            --nvram)
                firmware="<loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>
                    <nvram>/srv/store/$2</nvram>"
                shift ;;
        esac
        shift
    done
    cat <<END
<domain type='qemu'>
  <name>$name</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>$firmware
    <kernel>$guest_build/${guest_kernel:-vmlinux}</kernel><initrd>$guest_build/initramfs</initrd>
    <cmdline>console=ttyS0 quiet loglevel=1 panic=-1 $guest_boot rdinit=/init $append</cmdline></os>
  <features><acpi/></features>
  <devices>
    <emulator>${emulator:-/usr/bin/qemu-system-x86_64}</emulator>
    $disks
    <serial type='file'><source path='$tmp/$name-console' append='on'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='/srv/$name-command'/><target port='1'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    $extra
  </devices>
</domain>
END
}

# start_domain HOST NAME ARGUMENTS OF domain_xml...
start_domain()
{
    local host=$1 name=$2
    shift
    domain_xml "$@" >"$tmp/$host/srv/$name.xml"
    must on "$host" virsh -q define "/srv/$name.xml"
    start_again "$host" "$name"
}

# boots_of NAME: how often it became ready so far, on whichever host; they write to one console.
boots_of()
{
    cat "$tmp/$1-console" 2>/dev/null | grep -ac '^guest: ready'
}

is_ready()
{
    [ "$(boots_of "$1")" -gt "$2" ]
}

# wait_ready NAME BOOTS: once more than that.  Ask boots_of before whatever starts it: a guest whose memory was lost
# (lost_memory) boots when nobody expects it.
wait_ready()
{
    wait_for 60 is_ready "$@" || must false "guest $1 starts"
}

# start_again HOST NAME: one that is off.
start_again()
{
    local boots
    boots=$(boots_of "$2")
    must on "$1" virsh -q start "$2"
    wait_ready "$2" "$boots"
}

# migrate HOST ARGUMENTS...: sets out, err and status, as run does.
migrate()
{
    local host=$1
    shift
    run on "$host" timeout 200 "$blockmig" migrate "$@"
}

# killed_in HOST PHASE[+SECONDS|:FUNCTION] COMMAND...: blockmig is killed as soon as it says that it is in that phase,
# or so many seconds later, or when that function succeeds; false: it ended before.
killed_in()
{
    local host=$1 phase=$2 try
    shift 2
    : >"$tmp/killed.err"
    on "$host" timeout 200 "$blockmig" "$@" -v >"$tmp/killed.out" 2>"$tmp/killed.err" 3>&- </dev/null &
    local pid=$!
    for try in $(seq 6000); do
        if grep -q "^blockmig: ${phase%[+:]*}" "$tmp/killed.err"; then
            [ "$phase" = "${phase#*:}" ] || "${phase#*:}" && break
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.01
    done
    [ "$phase" = "${phase#*+}" ] || sleep "${phase#*+}"
    on "$host" pkill -KILL -x blockmig
    wait "$pid" 2>/dev/null
    [ $? -ge 128 ]
}

# job ARGUMENTS...: `blockmig job` on the host one; sets out, err and status, as run does.
job()
{
    run on one timeout 200 "$blockmig" job "$@"
}

# end_keeper_of JOB: of the host one; its way back stays open for good.
end_keeper_of()
{
    local pid
    pid=$(on one "$blockmig" job show --json "$1" | jq -r '.failback.keeper // empty')
    [ -z "$pid" ] || on one kill -KILL "$pid" 2>/dev/null
    return 0
}

# running_on NAME: the hosts on which its processors run, in one line.
running_on()
{
    local host
    for host in one two; do
        [ "$(on "$host" virsh domstate "$1" 2>/dev/null | head -n 1)" != running ] || printf '%s ' "$host"
    done
}

# defined_on NAME
defined_on()
{
    local host
    for host in one two; do
        ! on "$host" virsh dominfo "$1" >/dev/null 2>&1 || printf '%s ' "$host"
    done
}

# domain_file HOST NAME [VIRSH-OPTION]: of its first disk, by its definition.
domain_file()
{
    on "$1" virsh dumpxml ${3:-} "$2" | sed -n "s/.*<source file='\([^']*\)'.*/\1/p" | head -n 1
}

# domain_cmd HOST NAME COMMAND
domain_cmd()
{
    "$guest_tools/guest-cmd.py" "$tmp/$1/srv/$2-command" "${4:-60}" "$3"
}

# lost_memory NAME ANSWER: does it look as if QEMU had lost a page of it?  While it emulates processors (TCG), QEMU 7.2
# does so in about one of a hundred live migrations, without blockmig, too (HACKING): a store that was on its way when
# the page was sent.  Then the guest panics, is silent, or remembers less than it has written; or the block of the write on
# its way is what it was one write before, so that this one is remembered where the last one went.
lost_memory()
{
    local panics
    panics=$(grep -ac 'Kernel panic' "$tmp/$1-console")
    [ "$panics" -le "$(cat "$tmp/$1-panics" 2>/dev/null || echo 0)" ] || return 0
    case $2 in
        '' | *': newer data, '*) true ;;
        *) [[ $2 =~ ': older data, expected sequence '([0-9]+)', found '([0-9]+)';' ]] &&
            [ "${BASH_REMATCH[1]}" -eq $((BASH_REMATCH[2] + 1)) ] ;;
    esac
}

# crash_verdict HOST NAME: what the disks of a guest hold whose plug is pulled, and it is started anew.
crash_verdict()
{
    local format path line number=0 verdict=OK
    on "$1" virsh -q destroy "$2" >&2
    while read -r format path; do
        must on "$1" qemu-img convert -U -f "$format" -O raw "$path" "$tmp/view.raw"
        line=$("$guest_build/guest-check" "$tmp/$2-console" "$number" "$tmp/view.raw" 2>&1)
        case $line in
            OK*) ;;
            *) verdict=$line ;;
        esac
        number=$((number + 1))
    done < <(on "$1" virsh dumpxml --inactive "$2" | awk -F\' '/<disk /{disk = /device=.disk./}
        disk && /<driver /{format = $4} disk && /<source file/{print format, $2}')
    start_again "$1" "$2" >&2
    grep -ac 'Kernel panic' "$tmp/$2-console" >"$tmp/$2-panics"
    echo "$verdict"
}

# hypervisor_died HOST NAME: QEMU 7.2 may die of a live migration that is given up, without blockmig, too (HACKING).
hypervisor_died()
{
    [ "$(on "$1" virsh domstate --reason "$2" 2>/dev/null | head -n 1)" = "shut off (crashed)" ]
}

# domain_verdict HOST NAME: the guest's own; where the hypervisor lost its memory, what was flushed must be there.
domain_verdict()
{
    local answer
    answer=$(domain_cmd "$1" "$2" check)
    [[ $answer != *'cannot be read'* ]] || diag "$(on "$1" tail -n 5 "/var/log/libvirt/qemu/$2.log")"
    if lost_memory "$2" "$answer" && [ "$(on "$1" virsh domstate "$2" | head -n 1)" = running ]; then
        diag "the guest lost memory (\"$answer\")"
        echo lost >>"$tmp/lost-memory"
        [ "$(wc -l <"$tmp/lost-memory")" -gt 2 ] || answer=$(crash_verdict "$1" "$2")
    fi
    case $answer in
        OK*) echo OK ;;
        *) echo "$answer" ;;
    esac
}
