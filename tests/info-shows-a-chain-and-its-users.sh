#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# info: every layer, who has it open, also while a machine uses it, and what can be seen of a broken chain.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq

must qemu-img create -q -f qcow2 "$tmp/base.qcow2" 64M
must qemu-io -f qcow2 -c "write -P 7 1M 3M" "$tmp/base.qcow2"
must qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$tmp/top.qcow2" 80M

run_ok "a chain" blockmig info --json "$tmp/top.qcow2"
is "$(jq -r '[.schema, .format, .probed, .virtual_size, (.chain | length)] | join(" ")' <<<"$out")" \
    "1 qcow2 true $((80 << 20)) 2" "format, size and depth"
is "$(jq -r '.chain[1].path, .chain[1].virtual_size' <<<"$out" | xargs)" "$tmp/base.qcow2 $((64 << 20))" "the base"
is "$(jq -r '.chain[0].backing_name, .chain[0].backing_format' <<<"$out" | xargs)" "base.qcow2 qcow2" \
    "the backing file as the image names it"
for layer in 0 1; do
    path=$(jq -r ".chain[$layer].path" <<<"$out")
    is "$(jq -r ".chain[$layer].allocated" <<<"$out")" "$(allocated "$path")" "allocated bytes of layer $layer"
    is "$(jq -r ".chain[$layer].features.cluster_size" <<<"$out")" 65536 "a feature of layer $layer"
done
is "$(jq -c '.chain[0].open_by' <<<"$out")" "[]" "nobody has it open"

run_ok "as text" blockmig info -f qcow2 "$tmp/top.qcow2"
like "$out" '^virtual size +80 MiB \(83886080 bytes\)$' "the size, in both ways"
unlike "$out" 'probed' "a format that was given is not probed"

exec 9<"$tmp/base.qcow2"
run blockmig info --json "$tmp/top.qcow2"
like "$(jq -r '.chain[1].open_by[]' <<<"$out")" "^$$ " "who has the base open"
exec 9<&-

running_machine "$tmp/top.qcow2" qcow2
machine=$REPLY
run_ok "the disk of a running machine" blockmig info --json "$tmp/top.qcow2"
like "$(jq -r '.chain[0].open_by[]' <<<"$out")" "^$machine \\(qemu-system" "and the machine"
fails_with 3 "map takes the lock" blockmig map "$tmp/top.qcow2"
like "$err" 'lock' "and says so"
run_ok "unless -U is given" blockmig map -U "$tmp/top.qcow2"
stop_process "$machine"

mv "$tmp/base.qcow2" "$tmp/elsewhere.qcow2"
fails_with 3 "a chain whose base is missing" blockmig info --json "$tmp/top.qcow2"
is "$(jq -r '.virtual_size, (.chain | length)' <<<"$out" | xargs)" "$((80 << 20)) 1" "still shows the top"
like "$(jq -r .chain_error <<<"$out")" 'base\.qcow2.*No such file' "and why the rest is missing"
like "$err" 'base\.qcow2.*No such file' "also on standard error"

mkdir "$tmp/store" "$tmp/other"
must qemu-img create -q -f qcow2 "$tmp/other/base.qcow2" 1M
must qemu-img create -q -f qcow2 -b "$tmp/other/base.qcow2" -F qcow2 "$tmp/store/top.qcow2"
fails_with 3 "a base outside the datastore" blockmig info "$tmp/store/top.qcow2"
run_ok "is followed below --allow-root" blockmig info --allow-root "$tmp/other" "$tmp/store/top.qcow2"

# A name in an image must not write to the terminal of whoever looks at it.
must qemu-img create -q -f qcow2 -u -b $'evil\e[2Jname' -F qcow2 "$tmp/evil.qcow2" 1M
run blockmig info "$tmp/evil.qcow2"
unlike "$out$err" $'\e' "control characters in a name are not printed"
like "$out" 'evil\\x1b\[2Jname' "but shown"
done_testing
