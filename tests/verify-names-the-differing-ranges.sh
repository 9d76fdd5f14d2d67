#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# verify: 0 same, 1 different with the exact ranges, above 1 trouble; and the same against a receipt.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq

mixed_file "$tmp/a" 40M 5
must cp "$tmp/a" "$tmp/b"
must qemu-img convert -O qcow2 -c "$tmp/a" "$tmp/a.qcow2"

# poke FILE OFFSET: changes one byte there, whatever it was.
poke()
{
    python3 - "$@" <<'EOF'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte ^ 0x40]))
EOF
}

ranges()
{
    jq -r '.differences[] | "\(.offset)+\(.length)"' <<<"$out" | xargs
}

run_ok "the same bytes" blockmig verify "$tmp/a" "$tmp/b"
run_ok "in different formats" blockmig verify -F qcow2 "$tmp/a" "$tmp/a.qcow2"
run_ok "an image with itself" blockmig verify "$tmp/a" "$tmp/a"

poke "$tmp/b" 0
poke "$tmp/b" 4097
poke "$tmp/b" 4608
poke "$tmp/b" $(((40 << 20) - 1))
fails_with 1 "different bytes" blockmig verify --json "$tmp/a" "$tmp/b"
is "$(ranges)" "0+512 4096+1024 $(((40 << 20) - 512))+512" "the sectors, merged where they touch"
is "$(jq -r '.result, .difference_count, .different_bytes' <<<"$out" | xargs)" "different 3 2048" "and the counts"
fails_with 1 "the same against qcow2" blockmig verify --json "$tmp/a.qcow2" "$tmp/b"
is "$(ranges)" "0+512 4096+1024 $(((40 << 20) - 512))+512" "the same sectors"
fails_with 1 "as text" blockmig verify "$tmp/a" "$tmp/b"
like "$out" '^different: offset 4096, length 1024$' "a range"
like "$out" 'differ: 3 ranges' "the count"
fails_with 1 "silently" blockmig verify -q "$tmp/a" "$tmp/b"
is "$out$err" "" "-q prints nothing"

must cp "$tmp/a" "$tmp/c"
for ((i = 0; i < 50; i++)); do
    poke "$tmp/c" $((i * 65536 + 77))
done
run blockmig verify "$tmp/a" "$tmp/c"
is "$(grep -c '^different: offset' <<<"$out")" 20 "the first 20 are listed"
like "$out" '^different: 30 more ranges' "the others counted"
run blockmig verify -v "$tmp/a" "$tmp/c"
is "$(grep -c '^different: offset' <<<"$out")" 50 "-v lists all"

must cp "$tmp/a" "$tmp/longer"
must truncate -s 50M "$tmp/longer"
run_ok "a longer image that ends in zeros" blockmig verify "$tmp/a" "$tmp/longer"
like "$out" '^sizes differ: 40 MiB .* and 50 MiB' "is the same, but that is said"
fails_with 1 "unless --strict is given" blockmig verify --strict "$tmp/a" "$tmp/longer"
poke "$tmp/longer" $((45 << 20))
fails_with 1 "data beyond the end of the other" blockmig verify --json "$tmp/longer" "$tmp/a"
is "$(ranges)" "$((45 << 20))+512" "is a difference"

fails_with 3 "trouble is neither 0 nor 1: a missing file" blockmig verify "$tmp/a" "$tmp/missing"
fails_with 3 "a wrong format" blockmig verify -f qcow2 "$tmp/a" "$tmp/b"
fails_with 2 "one image alone" blockmig verify "$tmp/a"
fails_with 2 "a receipt and two images" blockmig verify "$tmp/a" "$tmp/b" --receipt "$tmp/c"

# Receipts.
for digest in xxh3 sha256; do
    rm -f "$tmp/copy"
    run_ok "a copy with $digest" blockmig copy --json --digest=$digest -O raw "$tmp/a.qcow2" "$tmp/copy"
    receipt=$(jq -r .receipt <<<"$out")
    run_ok "the copy is what its receipt says" blockmig verify "$tmp/copy" --receipt "$receipt"
    run_ok "so is the source" blockmig verify "$tmp/a" --receipt "$receipt"
    must cp "$tmp/copy" "$tmp/changed"
    must qemu-io -f raw -c "write -P 0xa7 5242880 1536k" -c "write -P 0xa7 $(((40 << 20) - 512)) 512" "$tmp/changed"
    fails_with 1 "changed bytes" blockmig verify --json "$tmp/changed" --receipt "$receipt"
    is "$(ranges)" "5242880+2097152 $((39 << 20))+1048576" "the chunks in which they are"
    is "$(jq -r .by <<<"$out")" receipt "by the receipt"
    fails_with 1 "another size" blockmig verify "$tmp/longer" --receipt "$receipt"
    must cp "$tmp/copy" "$tmp/zeroed"
    must qemu-io -f raw -c "write -z 0 40M" "$tmp/zeroed"
    fails_with 1 "an image of zeros" blockmig verify -q "$tmp/zeroed" --receipt "$receipt"
done
# A target whose last sector was made whole is what its receipt says.
random_file "$tmp/odd" 1000001 3
for end in 1000448 1003520; do
    options=logical_sector_size=$((end == 1000448 ? 512 : 4096))
    run_ok "a copy of $end bytes" blockmig copy --json --force -O vhdx -o "$options" "$tmp/odd" "$tmp/odd.vhdx"
    odd=$(jq -r .receipt <<<"$out")
    run_ok "is what its receipt says" blockmig verify "$tmp/odd.vhdx" --receipt "$odd"
    fails_with 1 "but not strictly" blockmig verify --strict "$tmp/odd.vhdx" --receipt "$odd"
done
must blockmig copy -q --force -O raw "$tmp/odd.vhdx" "$tmp/odd.raw"
printf x | dd of="$tmp/odd.raw" bs=1 seek=1000100 conv=notrunc status=none
fails_with 1 "nor with anything but zeros behind it" blockmig verify --json "$tmp/odd.raw" --receipt "$odd"
is "$(ranges)" "1000001+3519" "which is told"
sed "s/\"size\": *[0-9]*/\"size\": 41943552/" "$receipt" >"$tmp/forged"
run blockmig verify "$tmp/a" --receipt "$tmp/forged"
[ "$status" -gt 1 ] && ok "a receipt that contradicts itself is trouble" || not_ok "a receipt that contradicts itself"
head -c 200 "$receipt" >"$tmp/torn"
run blockmig verify "$tmp/a" --receipt "$tmp/torn"
[ "$status" -gt 1 ] && ok "so is half a receipt" || not_ok "half a receipt"
done_testing
