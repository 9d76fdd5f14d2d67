#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What a target's name may lead to: links, long names, names that others take meanwhile, other names of the
# source.
. "${srcdir:-.}/tests/lib.sh"
need_loop
need_tool cmp jq mknod

random_file "$tmp/source" 8M 7
random_file "$tmp/precious" 1M 8
cp "$tmp/precious" "$tmp/precious.copy"

# A link at the part's name must not be followed, and a second name of a file must not be written through.
ln -s "$tmp/precious" "$tmp/a.blockmig-part"
fails_with 3 "a symbolic link where the part would grow" "$blockmig" copy "$tmp/source" "$tmp/a"
ln "$tmp/precious" "$tmp/b.blockmig-part"
fails_with 3 "a hard link there" "$blockmig" copy "$tmp/source" "$tmp/b"
fails_with 3 "neither is followed with --force" "$blockmig" copy --force "$tmp/source" "$tmp/a"
fails_with 3 "nor written through" "$blockmig" copy --force "$tmp/source" "$tmp/b"
check "what they lead to is as it was" cmp "$tmp/precious" "$tmp/precious.copy"

# A part that somebody else has begun, with another journal.
cp "$tmp/precious" "$tmp/foreign.blockmig-part"
fails_with 3 "a part that no job here knows" "$blockmig" copy "$tmp/source" "$tmp/foreign"
like "$err" "foreign.blockmig-part exists, and no earlier run of this copy began it" "is told"
check "and is as it was" cmp "$tmp/precious" "$tmp/foreign.blockmig-part"
check "with --force it is replaced" "$blockmig" copy --force "$tmp/source" "$tmp/foreign"
check "and nothing of it is left" test ! -e "$tmp/foreign.blockmig-part"
cp "$tmp/source" "$tmp/c.blockmig-part"
fails_with 3 "a source that has the part's name" "$blockmig" copy "$tmp/c.blockmig-part" "$tmp/c"
check "it is as it was" cmp "$tmp/source" "$tmp/c.blockmig-part"

# Links at the target's name.
mkdir "$tmp/store" "$tmp/names"
cp "$tmp/precious" "$tmp/store/disk"
ln -s "$tmp/store/disk" "$tmp/names/link"
ln -s "$tmp/store/nothing" "$tmp/names/dangling"
ln -s "$tmp/store" "$tmp/names/directory"
fails_with 3 "a link to a file that exists" "$blockmig" copy "$tmp/source" "$tmp/names/link"
check "with --force" "$blockmig" copy --force "$tmp/source" "$tmp/names/link"
check "the file that it names is replaced" cmp "$tmp/source" "$tmp/store/disk"
check "the link stays" test -L "$tmp/names/link"
fails_with 3 "a link to nothing" "$blockmig" copy --force "$tmp/source" "$tmp/names/dangling"
check "a link to a directory" "$blockmig" copy "$tmp/source" "$tmp/names/directory"
check "is that directory" cmp "$tmp/source" "$tmp/store/source"
fails_with 3 "a directory that is not there" "$blockmig" copy "$tmp/source" "$tmp/names/new/"
check "no file is made instead" test ! -e "$tmp/names/new"

# Names as long as they may be, and any bytes but two.
long=$(printf 'n%.0s' $(seq 255))
check "a name of 255 bytes" "$blockmig" copy "$tmp/source" "$tmp/names/$long"
check "holds the copy" cmp "$tmp/source" "$tmp/names/$long"
odd=$tmp/names/$'a\nb \xff\xfe"'
run "$blockmig" copy --json "$tmp/source" "$odd"
is "$status" 0 "a name that is no text"
is "$(jq '.disks[0].target | endswith("\\xff\\xfe\"")' <<<"$out")" true "is printed as valid JSON"
receipt=$(jq -r .receipt <<<"$out")
check "has the copy" cmp "$tmp/source" "$odd"
check "and a receipt" "$blockmig" verify "$odd" --receipt "$receipt"

# A directory that is gone.
mkdir "$tmp/gone"
cd "$tmp/gone" && rmdir "$tmp/gone"
fails_with 3 "a relative name from nowhere" "$blockmig" copy "$tmp/source" blockmig-nowhere
check "does not mean the root" test ! -e /blockmig-nowhere
check "an absolute one is good" "$blockmig" copy "$tmp/source" "$tmp/names/somewhere"
cd "$tmp" || exit 1

# Who takes the name while the copy is made keeps it.
start "$blockmig" copy -q --bandwidth=8MiB/s "$tmp/source" "$tmp/late" 2>"$tmp/late.err"
pid=$REPLY
wait_for 5 test -e "$tmp/late.blockmig-part"
cp "$tmp/precious" "$tmp/late"
wait "$pid"
is "$?" 5 "a name that is taken while the copy grows"
check "belongs to who took it" cmp "$tmp/precious" "$tmp/late"
rm "$tmp/late"
check "once it is free, the same command finishes" "$blockmig" copy "$tmp/source" "$tmp/late"
check "with the copy" cmp "$tmp/source" "$tmp/late"
check "nothing is left beside it" test ! -e "$tmp/late.blockmig-part"

# Other names of the source.
loop_device "$tmp/source"
loop=$REPLY
fails_with 3 "the loop device over the source" "$blockmig" copy --force -O raw "$tmp/source" "$loop"
fails_with 3 "the file under the source" "$blockmig" copy --force -O raw "$loop" "$tmp/source"
must mknod "$tmp/node" b $((0x$(stat -c %t "$loop"))) $((0x$(stat -c %T "$loop")))
fails_with 3 "another node of the source" "$blockmig" copy --force -O raw "$loop" "$tmp/node"
random_file "$tmp/source.again" 8M 7
check "the source is as it was" cmp "$tmp/source" "$tmp/source.again"
# A datastore keeps the name, whatever the format will be: that is said.
must qemu-img create -q -f qcow2 "$tmp/named.qcow2" 1M
must mkdir -p "$tmp/names"
run blockmig copy -O raw "$tmp/named.qcow2" "$tmp/names/"
is "$status" 0 "copied under the name of another format"
like "$err" "its name says qcow2, but it will be raw" "and that is said"
done_testing
