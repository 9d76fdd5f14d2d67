# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Sourced by every behaviour test, which is a bash script tests/BEHAVIOUR.sh:
#
#     #!/bin/bash
#     . "${srcdir:-.}/tests/lib.sh"
#     need_tool qemu-img
#     run_ok "an empty disk is copied" blockmig copy "$tmp/a.qcow2" "$tmp/b.qcow2"
#     done_testing
#
# TAP goes to descriptor 3 (the real standard output); everything that a test or its children
# print otherwise goes to the log.  A function that makes something sets REPLY, because a
# $(subshell) could not register what has to be cleaned up.
#
# Environment: builddir (where tools/blockmig is), srcdir, BLOCKMIG_REFERENCE=1 (what is missing is a
# failure, not a skip), BLOCKMIG_LONG=1 (larger counts), BLOCKMIG_SEED (repeats a random test).

set -u
exec 3>&1 1>&2

srcdir=$(cd "${srcdir:-$(dirname "${BASH_SOURCE[0]}")/..}" && pwd)
builddir=$(cd "${builddir:-$srcdir}" && pwd)
PATH=$PATH:/usr/sbin:/sbin
LC_ALL=C.UTF-8
blockmig=${BLOCKMIG:-$builddir/tools/blockmig}
export srcdir builddir PATH LC_ALL

test_name=$(basename "$0" .sh)
tests_run=0
tests_failed=0
finished=no
cleanup_commands=()

mkdir -p "${TMPDIR:-/var/tmp}"
tmp=$(mktemp -d "${TMPDIR:-/var/tmp}/blockmig-$test_name.XXXXXX") || exit 99
export BLOCKMIG_STATE_DIR="$tmp/state"

# ---- results ----------------------------------------------------------------------------------------

diag()
{
    local line
    while IFS= read -r line; do
        printf '# %s\n' "$line" >&3
    done <<<"$*"
}

ok()
{
    tests_run=$((tests_run + 1))
    printf 'ok %d - %s\n' "$tests_run" "$*" >&3
}

not_ok()
{
    tests_run=$((tests_run + 1))
    tests_failed=$((tests_failed + 1))
    printf 'not ok %d - %s\n' "$tests_run" "$*" >&3
}

# skip REASON WHAT: one test that cannot run here.
skip()
{
    if [ "${BLOCKMIG_REFERENCE:-0}" = 1 ]; then
        not_ok "$2 (cannot run: $1)"
    else
        tests_run=$((tests_run + 1))
        printf 'ok %d - %s # SKIP %s\n' "$tests_run" "$2" "$1" >&3
    fi
}

# skip_all REASON: the whole script cannot run here.
skip_all()
{
    finished=yes
    if [ "${BLOCKMIG_REFERENCE:-0}" = 1 ]; then
        not_ok "can run here: $*"
        printf '1..%d\n' "$tests_run" >&3
        exit 1
    fi
    printf '1..0 # SKIP %s\n' "$*" >&3
    exit 0
}

# is GOT WANTED WHAT
is()
{
    if [ "$1" = "$2" ]; then
        ok "$3"
    else
        not_ok "$3"
        diag "got:    ${1:0:2000}"
        diag "wanted: ${2:0:2000}"
        return 1
    fi
}

# like TEXT EXTENDED-REGEX WHAT
like()
{
    if grep -Eq -e "$2" <<<"$1"; then
        ok "$3"
    else
        not_ok "$3"
        diag "does not match /$2/:"
        diag "$1"
        return 1
    fi
}

# unlike TEXT EXTENDED-REGEX WHAT
unlike()
{
    if grep -Eq -e "$2" <<<"$1"; then
        not_ok "$3"
        diag "matches /$2/:"
        diag "$1"
        return 1
    else
        ok "$3"
    fi
}

# check WHAT COMMAND...: ok if the command succeeds; its output is only shown if not.
check()
{
    local what=$1
    shift
    run "$@"
    report_status "$what" "$status" 0
}

# done_testing: prints the plan; the last line of every test.
done_testing()
{
    finished=yes
    printf '1..%d\n' "$tests_run" >&3
    [ "$tests_failed" -eq 0 ]
    exit
}

# ---- running ----------------------------------------------------------------------------------------

# run COMMAND...: sets status, out (standard output) and err (standard error).
run()
{
    "$@" >"$tmp/.out" 2>"$tmp/.err" 3>&- </dev/null
    status=$?
    out=$(tr -d '\0' <"$tmp/.out")
    err=$(tr -d '\0' <"$tmp/.err")
}

report_status()
{
    local what=$1 got=$2 wanted=$3
    if [ "$got" -eq "$wanted" ]; then
        ok "$what"
        return 0
    fi
    not_ok "$what"
    diag "exit status $got, wanted $wanted"
    diag "$(head -c 4000 "$tmp/.out")"
    diag "$(head -c 4000 "$tmp/.err")"
    return 1
}

# run_ok WHAT COMMAND...
run_ok()
{
    check "$@"
}

# fails_with CODE WHAT COMMAND...
fails_with()
{
    local wanted=$1 what=$2
    shift 2
    run "$@"
    report_status "$what" "$status" "$wanted"
}

# on_terminal COLUMNS COMMAND...: as run; out is what was written to the terminal (tests/terminal.py), err is empty.
on_terminal()
{
    run env -u NO_COLOR "TERM=${terminal:-xterm}" python3 "$srcdir/tests/terminal.py" "$@"
}

# The program under test with a private state directory ($BLOCKMIG_STATE_DIR).
blockmig()
{
    "$builddir/tools/blockmig" "$@"
}

# must COMMAND...: set-up that has to work, or the test is worth nothing.
must()
{
    run "$@"
    [ "$status" -eq 0 ] && return 0
    not_ok "set-up: $*"
    diag "exit status $status"
    diag "$(head -c 2000 "$tmp/.err")"
    done_testing
}

# start COMMAND...: in the background; sets REPLY to its pid; ended with the test.
start()
{
    "$@" 3>&- </dev/null &
    REPLY=$!
    at_exit stop_process "$REPLY"
}

# is_child PID: it was not collected yet; the number of one that was may be somebody else's by now.
is_child()
{
    local parent
    parent=$(ps -o ppid= -p "$1" | tr -d ' ')
    [ "$parent" = $$ ] || [ "$parent" = "$BASHPID" ]
}

# stop_process PID: asks, then insists, then collects what start started; nothing, if it has ended already.
stop_process()
{
    local i
    is_child "$1" || return 0
    kill -TERM "$1" 2>/dev/null
    for i in $(seq 50); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    ! is_child "$1" || kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    return 0
}

# wait_for SECONDS COMMAND...: until the command succeeds; three times as long, for machines that are busy with other
# things.
wait_for()
{
    local tries=$(($1 * 60))
    shift
    while [ "$tries" -gt 0 ]; do
        "$@" >/dev/null 2>&1 3>&- && return 0
        sleep 0.05
        tries=$((tries - 1))
    done
    return 1
}

# has_checkpoint TARGET: the copy to it could be resumed; for wait_for.
has_checkpoint()
{
    local id
    id=$("$blockmig" job list --json | jq -r --arg target "$1" 'first(.jobs[] | select(.target == $target)).job')
    [ -n "$id" ] && "$blockmig" job show --json "$id" | jq -e 'any(.disks[]; .checkpoint != null)'
}

# ---- cleaning up ------------------------------------------------------------------------------------

# at_exit COMMAND...: run last in, first out.
at_exit()
{
    cleanup_commands+=("$(printf '%q ' "$@")")
}

unmount()
{
    local i
    for i in $(seq 20); do
        mountpoint -q "$1" || return 0
        umount "$1" 2>/dev/null && return 0
        sleep 0.1
    done
    umount -l "$1"
}

clean_up()
{
    local code=$? i
    trap '' INT TERM HUP
    cd /
    for ((i = ${#cleanup_commands[@]} - 1; i >= 0; i--)); do
        eval "${cleanup_commands[i]}"
    done
    # Never descend into something that is still mounted.
    if [ -n "${BLOCKMIG_KEEP:-}" ]; then
        diag "kept $tmp"
    else
        chattr -R -i "$tmp" 2>/dev/null
        rm -rf --one-file-system "$tmp"
    fi
    if [ "$finished" = no ]; then
        not_ok "the script came to its end (exit status $code)"
        printf '1..%d\n' "$tests_run" >&3
        exit 1
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- what a test needs ------------------------------------------------------------------------------

need_tool()
{
    local tool
    for tool; do
        command -v "$tool" >/dev/null || skip_all "$tool is not installed"
    done
}

need_root()
{
    [ "$(id -u)" -eq 0 ] || skip_all "needs root"
}

need_loop()
{
    need_root
    need_tool losetup mount
    losetup -f >/dev/null 2>&1 || skip_all "there are no loop devices"
}

need_fuse()
{
    need_root
    need_tool nbdfuse nbdkit fusermount3
    [ -e /dev/fuse ] || skip_all "there is no /dev/fuse"
}

# need_free SIZE: bytes free where the test works.
need_free()
{
    local wanted free
    wanted=$(numfmt --from=iec "$1")
    free=$(df --output=avail -B1 "$tmp" | tail -1)
    [ "$free" -ge "$wanted" ] || skip_all "needs $1 of free space in $(dirname "$tmp")"
}

# pick SHORT LONG: a count, the larger one under "make check-long".
pick()
{
    if [ "${BLOCKMIG_LONG:-0}" = 1 ]; then
        REPLY=$2
    else
        REPLY=$1
    fi
}

# use_seed: seeds $RANDOM and says how to repeat the run.
use_seed()
{
    seed=${BLOCKMIG_SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
    RANDOM=$seed
    diag "BLOCKMIG_SEED=$seed repeats this run"
}

# every NTH [STEPS]: for a series of steps, of which at least one is met if it is told how many there are: `step` is NTH, and
# `first` a random one of the first NTH steps, after use_seed; 1 and 1 under "make check-long".
every()
{
    pick "$1" 1
    step=$REPLY
    [ "$step" -le "${2:-$step}" ] || step=$2
    below "$step"
    first=$((REPLY + 1))
}

# some COUNT WORD...: the array `chosen` gets COUNT of the words, in their order, after use_seed; all of them under
# "make check-long".
some()
{
    local count left=$(($# - 1)) word
    pick "$1" "$left"
    count=$REPLY chosen=()
    shift
    for word; do
        below "$left"
        [ "$REPLY" -ge "$count" ] || { chosen+=("$word"); count=$((count - 1)); }
        left=$((left - 1))
    done
}

# repeat COUNT WHAT FUNCTION ARGUMENTS...: what goes wrong is told by the first and last lines that it printed.
repeat()
{
    local count=$1 what=$2 wrong=0 n
    shift 2
    for ((n = 0; n < count && wrong < 3; n++)); do
        "$@" >"$tmp/log" 2>&1 && continue
        wrong=$((wrong + 1))
        diag "$(head -n 1 "$tmp/log")" "$(tail -n 3 "$tmp/log")"
    done
    is "$wrong" 0 "$count times $what"
}

# below N: REPLY is a random number in 0 .. N-1.  N up to 2^30.
below()
{
    REPLY=$(((RANDOM << 15 | RANDOM) % $1))
}

# ---- data -------------------------------------------------------------------------------------------

# mixed_file PATH SIZE SEED: noise, text, zeros and holes in pieces of 4 KiB to 1 MiB.
mixed_file()
{
    python_data mixed "$@"
}

# random_file PATH SIZE SEED: noise that nothing can compress; the same bytes for the same seed.
random_file()
{
    python_data noise "$@"
}

python_data()
{
    must python3 "$srcdir/tests/make-data.py" "$1" "$2" "$(numfmt --from=iec "$3")" "$4"
}

# make_pattern_image PATH FORMAT SIZE WRITES [qemu-img create options...]: a disk with random pattern
# writes from $RANDOM, so seed it first.  With -b among the options it is an overlay.
make_pattern_image()
{
    local path=$1 format=$2 size=$3 writes=$4
    shift 4
    must qemu-img create -q -f "$format" "$@" "$path" "$size"
    write_patterns "$path" "$format" "$(numfmt --from=iec "$size")" "$writes"
}

# write_patterns PATH FORMAT BYTES WRITES
write_patterns()
{
    local path=$1 format=$2 bytes=$3 writes=$4
    local commands=() i offset length pattern kind
    for ((i = 0; i < writes; i++)); do
        below $((bytes / 512))
        offset=$((REPLY * 512))
        below 400
        length=$(((REPLY + 1) * 512))
        [ $((offset + length)) -gt "$bytes" ] && length=$((bytes - offset))
        below 255
        pattern=$((REPLY + 1))
        below 10
        kind=$REPLY
        case $kind in
            0) commands+=(-c "write -z $offset $length") ;;
            1) commands+=(-c "discard $offset $length") ;;
            *) commands+=(-c "write -P $pattern $offset $length") ;;
        esac
    done
    [ "$writes" -eq 0 ] || must qemu-io -f "$format" "${commands[@]}" "$path"
}

# reads_what_qemu_writes EXTENSION FORMAT OPTIONS...: a disk that QEMU made with each of these create options is read
# right, in place and as a copy. FORMAT is QEMU's name.
reads_what_qemu_writes()
{
    local image=$tmp/theirs.$1 format=$2 options
    shift 2
    for options; do
        rm -f "$image"
        make_pattern_image "$image" "$format" 20M 30 -o "$options"
        must qemu-img convert -f "$format" -O raw "$image" "$tmp/theirs.raw"
        run_ok "QEMU's $options" blockmig verify -q --strict -F raw "$image" "$tmp/theirs.raw"
        run_ok "is copied" blockmig copy -q --force -O raw "$image" "$tmp/back.raw"
        check "to the byte" cmp "$tmp/theirs.raw" "$tmp/back.raw"
    done
    rm "$image"
}

# content_hash IMAGE [FORMAT]: SHA-256 of what a guest would read, through QEMU's own drivers.
content_hash()
{
    local format=()
    [ $# -gt 1 ] && format=(-f "$2")
    nbdcopy -- [ qemu-nbd -r "${format[@]}" "$1" ] - 3>&- | sha256sum | cut -d' ' -f1
}

# same_content A B WHAT [qemu-img compare options]: QEMU's opinion.
same_content()
{
    local a=$1 b=$2 what=$3
    shift 3
    check "$what" qemu-img compare "$@" "$a" "$b"
}

# image_clean IMAGE WHAT: qemu-img check finds neither errors nor leaks.
image_clean()
{
    check "$2" qemu-img check "$1"
}

# allocated PATH: bytes on the file system.
allocated()
{
    stat -c '%b * %B' "$1" | { read -r a; echo $((a)); }
}

# ---- places and machines ----------------------------------------------------------------------------

# small_filesystem TYPE SIZE [mkfs options]: mounts a fresh one; sets REPLY to its directory.
small_filesystem()
{
    local type=$1 size=$2 base
    shift 2
    base=$(mktemp -d "$tmp/fs.XXXXXX")
    mkdir "$base/mnt"
    must truncate -s "$size" "$base/image"
    must mkfs -t "$type" "$@" "$base/image"
    must mount -o loop "$base/image" "$base/mnt"
    at_exit unmount "$base/mnt"
    REPLY=$base/mnt
}

# loop_device FILE [losetup options]: sets REPLY to the device.
loop_device()
{
    local file=$1
    shift
    must losetup -f --show "$@" "$file"
    REPLY=$out
    at_exit losetup -d "$REPLY"
}

# fuse_file NBDKIT-ARGUMENTS...: a file whose bytes come from nbdkit; sets REPLY.
fuse_file()
{
    local base
    base=$(mktemp -d "$tmp/fuse.XXXXXX")
    : >"$base/disk"
    start nbdfuse "$base/disk" --command nbdkit -s --exit-with-parent "$@"
    at_exit unmount "$base/disk"
    wait_for 10 mountpoint -q "$base/disk" || must false "nbdfuse did not start"
    REPLY=$base/disk
}

# running_machine IMAGE FORMAT: a stopped QEMU that holds the image as a running machine would.
running_machine()
{
    local base
    base=$(mktemp -d "$tmp/vm.XXXXXX")
    start qemu-system-x86_64 -accel tcg -machine pc -m 32 -nodefaults -display none -S \
        -qmp "unix:$base/qmp,server=on,wait=on" \
        -drive "file=$1,format=$2,if=virtio"
    local pid=$REPLY
    wait_for 30 test -S "$base/qmp" || must false "qemu did not start"
    # The socket exists before the disks are opened. A command is answered only afterwards; trying the lock instead
    # could take it from under the machine.
    must timeout 60 python3 -c '
import socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.connect(sys.argv[1])
answers = monitor.makefile("rw")
answers.readline()
for command in ("qmp_capabilities", "query-block"):
    answers.write("{\"execute\": \"%s\"}\n" % command)
    answers.flush()
    while True:
        line = answers.readline()
        if not line:
            sys.exit("the machine has gone")
        if "\"return\"" in line:
            break' "$base/qmp"
    REPLY=$pid
}

# data_ranges FILE: its allocated ranges as "offset length" lines.
data_ranges()
{
    qemu-img map --output=json -f raw "$1" | jq -r '.[] | select(.data) | "\(.start) \(.length)"'
}
