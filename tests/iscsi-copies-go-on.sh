#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whoever dies in the middle of a copy to or from an iSCSI unit, blockmig or the target: the same command again goes
# on.  And who may log in is the target's business: passwords appear nowhere.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_tool qemu-img jq python3
export BLOCKMIG_ISCSI_TIMEOUT=2
random_file "$tmp/source.raw" 48M 1
random_file "$tmp/unit" 48M 2
truncate -s 48M "$tmp/unit2"

serve()
{
    start_tgtd
    make_target
    add_lun 1 "$tmp/unit"
    uri=$REPLY
    add_lun 2 "$tmp/unit2"
}

# copy_slowly SOURCE TARGET: in the background, until it has a checkpoint; sets REPLY to its pid.
copy_slowly()
{
    "$blockmig" copy --bandwidth=4MiB/s -f raw -O raw "$@" >"$tmp/slow.out" 2>&1 3>&- </dev/null &
    REPLY=$!
    at_exit stop_process "$REPLY"
    wait_for 30 has_checkpoint "$2" || not_ok "there is a checkpoint"
}

goes_on()
{
    run_ok "$1" blockmig copy --json -f raw -O raw "$2" "$3"
    is "$(jq -r .resumed <<<"$out")" true "  it is resumed, not begun anew"
}

serve
copy_slowly "$tmp/source.raw" "$uri"
kill -KILL "$REPLY"
wait "$REPLY" 2>/dev/null
goes_on "after SIGKILL the copy to a unit goes on" "$tmp/source.raw" "$uri"
check "  and is right" cmp "$tmp/source.raw" "$tmp/unit"

copy_slowly "$uri" "$tmp/back.raw"
kill -KILL "$REPLY"
wait "$REPLY" 2>/dev/null
goes_on "so does one from a unit" "$uri" "$tmp/back.raw"
check "  and is right" cmp "$tmp/source.raw" "$tmp/back.raw"

copy_slowly "$tmp/source.raw" "iscsi://$portal/$iqn/2"
copy=$REPLY
kill_tgtd "$tgtd"
wait "$copy"
is $? 8 "a copy ends with status 8 if the target dies and stays away"
like "$(cat "$tmp/slow.out")" 'has not come back within 2 seconds' "  and says so"
serve
goes_on "when the target is back the copy goes on" "$tmp/source.raw" "iscsi://$portal/$iqn/2"
check "  and is right" cmp "$tmp/source.raw" "$tmp/unit2"

# A source that is away for a moment is waited for.
export BLOCKMIG_ISCSI_TIMEOUT=20
rm "$tmp/back.raw"
copy_slowly "$uri" "$tmp/back.raw"
copy=$REPLY
kill_tgtd "$tgtd"
serve
wait "$copy"
is $? 0 "a target that is restarted at once does not end a copy from it"
check "  and is right" cmp "$tmp/source.raw" "$tmp/back.raw"

# CHAP.
secret=Xy7-not-to-be-seen
must tgt --op new --mode account --user guest --password "$secret"
must tgt --op bind --mode account --tid 1 --user guest
fails_with 3 "without a password nobody gets in" blockmig info "$uri"
printf 'user=guest\npassword=%s\n' "$secret" >"$tmp/credentials"
chmod 600 "$tmp/credentials"
export BLOCKMIG_ISCSI_CREDENTIALS=$tmp/credentials
run_ok "with the file one does" blockmig copy -v --json --force -f raw "$uri" "$tmp/chap.raw"
said=$out$err
chmod 644 "$tmp/credentials"
fails_with 3 "a file that others can read is refused" blockmig info "$uri"
said+=$out$err
chmod 600 "$tmp/credentials"
printf 'user=guest\n%s\n' "$secret" >"$tmp/credentials"
fails_with 2 "what is wrong in the file is told by its line" blockmig info "$uri"
said+=$out$err
printf 'user=guest\npassword=%s\n' "$secret-wrong" >"$tmp/credentials"
fails_with 3 "a wrong password is refused" blockmig info "$uri"
like "$err" 'Authorization failure|Authentication' "by the target"
said+=$out$err
unset BLOCKMIG_ISCSI_CREDENTIALS
LIBISCSI_CHAP_USERNAME=guest LIBISCSI_CHAP_PASSWORD=$secret run_ok "the environment does, too" blockmig info -f raw "$uri"
said+=$out$err
LIBISCSI_CHAP_PASSWORD=$secret run_ok "with the user in the URI" blockmig info -f raw "iscsi://guest@${uri#iscsi://}"
said+=$out$err
fails_with 2 "a password in the URI is refused" blockmig copy -f raw "iscsi://guest%$secret@${uri#iscsi://}" "$tmp/no.raw"
said+=$out$err
unlike "$said" "$secret" "no password is ever printed"
check "nor in the journal or a receipt" sh -c '! grep -raq -e "$0" "$1"' "$secret" "$BLOCKMIG_STATE_DIR"
done_testing
