#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --chain=keep and --chain=shallow into formats that know their parents by identity: every layer is its own child,
# the copy can be moved as a whole, goes on after a kill, and no stranger is taken for a parent.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq python3 strace
use_seed

mkdir "$tmp/from"
make_pattern_image "$tmp/from/base.raw" raw 24M 40
make_pattern_image "$tmp/from/middle.qcow2" qcow2 24M 20 -b base.raw -F raw
make_pattern_image "$tmp/from/top.qcow2" qcow2 24M 20 -b middle.qcow2 -F qcow2

# parents FORMAT FILE...: sets `parents` to what a command needs to find them, where images do not name them.
parents()
{
    local file
    parents=()
    [ "$1" = vdi ] || return 0
    shift
    for file; do
        parents+=(--parent "$file")
    done
}

# same_chain FORMAT DIRECTORY WHAT
same_chain()
{
    parents "$1" "$2/middle.qcow2" "$2/base.raw"
    must qemu-img convert -f qcow2 -O raw "$tmp/from/top.qcow2" "$tmp/flat.raw"
    run_ok "$3" blockmig verify -q --strict -F raw "${parents[@]}" "$2/top.qcow2" "$tmp/flat.raw"
}

# kept FORMAT [OPTIONS]
kept()
{
    local format=$1 to=$tmp/$1 options=(-O "$1" ${2:+-o "$2"}) receipt
    mkdir "$to"
    run_ok "$*: the chain is copied" blockmig copy --chain=keep "${options[@]}" "$tmp/from/top.qcow2" "$to/"
    same_chain "$format" "$to" "$format: it is the same disk"
    run_ok "$format: and is not copied twice" blockmig copy --chain=keep --json "${options[@]}" "$tmp/from/top.qcow2" "$to/"
    for receipt in $(jq -r '.disks[].receipt' <<<"$out"); do
        run_ok "$format: a layer is what its receipt says" \
            blockmig verify -q --receipt "$receipt" "$(jq -r .target "$receipt")"
    done
    parents "$format" "$to/middle.qcow2" "$to/base.raw"
    run blockmig info --json "${parents[@]}" "$to/top.qcow2"
    is "$(jq -r '[.chain[].format] | join(" ")' <<<"$out")" "$format $format $format" "$format: in three layers"
    mv "$to" "$to.moved"
    same_chain "$format" "$to.moved" "$format: it can be moved as a whole"
    if [ "$format" = vhd ]; then
        check "$format: the book agrees" python3 "$srcdir/tests/read-vhd.py" "$tmp/book.raw" "$to.moved"/{top.qcow2,middle.qcow2,base.raw}
        check "$format: to the byte" cmp "$tmp/book.raw" "$tmp/flat.raw"
    fi

    # Copied once more it is a chain of others.
    mkdir "$to"
    parents "$format" "$to.moved/middle.qcow2" "$to.moved/base.raw"
    run_ok "$format: a chain of it is copied" blockmig copy -q --chain=keep "${parents[@]}" "$to.moved/top.qcow2" "$to/"
    same_chain "$format" "$to" "$format: and is the same disk"
    cp "$to/middle.qcow2" "$to.moved/middle.qcow2"
    parents "$format" "$to.moved/middle.qcow2" "$to.moved/base.raw"
    fails_with 3 "$format: a stranger is not taken for a parent" blockmig info --json "${parents[@]}" "$to.moved/top.qcow2"
    mkdir "$tmp/shallow"
    parents "$format" "$to/middle.qcow2" "$to/base.raw"
    run_ok "$format: the top alone is copied" blockmig copy -q --chain=shallow "${parents[@]}" "$to/top.qcow2" "$tmp/shallow/"
    run_ok "$format: it stands on what stayed where it is" \
        blockmig verify -q --allow-root "$to" "${parents[@]}" "$tmp/shallow/top.qcow2" "$tmp/flat.raw"
    [ "$format" = vmdk ] ||
        fails_with 3 "$format: before anything is made, what nobody else could read through is refused" \
            blockmig plan copy --chain=shallow -O qcow2 "${parents[@]}" "$to/top.qcow2" "$tmp/shallow/other"
    rm -rf "$to" "$to.moved" "$tmp/shallow"
}

# killed FORMAT: the copy of each layer is killed once, and goes on.
killed()
{
    local format=$1 to=$tmp/killed layer
    rm -rf "$to"
    mkdir "$to"
    for layer in base.raw middle.qcow2 top.qcow2; do
        start "$blockmig" copy -q --chain=keep --bandwidth=4MiB/s -O "$format" "$tmp/from/top.qcow2" "$to/"
        local pid=$REPLY
        wait_for 60 test -s "$to/$layer.blockmig-part"
        sleep 0.3
        kill -KILL "$pid"
        wait "$pid"
    done
    run_ok "$format: after three kills the copy goes on" blockmig copy -q --chain=keep -O "$format" "$tmp/from/top.qcow2" "$to/"
    same_chain "$format" "$to" "$format: and is the same disk"
}

# interrupted FORMAT: killed behind a checkpoint in a layer that has holes behind it.
interrupted()
{
    local format=$1 to=$tmp/resumed.$1 pid
    local -x BLOCKMIG_STATE_DIR=$to.state
    mkdir "$to"
    start "$blockmig" copy -q --chain=keep --bandwidth=4MiB/s -O "$format" "$tmp/holes/top.qcow2" "$to/"
    pid=$REPLY
    wait_for 60 overlay_has_checkpoint
    kill -KILL "$pid"
    wait "$pid"
}

# halfway FORMAT OPTIONS: stopped in the middle of a layer of which only few bytes are written, with blocks that are filled
# up from below; and killed at syncs when it goes on.
halfway()
{
    local to=$tmp/halfway options=(--chain=keep -O "$1" -o "$2") source=$tmp/few/top.qcow2 tries when pid wrong=
    local -x BLOCKMIG_STATE_DIR=$to/state
    for ((tries = 0, status = 0; tries < 10 && status == 0; tries++)); do # until it is not too late
        rm -rf "$to"
        mkdir -p "$to/out"
        start "$blockmig" copy -q --bandwidth=8MiB/s "${options[@]}" "$source" "$to/out/"
        pid=$REPLY
        wait_for 60 test -s "$to/out/top.qcow2.blockmig-part"
        sleep "0.$((9 - tries))"
        kill -TERM "$pid"
        wait "$pid"
        status=$?
    done
    is "$status" 4 "$1 $2: stopped in the middle of a layer"
    parents "$1" "$to/out/base.raw"
    cp -a "$to/out" "$to/out.kept"
    cp -a "$to/state" "$to/state.kept"
    every 20
    for ((when = first; when < 40; when += step)); do
        rm -rf "$to/out" "$to/state"
        cp -a "$to/out.kept" "$to/out"
        cp -a "$to/state.kept" "$to/state"
        timeout 300 strace -f -qq -o /dev/null -e trace=fdatasync -e "inject=fdatasync:signal=SIGKILL:when=$when" \
            "$blockmig" copy -q "${options[@]}" "$source" "$to/out/" >/dev/null 2>&1 3>&- && break
        run blockmig copy "${options[@]}" "$source" "$to/out/"
        [ "$status" -eq 0 ] && ! grep "from the beginning" <<<"$err" &&
            blockmig verify -q --strict -F raw "${parents[@]}" "$to/out/top.qcow2" "$tmp/few/flat.raw" ||
            wrong+="$when: $status $err"
    done
    is "$wrong" "" "$1 $2: killed at a sync it goes on from there"
}

# resumed FORMAT
resumed()
{
    local format=$1 to=$tmp/resumed.$1
    local -x BLOCKMIG_STATE_DIR=$to.state
    check "$format: killed behind a checkpoint" overlay_has_checkpoint
    run_ok "$format: the copy goes on" blockmig copy -q --chain=keep -O "$format" "$tmp/holes/top.qcow2" "$to/"
    parents "$format" "$to/base.raw"
    run_ok "$format: and shows the parent through its holes" \
        blockmig verify -q --strict -F raw "${parents[@]}" "$to/top.qcow2" "$tmp/holes/flat.raw"
}

overlay_has_checkpoint()
{
    "$blockmig" job show --json "$("$blockmig" job list --json | jq -r '.jobs[0].job')" |
        jq -e '.result != "done" and .disks[1].checkpoint > 0'
}

mkdir "$tmp/holes"
must qemu-img create -q -f raw "$tmp/holes/base.raw" 64M
must qemu-io -f raw -c "write -P 9 60M 1M" "$tmp/holes/base.raw"
must qemu-img create -q -f qcow2 -b base.raw -F raw "$tmp/holes/top.qcow2" 64M
must qemu-io -f qcow2 -c "write -P 5 0 48M" -c "write -z 50M 1M" -c "write -P 6 62M 1M" "$tmp/holes/top.qcow2"
must qemu-img convert -f qcow2 -O raw "$tmp/holes/top.qcow2" "$tmp/holes/flat.raw"
mkdir "$tmp/few"
random_file "$tmp/few/base.raw" 32M 5
must qemu-img create -q -f qcow2 -b base.raw -F raw "$tmp/few/top.qcow2" 32M
few=()
for ((i = 0; i < 32; i += 2)); do
    few+=(-c "write -P 7 $((i << 20 | 300 << 10)) 4k")
done
must qemu-io -f qcow2 "${few[@]}" -c "write -z 21M 4M" "$tmp/few/top.qcow2"
must qemu-img convert -f qcow2 -O raw "$tmp/few/top.qcow2" "$tmp/few/flat.raw"

for format in qcow2 vhd vhdx vdi vmdk; do
    interrupted "$format" &
done
wait
resumed qcow2
for format in vhd vhdx vdi vmdk; do
    resumed "$format"
    kept "$format"
    killed "$format"
    make_pattern_image "$tmp/from/longer.qcow2" qcow2 25M 5 -b base.raw -F raw
    if [ "$format" = vmdk ]; then
        mkdir "$tmp/longer"
        run_ok "$format: a child may be longer than its parent" \
            blockmig copy -q --chain=keep -O "$format" "$tmp/from/longer.qcow2" "$tmp/longer/"
        same_content "$tmp/from/longer.qcow2" "$tmp/longer/longer.qcow2" "$format: QEMU sees the same" -f qcow2 -F vmdk
    else
        fails_with 3 "$format: a child that is longer than its parent is refused" \
            blockmig copy -q --chain=keep -O "$format" "$tmp/from/longer.qcow2" "$tmp/shorter"
        like "$err" "as large as its parent.*26214400 bytes and its parent 25165824" "$format: with both sizes"
    fi
    fails_with 3 "$format: a parent of another format is refused" \
        blockmig copy -q --chain=shallow -O "$format" "$tmp/from/top.qcow2" "$tmp/shorter"
    is "$(echo "$tmp"/shorter*)" "$tmp/shorter*" "$format: nothing was written"
    rm "$tmp/from/longer.qcow2"
done
kept vdi block_size=8M
kept vmdk subformat=twoGbMaxExtentSparse
halfway vdi block_size=8M
halfway qcow2 cluster_size=2M
# ---- what the target cannot say of a parent is known before anything is made ------------------------

mkdir "$tmp/names" "$tmp/never"
must qemu-img create -q -f qcow2 "$tmp/names/back\\slash" 1M
must qemu-img create -q -f qcow2 -b 'back\slash' -F qcow2 "$tmp/names/child"
for format in vhd vhdx; do
    for command in "plan copy" copy; do
        # shellcheck disable=SC2086
        fails_with 3 "$format: $command: a name with a backslash" \
            blockmig $command --chain=keep -O "$format" "$tmp/names/child" "$tmp/never/"
        like "$err" 'back.slash' "is told"
    done
done
long=$tmp/names/$(printf '%0200d/' {1..5})
mkdir -p "$long"
(cd "$long" && must qemu-img create -q -f qcow2 base 1M && must qemu-img create -q -f qcow2 -b base -F qcow2 child)
fails_with 3 "qcow2: a name that is too long" blockmig copy --chain=shallow "$long/child" "$tmp/never/"
must "$blockmig" create -q -O vhdx "$tmp/names/base.vhdx" 8M
must "$blockmig" create -q -O vhdx --parent "$tmp/names/base.vhdx" "$tmp/names/child.vhdx"
fails_with 3 "vhdx: sectors that are not the parent's" blockmig copy --chain=shallow -O vhdx -o logical_sector_size=4096 \
    "$tmp/names/child.vhdx" "$tmp/never/"
is "$(files "$tmp/never")" "" "and nothing was begun"
done_testing
