#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that was migrated with --keep-failback is brought back, with what it wrote meanwhile, and little is sent; or
# the way back is closed, by a command or by its keeper.  Whatever hinders it is told in time and leaves the way open.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
two_hosts

size=$((64 << 20))
random_file "$tmp/noise" $size 7
must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$tmp/one/srv/store/disk.qcow2"
must cp "$tmp/noise" "$tmp/one/srv/store/data.img"
must rm "$tmp/noise"
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=100 span=4M flush=32 log=1'
back=blockmig://192.0.2.1/store

# goes OPTIONS...: to the other host, with a way back; sets id.
goes()
{
    migrate one web blockmig://192.0.2.2 --compress=off --json "--failback-to=$back" "$@"
    is "$status" 0 "the machine goes to two ($*)" || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper_of "$id"
}

state()
{
    on one "$blockmig" job show --json "$id" | jq -r '.state + " " + .phase'
}

is_state()
{
    [ "$(state)" = "$1" ]
}

# ---- running ----------------------------------------------------------------------------------------

fails_with 2 "where the way back leads to must be told" on one "$blockmig" migrate web blockmig://192.0.2.2 --keep-failback=1h
like "$err" 'failback-to=blockmig://HOST/DATASTORE' "and how"
for wrong in blockmig://192.0.2.1/nowhere blockmig://192.0.2.2/store blockmig://192.0.2.1:9/store blockmig://192.0.2.1/store/below; do
    migrate one web blockmig://192.0.2.2 --keep-failback=1h "--failback-to=$wrong"
    is "$status/$(running_on web)/$(files "$tmp/two/srv/store")" "3/one /" "no way back to $wrong: refused, and nothing changed" || diag "$err"
    like "$err" "no way back: $wrong: " "and it is told"
done
is "$(files "$tmp/one/srv/store")" "data.img disk.qcow2 " "nothing is left of the looking"

goes --keep-failback=1h --delete-source
is "$(jq -r '.phase + " " + .source + " " + (.failback.failback)' <<<"$out")" "window kept blockmig job failback $id" \
    "the report tells of the way back"
is "$(files "$tmp/one/srv/store")" "data.img.blockmig-source disk.qcow2.blockmig-source " "the source is kept, although it is to be deleted"
is "$(state)" "failback window" "the job waits"
like "$(on one "$blockmig" job list)" "way back until .*: blockmig job failback $id" "the list says until when"
fails_with 3 "resuming is not the word for it" on one "$blockmig" job resume "$id"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start
sleep 2
job failback "$id" --json
is "$status" 0 "the machine is brought back" || diag "$err"
is "$(running_on web)/$(defined_on web)" "one /one " "it runs there, and only there"
is "$(jq -c '[.command, .result, .method, .phase, (.disks | length), .pause_ms > 0]' <<<"$out")" \
    '["job failback","done","live","done",2,true]' "the report tells of the way back"
is "$(jq --argjson size $size 'all(.disks[]; .bytes_wire < $size / 4 and .bytes_seeded > $size / 2)' <<<"$out")" true \
    "only what changed was sent" || diag "$(jq -c '[.disks[] | [.bytes_wire, .bytes_seeded]]' <<<"$out")"
is "$(files "$tmp/one/srv/store")/$(files "$tmp/two/srv/store")" "data.img disk.qcow2 /" "nothing else is left on either host"
is "$(domain_file one web)" /srv/store/disk.qcow2 "the disk has its old name"
is "$(state)" "failed-back done" "the job says so"
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start
fails_with 3 "once is enough" on one "$blockmig" job failback "$id"

# ---- closed by hand, and by the keeper ----------------------------------------------------------------

goes --keep-failback=1h --delete-source
migrate one web blockmig://192.0.2.2
is "$status" 3 "as long as the way is open, the machine is not moved on"
like "$err" "job finish $id.*job failback $id" "and the words are told"
job finish "$id" --json
is "$status/$(jq -r '.result + " " + .source' <<<"$out")" "0/done deleted" "the way back is closed" || diag "$err"
is "$(files "$tmp/one/srv/store")/$(files "$tmp/two/srv/store")" "/data.img disk.qcow2 " "and the source is deleted"
is "$(state)" "done done" "the job says so"
migrate two web blockmig://192.0.2.1 --delete-source
is "$status" 0 "it goes back by itself" || diag "$err"

pick no yes
if [ "$REPLY" = yes ]; then
    goes --keep-failback=3s
    wait_for 30 is_state "done done" && ok "the keeper closes it" || not_ok "the keeper closes it: $(state)"
    is "$(files "$tmp/one/srv/store")" "data.img.blockmig-source disk.qcow2.blockmig-source " "what was to be kept stays"
    like "$(cat "$tmp/one/srv/state/keeper.log")" "$id: the way back is closed" "it has a log"
    migrate two web blockmig://192.0.2.1 --delete-source
    is "$status" 0 "it goes back by itself" || diag "$err"
    must rm "$tmp"/one/srv/store/*.blockmig-source
fi

# ---- off, and what hinders it -------------------------------------------------------------------------

goes --keep-failback=1h
must on two virsh -q destroy web
must on two ip link set eth0 down
run on one env BLOCKMIG_AGENT_TIMEOUT=3 timeout 200 "$blockmig" job failback "$id"
is "$status" 8 "without the other host there is no way back"
like "$err" "way back stays open" "but it stays open"
is "$(state)" "failback window" "as the job says"
must on two ip link set eth0 up
must on two virsh -q domrename web other
job failback "$id"
is "$status" 3 "a machine that is not where it was left is not brought back"
like "$err" "web is neither here nor on blockmig://192.0.2.2" "and that is told"
must on two virsh -q domrename other web
must touch "$tmp/one/srv/store/disk.qcow2"
job failback "$id"
is "$status" 3 "nothing is written over what is there meanwhile" || diag "$err"
like "$err" "led by blockmig://192.0.2.2: .*disk.qcow2 exists already" "the other host's words are told"
is "$(defined_on web)" "two " "the machine is where it was"
must rm "$tmp/one/srv/store/disk.qcow2"
job failback "$id" --json
is "$status/$(jq -r .method <<<"$out")" "0/cold" "a machine that is off is brought back" || diag "$err"
is "$(defined_on web)" "one " "and is defined there alone"
is "$(files "$tmp/one/srv/store")/$(files "$tmp/two/srv/store")" \
    "data.img disk.qcow2 /data.img.blockmig-source disk.qcow2.blockmig-source " "the other host keeps its own"
start_again one web
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start
migrate one web blockmig://192.0.2.2 --keep-failback=1h "--failback-to=$back"
is "$status" 3 "what is left there would be in the way of another one"
like "$err" 'disk.qcow2.blockmig-source is there, and would be in the way' "and that is told"
done_testing
