#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What a target may do instead of a command: what passes by itself is waited for, the rest is said as it is, and
# no answer is believed that cannot be true.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_tool qemu-img jq python3
export BLOCKMIG_ISCSI_TIMEOUT=3
random_file "$tmp/source.raw" 5M 1
random_file "$tmp/old.raw" 8M 2

# used_unit: sets REPLY to a file full of old data.
used_unit()
{
    cp "$tmp/old.raw" "$tmp/unit"
    REPLY=$tmp/unit
}

# good_copy WHAT [OPTION or FAULT]...: the copy works and is right; sets said to what it told.
good_copy()
{
    local what=$1
    shift
    used_unit
    start_stub "$REPLY" "log=$tmp/log" "$@"
    run_ok "$what" blockmig copy -f raw "${copy_source:-$tmp/source.raw}" "$REPLY"
    said=$err
    check "  and the unit holds the source, and no old data" same_bytes
    stop_process "$stub"
}

same_bytes()
{
    cp "${copy_source:-$tmp/source.raw}" "$tmp/wanted" && truncate -s 8M "$tmp/wanted" && cmp "$tmp/wanted" "$tmp/unit"
}

# bad_copy STATUS TEXT [OPTION or FAULT]...
bad_copy()
{
    local code=$1 text=$2
    shift 2
    used_unit
    start_stub "$REPLY" "$@"
    fails_with "$code" "$* ends with status $code" blockmig copy -f raw "$tmp/source.raw" "$REPLY"
    like "$err" "$text" "  and says why"
}

good_copy "busy targets and full queues are asked again" '8a*3=busy' '8a*2+2=full' '88*2=busy' '91=2/04/0a'
good_copy "unit attentions are taken note of" '8a=6/29/02' '88=6/3f/01'
unlike "$said" 'the unit|the target' "  and not told if they say nothing"
good_copy "a thin pool that fills up" '8a=6/38/07'
like "$said" 'its thin pool is filled up to a threshold' "  is told"
good_copy "a unit whose size changed" '8a=6/2a/09'
like "$said" 'another capacity than before' "  is told, too"
good_copy "an aborted command is repeated" '8a*2=b/4b/04'
good_copy "a connection that breaks is made again" '8a+2=drop' '88+3=drop' '91=drop'
good_copy "requests are as small as the unit wants them" max-transfer=128
check "  none is larger" awk '$1 ~ /^8[8a]$/ && $3 > 128 { bad = 1 } END { exit bad }' "$tmp/log"

# Zeros, by every kind of unit.
truncate -s 5M "$tmp/hole.raw"
dd if="$tmp/source.raw" of="$tmp/hole.raw" bs=1M count=2 seek=3 conv=notrunc status=none
copy_source=$tmp/hole.raw
good_copy "zeros are written where there is no WRITE SAME" no-same
good_copy "zeros by WRITE SAME"
check "  which was used" grep -q '^93 ' "$tmp/log"
good_copy "WRITE SAME unmaps" thin=unmap,same,zero,status
unlike "$(cat "$tmp/log")" '^42 ' "  and UNMAP is not needed"
good_copy "UNMAP, where the unit says what it did" thin=unmap,zero,status
check "  which was used" grep -q '^42 ' "$tmp/log"
good_copy "a unit that unmaps only half of what it should" thin=unmap,zero,status,lazy no-same
good_copy "UNMAP is not believed where the unit does not say what it did" thin=unmap,zero,lazy
good_copy "nor where unmapped blocks may read as anything" thin=unmap,status,lazy
unset copy_source

# Errors.
bad_copy 1 'medium error \(03h/0Ch/00h\) at block 4100' '8a@4100*0=3/0c/00'
bad_copy 5 'pool .* is full.*07h/27h/07h' '8a@9000*0=7/27/07'
stop_process "$stub"
start_stub "$tmp/unit"
run_ok "a pool that was full is no end: the same command goes on" blockmig copy -f raw "$tmp/source.raw" "$REPLY" --restart
bad_copy 1 'reserved by iqn.2026-11.example:other,i,0x400001370000 \(key 0x0000000000000abc, .*reservation conflict' '8a@9000*0=conflict'
bad_copy 1 'moved .* bytes less' '88*0+3=short'
bad_copy 8 'broke .* times' '8a@9000*0=drop'
bad_copy 1 'busy' '8a@9000*0=busy'

# The unit was switched off between an answer and the flush: what it answered may be gone.
used_unit
start_stub "$REPLY" login=29/00 '8a+4=drop'
uri=$REPLY
fails_with 8 "a unit that was switched off meanwhile ends the copy" blockmig copy -f raw "$tmp/source.raw" "$uri"
like "$err" 'may be lost' "  and says why"
run_ok "the same command copies it" blockmig copy -f raw "$tmp/source.raw" "$uri"
check "  right" same_bytes

# A bad spot of a source.
cp "$tmp/old.raw" "$tmp/unit"
start_stub "$tmp/unit" '88@5000*0=3/11/00'
uri=$REPLY
fails_with 1 "a bad spot of a source ends the copy" blockmig copy -f raw "$uri" "$tmp/salvaged.raw"
like "$err" 'medium error \(03h/11h/00h\) at block 5000' "  and its block is named"
fails_with 6 "--salvage goes on" blockmig copy --restart --salvage --json -f raw "$uri" "$tmp/salvaged.raw"
is "$(jq -c '.disks[0].bad_ranges | length' <<<"$out")" 1 "  and lists it"

# Answers that lie.
for opcode in 12 9e 5e 88; do
    for what in huge garbage; do
        used_unit
        start_stub "$REPLY" "$opcode*0=$what" thin=unmap,same,zero,status
        run timeout 60 "$blockmig" copy -f raw "$tmp/source.raw" "$REPLY"
        ended=$status
        check "$opcode answered with $what does not crash it (status $ended)" test "$ended" -lt 10
        check "  and nothing passes for a copy" test "$ended" -ne 0
    done
done
done_testing
