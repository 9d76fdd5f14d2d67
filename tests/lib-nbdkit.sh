# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Sourced after lib.sh by the tests of the nbdkit plugin.

need_tool nbdkit nbdcopy nbdinfo qemu-img qemu-io jq
plugin=$builddir/tools/nbdkit-blockmig-plugin.so
[ -e "$plugin" ] || skip_all "the nbdkit plugin was not built"
if grep -q __asan_init "$plugin"; then
    finished=yes
    printf '1..0 # SKIP nbdkit cannot load a plugin with sanitizers\n' >&3
    exit 0
fi
uri="nbd+unix:///?socket=$tmp/socket"

# serve ARGUMENTS...: of nbdkit, with parameters of the plugin after "--"; in the foreground of a process of its own.
# Sets REPLY to its pid.
serve()
{
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    rm -f "$tmp/socket" "$tmp/pid"
    start nbdkit -f "${options[@]}" -U "$tmp/socket" -P "$tmp/pid" "$plugin" "$@"
    wait_for 20 test -s "$tmp/pid" || must false "nbdkit did not start: $*"
}

# once COMMAND ARGUMENTS...: a shell command with "$uri", while nbdkit serves; sets status, out and err. ARGUMENTS as of
# serve.
once()
{
    local command=$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    run timeout 120 nbdkit "${options[@]}" -U - "$plugin" "$@" --run "$command"
}

# random_writes BYTES COUNT [plain]: sets `commands` for qemu-io, on any offsets; plain: no zeros.
random_writes()
{
    local bytes=$1 i offset length pattern align
    commands=()
    for ((i = 0; i < $2; i++)); do
        align=$((RANDOM % 3 ? 512 : 1))
        below "$bytes"
        offset=$((REPLY / align * align))
        below $((1 << RANDOM % 19))
        length=$(((REPLY / align + 1) * align))
        [ $((offset + length)) -le "$bytes" ] || length=$((bytes - offset))
        pattern=$((RANDOM % 255 + 1))
        case ${3:-$((RANDOM % 8))} in
            0) commands+=(-c "write -z $offset $length") ;;
            1) commands+=(-c "write -z -u $offset $length") ;;
            2) commands+=(-c "write -f -P $pattern $offset $length") ;;
            *) commands+=(-c "write -P $pattern $offset $length") ;;
        esac
    done
}

# not_running PID: for wait_for.
not_running()
{
    ! kill -0 "$1"
}
