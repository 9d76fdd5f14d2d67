#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Random chains, flattened by us and by qemu-img convert: the same disk comes out.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io
use_seed

one_of()
{
    below $#
    shift "$REPLY"
    REPLY=$1
}

# qcow2_options: a random way to create a qcow2 file.
qcow2_options()
{
    one_of 512 4k 64k 64k 2M
    local options=cluster_size=$REPLY compat
    one_of 0.10 1.1 1.1
    compat=$REPLY
    options+=,compat=$compat
    if [ "$compat" = 1.1 ]; then
        one_of on off
        case $REPLY,$options in
            on,*size=64k* | on,*size=2M*) options+=,extended_l2=on ;;
        esac
        one_of 1 16 64
        options+=,refcount_bits=$REPLY
        one_of zlib zstd
        options+=,compression_type=$REPLY
    fi
    REPLY=$options
}

# layer PATH SIZE [BASE BASE-FORMAT]
layer()
{
    local path=$1 size=$2 backing=() writes cluster
    [ $# -gt 2 ] && backing=(-b "$3" -F "$4")
    qcow2_options
    cluster=$(numfmt --from=iec "$(grep -oiE 'cluster_size=[0-9]+[kM]?' <<<"$REPLY" | cut -d= -f2 | tr k K)")
    must qemu-img create -q -f qcow2 -o "$REPLY" "${backing[@]}" "$path" "$size"
    below 12
    writes=$REPLY
    write_patterns "$path" qcow2 "$size" "$writes"
    below 3
    if [ "$REPLY" -eq 0 ] && [ "$cluster" -le "$size" ]; then
        below $((size / cluster))
        # QEMU refuses this where the cluster has its place already; no matter.
        run qemu-io -f qcow2 -c "write -c -P 9 $((REPLY * cluster)) $cluster" "$path"
    fi
}

# A chain of 1 to 4 layers in $tmp/chain; sets REPLY to its top.
make_chain()
{
    local depth size i base=
    rm -rf "$tmp/chain"
    mkdir "$tmp/chain"
    below 4
    depth=$((REPLY + 1))
    for ((i = 0; i < depth; i++)); do
        # Layers may be shorter or longer than what they lie on; sizes end off every cluster boundary.
        below 8000
        size=$(((REPLY + 200) * 512))
        below 3
        if [ "$i" -eq 0 ] && [ "$REPLY" -eq 0 ]; then
            make_pattern_image "$tmp/chain/0" raw "$size" 6
            base=raw
        elif [ "$i" -eq 0 ]; then
            layer "$tmp/chain/0" "$size"
            base=qcow2
        else
            layer "$tmp/chain/$i" "$size" "$((i - 1))" "$base"
            base=qcow2
        fi
    done
    top_format=$base
    REPLY=$tmp/chain/$((depth - 1))
}

flatten()
{
    local format
    make_chain
    top=$REPLY
    one_of raw qcow2
    format=$REPLY
    rm -f "$tmp/ours" "$tmp/theirs"
    qemu-img convert -f "$top_format" -O "$format" "$top" "$tmp/theirs" || return
    blockmig copy -q --chain=flatten -f "$top_format" -O "$format" "$top" "$tmp/ours" || return
    qemu-img compare -f "$format" -F "$format" "$tmp/theirs" "$tmp/ours" || return
    [ "$format" = raw ] || qemu-img check -f qcow2 "$tmp/ours" || return
    blockmig verify -q --strict -f "$top_format" -F "$format" "$top" "$tmp/ours"
}

pick 40 5000
chains=$REPLY
wrong=0
for ((n = 0; n < chains && wrong < 3; n++)); do
    flatten >"$tmp/log" 2>&1 && continue
    wrong=$((wrong + 1))
    diag "chain $n:" "$(qemu-img info --backing-chain "$top" 2>&1 | grep -E 'image:|virtual|cluster_size|compat|extended' | head -30)"
    diag "$(tail -n 5 "$tmp/log")"
    cp -r "$tmp/chain" "${BLOCKMIG_KEEP:-$tmp}/chain-$n" 2>/dev/null
done
is "$wrong" 0 "$chains random chains are flattened as qemu-img does"

# What a copy has from its source gives way to what is asked for.
must qemu-img create -q -f qcow2 -o extended_l2=on,compression_type=zstd "$tmp/new.qcow2" 1M
must qemu-img create -q -f qcow2 -o compat=0.10 "$tmp/old.qcow2" 1M
for case in new:compat=0.10 new:cluster_size=4k old:extended_l2=on; do
    run_ok "$case, which the source's other options contradict" \
        blockmig copy -q --force -o "${case#*:}" "$tmp/${case%%:*}.qcow2" "$tmp/copy.qcow2"
done
fails_with 2 "what is asked for may not contradict itself" \
    blockmig copy -q --force -o compat=0.10,extended_l2=on "$tmp/old.qcow2" "$tmp/copy.qcow2"
done_testing
