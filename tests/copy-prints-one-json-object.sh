#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# copy --json: exactly one object with the keys that are promised, whatever the result; plan changes nothing.
. "${srcdir:-.}/tests/lib.sh"
need_tool jq qemu-img

mixed_file "$tmp/disk" 20M 9
must qemu-img convert -O qcow2 "$tmp/disk" "$tmp/disk.qcow2"
mkdir "$tmp/store" "$tmp/state-of-plan"

keys='command dirty_rate disks duration_s failback forecast frozen_ms job max_pause_ms method on_busy passes pause_forecast_ms pause_kept pause_ms phase plan receipt result resumed sandbox schema ship_rate snapshot_frozen_ms snapshot_pause_ms source space_available space_needed started write_limit'
disk_keys='bad_ranges bytes_cloned bytes_in_pause bytes_read bytes_seeded bytes_verified bytes_wire bytes_written bytes_zero digest digest_of_layer disk engine receipt source source_allocated source_format target target_allocated target_format verified virtual_size'

# object RESULT WHAT [EXTRA KEYS]
object()
{
    is "$(jq -s -r 'length' <<<"$out")" 1 "$2: one object"
    is "$(jq -r .result <<<"$out")" "$1" "$2: result $1"
    is "$(jq -r 'keys | .[]' <<<"$out" | LC_ALL=C sort | xargs)" "$(printf '%s\n' $keys ${3:-} | LC_ALL=C sort | xargs)" \
        "$2: the keys"
}

export BLOCKMIG_STATE_DIR=$tmp/state-of-plan
run_ok "plan" "$builddir/tools/blockmig" plan copy --json -f qcow2 -O raw "$tmp/disk.qcow2" "$tmp/store"
object planned plan
is "$(jq -r '.plan | length > 0' <<<"$out")" true "it says what would be done"
run_ok "copy -n" "$builddir/tools/blockmig" copy -n --json -f qcow2 -O raw "$tmp/disk.qcow2" "$tmp/store"
object planned "copy -n"
is "$(ls -A "$tmp/store" "$tmp/state-of-plan" | grep -v :)" "" "nothing was made"
export BLOCKMIG_STATE_DIR=$tmp/state

run_ok "copy" blockmig copy --json -O raw "$tmp/disk.qcow2" "$tmp/store"
object "done" copy
is "$(jq -r '.disks[0] | keys | .[]' <<<"$out" | LC_ALL=C sort | xargs)" "$disk_keys" "the keys of a disk"
is "$(jq -r '.disks[0] | .source, .target, .source_format, .target_format, .virtual_size' <<<"$out" | xargs)" \
    "$tmp/disk.qcow2 $tmp/store/disk.qcow2 qcow2 raw $((20 << 20))" "names, format and size"
is "$(jq -r '.disks[0].target_allocated' <<<"$out")" "$(allocated "$tmp/store/disk.qcow2")" "what the target takes"
is "$(jq -r '.disks[0].digest.algorithm, .disks[0].digest.chunk_size' <<<"$out" | xargs)" "xxh3-128 1048576" "the digest"
[ -s "$(jq -r .receipt <<<"$out")" ] && ok "the receipt is there" || not_ok "the receipt is there"
like "$(jq -r .started <<<"$out")" '^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z$' "the time"
root=$(jq -r '.disks[0].digest.root' <<<"$out")

run_ok "the same content from another format" blockmig copy --json -f raw "$tmp/disk" "$tmp/other"
is "$(jq -r '.disks[0].digest.root' <<<"$out")" "$root" "has the same root"

echo x >"$tmp/store/taken"
fails_with 3 "a target that exists" blockmig copy --json -O raw "$tmp/disk.qcow2" "$tmp/store/taken"
object refused "a refusal" error
fails_with 3 "a source that does not exist" blockmig copy --json -O raw "$tmp/none.qcow2" "$tmp/store"
object refused "no source" error

run_ok "as text" blockmig copy -f raw "$tmp/disk" "$tmp/text"
is "$(awk 'length > 200' <<<"$out")" "" "short lines"
like "$out" '^copied +.*disk \(raw\)' "what"
like "$out" '^allocated +.* in the source, .* in the target' "thinness before and after"
like "$out" '^verified ' "how it was verified"
like "$out" '^receipt +/' "the receipt"
run_ok "quietly" blockmig copy -q -f raw "$tmp/disk" "$tmp/quiet"
is "$out$err" "" "-q prints nothing"
run_ok "-o help" blockmig copy -O raw -o help
like "$out" '^  preallocation ' "lists the options of the format"

# Whatever goes wrong, however early: one object.
while read -r code words; do
    # shellcheck disable=SC2086
    run "$blockmig" ${words//TMP/$tmp}
    is "$status $(jq -s -c '[length, (.[0] | has("schema") and has("command") and has("result") and has("error"))]' <<<"$out")" \
        "$code [1,true]" "$words"
done <<'LIST'
2 copy --json TMP/nowhere
2 copy --json --bandwidth=5 a b
2 copy --json --nonsense a b
2 verify --json a
3 info --json TMP/nowhere
3 map --json TMP/nowhere
2 job show --json none
2 job nonsense --json
2 nonsense --json
LIST

# A closed stream is not an image.
"$blockmig" copy "$tmp/disk.qcow2" "$tmp/closed.qcow2" <&- >&- 2>&- 3>&-
is "$?" 1 "a report that cannot be written is a failure"
check "but harms nothing" qemu-img check "$tmp/closed.qcow2"
done_testing
