# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Sourced after tests/lib.sh by tests that need a running machine:
#
#     need_guest
#     start_guest a --disk "$tmp/disk.qcow2:qcow2" --append 'span=64M flush=32'
#     guest_wait_ready a
#     ... move its disk ...
#     is "$(guest_verdict a)" OK "nothing is lost"
#
# A guest NAME has a directory $tmp/NAME with the sockets qmp (for the program under test), qmp-test (for the
# test; a monitor has one client at a time) and command, the files console and events (every event with
# QEMU's own time stamp) and pid.  Its disks have the device ids vd0, vd1, ...  and the node names disk0, disk1,
# ...; with --drive-style the drive ids drive0, drive1, ... and generated node names.  --libvirt-style is the first
# with the options that libvirt gives: QEMU then opens files again, by name, when a disk becomes read-only.
#
# The guest's commands and kernel arguments: tests/guest/guest.c.

# For moves that are to succeed: how long a pause takes on a busy machine decides no test.
patient=(--max-pause=30s)

guest_tools=$srcdir/tests/guest
guest_build=$builddir/tests/guest
guest_direct=${guest_direct:-on}

# What a boot does not need: under an emulator it is a third of it.
guest_boot='nokaslr mitigations=off lsm= no_timer_check tsc=reliable cryptomgr.notests'
guest_boot+=' initcall_blacklist=init_kprobe_trace,init_graph_tracefs,trace_eval_init'
guest_boot+=,init_trace_printk_function_export,crypto_algapi_init,load_system_certificate_list,cubictcp_register

# Writes per second and disk, where a test does not say it: guests at full speed (0) take all processors.
pick 400 0
guest_rate=$REPLY

# need_guest: builds kernel and initramfs at the first need.
need_guest()
{
    need_tool qemu-system-x86_64 qemu-img jq python3 cc dpkg-deb
    run "$guest_tools/build" "$guest_build"
    [ "$status" -eq 0 ] || { diag "$err"; skip_all "the test guest cannot be built"; }
}

# start_guest NAME [--disk FILE:FORMAT[:OPTIONS]]... [--drive-style | --libvirt-style]
#     [--append KERNEL-ARGUMENTS] [--memory MIB] [--agent] [-- QEMU-ARGUMENTS...]
start_guest()
{
    local name=$1 style=blockdev append='' memory=128 disks=() arguments=() i file format options
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --disk) disks+=("$2"); shift ;;
            --drive-style) style=drive ;;
            --libvirt-style) style=libvirt ;;
            --append) append=$2; shift ;;
            --memory) memory=$2; shift ;;
            --agent) arguments+=(-device virtio-serial-pci
                -chardev "socket,id=agent,path=$tmp/$name/agent,server=on,wait=off"
                -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0) ;;
            --) shift; arguments+=("$@"); break ;;
        esac
        shift
    done
    for i in "${!disks[@]}"; do
        IFS=: read -r file format options <<<"${disks[i]}"
        disk_arguments "$style" "$i" "$file" "$format" "$options"
        arguments+=("${REPLY[@]}")
    done
    mkdir -p "$tmp/$name"
    rm -f "$tmp/$name"/{qmp,qmp-test,qmp-events,command,events}
    # A machine that is started again goes on in the same log, whose last line a kill may have cut.
    [ ! -s "$tmp/$name/console" ] || echo >>"$tmp/$name/console"
    [[ " $append " == *" log=1 "* && " $append " != *" hold=1 "* ]] && echo 1 >"$tmp/$name/promises" ||
        echo 0 >"$tmp/$name/promises"
    start qemu-system-x86_64 -name "$name" -accel tcg -machine pc -m "$memory" -display none -nodefaults \
        -qmp "unix:$tmp/$name/qmp,server=on,wait=off" \
        -qmp "unix:$tmp/$name/qmp-test,server=on,wait=off" \
        -qmp "unix:$tmp/$name/qmp-events,server=on,wait=on" \
        -chardev "file,id=console,path=$tmp/$name/console,append=on" -serial chardev:console \
        -chardev "socket,id=command,path=$tmp/$name/command,server=on,wait=off" -serial chardev:command \
        -kernel "$guest_build/vmlinux" -initrd "$guest_build/initramfs" \
        -append "console=ttyS0 quiet loglevel=1 panic=-1 $guest_boot rdinit=/init rate=$guest_rate $append" \
        "${arguments[@]}"
    local pid=$REPLY
    echo "$pid" >"$tmp/$name/pid"
    start "$guest_tools/qmp.py" --record "$tmp/$name/events" "$tmp/$name/qmp-events" 2>"$tmp/$name/recorder"
    REPLY=$pid
}

# Sets the array REPLY to QEMU's arguments for one disk.
disk_arguments()
{
    local style=$1 i=$2 file=$3 format=$4 options=${5:+,$5} driver=file
    [ ! -b "$file" ] || driver=host_device
    if [ "$style" = drive ]; then
        local cache=none
        [ "$guest_direct" = on ] || cache=writeback
        REPLY=(-drive "if=virtio,id=drive$i,file=$file,format=$format,cache=$cache$options")
    else
        local automatic=''
        if [ "$style" = libvirt ]; then
            automatic=,auto-read-only=on,discard=unmap
            options=,read-only=off,discard=unmap$options
        fi
        REPLY=(-blockdev "driver=$driver,node-name=disk$i-file,filename=$file,cache.direct=$guest_direct$automatic"
            -blockdev "driver=$format,node-name=disk$i,file=disk$i-file,cache.direct=$guest_direct$options"
            -device "virtio-blk-pci,id=vd$i,drive=disk$i")
    fi
}

# guest_wait_ready NAME [BOOTS]: until it writes (again, after the reboot number BOOTS - 1), and with log=1 has flushed
# something, so that there is a promise to judge by.
guest_wait_ready()
{
    wait_for 60 guest_is_ready "$1" "${2:-1}" && return 0
    not_ok "set-up: guest $1 starts"
    diag "$(ls -l "$tmp/$1"; cat "$tmp/$1/recorder"; grep '^guest: ' "$tmp/$1/console"; tail -n 20 "$tmp/$1/console")"
    done_testing
}

guest_is_ready()
{
    [ -e "$tmp/$1/events" ] && awk -v boots="$2" -v promises="$(cat "$tmp/$1/promises")" '
        /^guest: ready/ { ready++; flushed = 0 }
        /^log: / { flushed = 1 }
        END { exit !(ready >= boots && (flushed || !promises)) }' "$tmp/$1/console"
}

# guest_cmd NAME COMMAND [SECONDS]: prints the answer.
guest_cmd()
{
    "$guest_tools/guest-cmd.py" "$tmp/$1/command" "${3:-90}" "$2"
}

# guest_stats NAME [JQ-FILTER]
guest_stats()
{
    guest_cmd "$1" stats | jq -r "${2:-.}"
}

# guest_verdict NAME: stops the writers; "OK", or the whole line if not.
guest_verdict()
{
    local answer
    answer=$(guest_cmd "$1" check 180)
    case $answer in
        OK*) echo OK ;;
        *) echo "$answer" ;;
    esac
}

# host_verdict NAME DISK-NUMBER IMAGE FORMAT: what the console log promises against what the image holds, read by
# qemu-img, so the image must be closed or idle.
host_verdict()
{
    must qemu-img convert -U -f "$4" -O raw "$3" "$tmp/$1/view.raw"
    "$guest_build/guest-check" "$tmp/$1/console" "$2" "$tmp/$1/view.raw"
}

# qmp NAME STEP...: see tests/guest/qmp.py; prints what each step returned.
qmp()
{
    local name=$1
    shift
    "$guest_tools/qmp.py" "$tmp/$name/qmp-test" "$@"
}

# guest_pauses NAME: the length in ms of each pause so far, from QEMU's own STOP and RESUME events.
guest_pauses()
{
    jq -r 'select(.event == "STOP" or .event == "RESUME")
        | "\(.event) \(.timestamp.seconds) \(.timestamp.microseconds)"' "$tmp/$1/events" |
        awk '$1 == "STOP" { s = $2; u = $3; stopped = 1 }
            $1 == "RESUME" && stopped { printf "%.3f\n", ($2 - s) * 1000 + ($3 - u) / 1000; stopped = 0 }'
}

# is_running NAME: the machine does not stand still; for wait_for.
is_running()
{
    [ "$(qmp "$1" '{"execute": "query-status"}' | jq -r .status)" = running ]
}

# phase_is PHASE: of the newest job; for kill_when.
phase_is()
{
    "$blockmig" job list --json | jq -e --arg phase "$1" '.jobs[0].phase == $phase' >/dev/null
}

# kill_when CONDITION ARGUMENT...: runs the program under test and kills it as soon as the shell command CONDITION
# succeeds; what it said is in $tmp/killed.err.
kill_when()
{
    local when=$1 try pid
    shift
    "$blockmig" "$@" 2>"$tmp/killed.err" 3>&- </dev/null &
    pid=$!
    for try in $(seq 3000); do
        eval "$when" && break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.003
    done
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    return 0
}

# stop_guest NAME: ends the machine as a pulled plug would not: QEMU flushes and closes.
stop_guest()
{
    stop_process "$(cat "$tmp/$1/pid")"
}

# kill_guest NAME: as a crash of the host would.
kill_guest()
{
    local pid
    pid=$(cat "$tmp/$1/pid")
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    return 0
}

# used_device NAME SIZE: a loop device full of noise, as a used LUN is; sets REPLY.
used_device()
{
    random_file "$tmp/$1.lun" "$2" 7
    loop_device "$tmp/$1.lun"
    at_exit blockdev --setrw "$REPLY"
}

# files DIRECTORY: what is in it, in one line.
files()
{
    (cd "$1" && LC_ALL=C ls | tr '\n' ' ')
}

# keeper JOB: the process that will close its failback window; nothing if there is none.
keeper()
{
    blockmig job show --json "$1" | jq -r '.failback.keeper // empty'
}

keeper_is_gone()
{
    [ -z "$(keeper "$1")" ]
}

# end_keeper JOB: a test leaves no process behind.
end_keeper()
{
    local pid
    pid=$(keeper "$1")
    [ -z "$pid" ] || kill -KILL "$pid"
}

# killed_at COMMIT PID COMMAND...: the program is killed after that commit of the journal, and before it the process
# PID (0: none).  False if it came to its end before.
killed_at()
{
    local commit=$1 pid=$2
    shift 2
    ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0 KILL_AT_COMMIT=$commit KILL_TOO=$pid \
        LD_PRELOAD=$builddir/tests/helpers/kill-at-commit.so "$builddir/tools/blockmig" "$@" \
        >"$tmp/.killed" 2>&1 3>&- </dev/null
    [ $? -eq 137 ]
}

# newest_job [JQ-FILTER]
newest_job()
{
    "$builddir/tools/blockmig" job list --json 2>/dev/null | jq -r ".jobs[0]${1:-.job}"
}
