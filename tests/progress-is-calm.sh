#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Progress: one quiet line on a terminal, nothing where nobody asked, numbers for programs, a line on SIGUSR1.
. "${srcdir:-.}/tests/lib.sh"
need_tool python3 jq

random_file "$tmp/a" 32M 1
must cp "$tmp/a" "$tmp/b"
program=$builddir/tools/blockmig
# Both images are read: 64 MiB in about three seconds.
slow=("$program" verify --bandwidth=20MiB/s "$tmp/a" "$tmp/b")

# judge COLUMNS: reads what on_terminal recorded and names what is not calm.
cat >"$tmp/judge.py" <<'EOF'
import ast, sys
columns = int(sys.argv[1])
text = ""
times = []
for line in sys.stdin:
    when, data = line.split(" ", 1)
    data = ast.literal_eval(data)
    text += data
    times += [float(when)] * data.count("\r")
lines = [part for part in text.replace("\n", "\r").split("\r") if part.strip() and "same" not in part]
if "\x1b" in text:
    print("escape sequences")
if len(lines) < 5:
    print("only %d updates" % len(lines))
if max(map(len, lines)) >= columns:
    print("a line of %d columns" % max(map(len, lines)))
# Five updates, and taking the line away at the end.
for i in range(len(times) - 8):
    if times[i + 8] - times[i] < 0.9:
        print("%.3f to %.3f s: more than 8 updates in a second" % (times[i], times[i + 8]))
percents = [int(p.split("%")[0].split()[-1]) for p in lines if "%" in p]
if not percents or percents != sorted(percents) or percents[-1] < 60:
    print("percents", percents)
if "MiB/s" not in text and columns > 60:
    print("no rate")
if "left" not in text and columns > 60:
    print("no time left")
if text.split("\r")[-1].strip() not in ("", ):
    print("the line is still there:", repr(text.split("\r")[-1]))
EOF

for columns in 100 40; do
    on_terminal $columns "${slow[@]}" -f raw -F raw
    is "$status" 0 "a comparison on a terminal of $columns columns"
    is "$(python3 "$tmp/judge.py" $columns <<<"$out")" "" "is calm"
done
on_terminal 80 "${slow[@]}" -q
is "$out" "" "-q: nothing at all"
PRESS=1 on_terminal 80 "${slow[@]}"
is "$status" 4 "Ctrl-C stops in order"
like "$out" 'blockmig: stopping in order; press again to stop at once' "and says what a second one does"
terminal=dumb on_terminal 80 "${slow[@]}"
unlike "$out" '\\r[^\\]' "TERM=dumb: no line is rewritten"

run "${slow[@]}"
is "$err" "" "standard error is no terminal: nothing"
is "$out" "$tmp/a and $tmp/b are the same" "and the result is the result"

run "${slow[@]}" --progress=7 7>"$tmp/numbers"
is "$err" "" "--progress=FD leaves standard error alone"
is "$(grep -cvxE '[0-9]+/100' "$tmp/numbers")" 0 "N/100 lines"
is "$(tail -1 "$tmp/numbers")" 100/100 "the last one is 100/100"
is "$(cut -d/ -f1 "$tmp/numbers")" "$(cut -d/ -f1 "$tmp/numbers" | sort -nu)" "they only grow"

run bash -c '"$@" --progress=7 7> >(head -n 1 >/dev/null)' - "${slow[@]}"
is "$status" 0 "a reader that goes away does not end the comparison"

"${slow[@]}" >"$tmp/result" 2>"$tmp/lines" 3>&- &
pid=$!
sleep 1.2
kill -USR1 $pid
sleep 0.7
is "$(wc -l <"$tmp/lines")" 1 "SIGUSR1: one line"
like "$(cat "$tmp/lines")" '^blockmig: compare .*%.* of .*' "with phase and percentage"
wait $pid
is "$?" 0 "and the comparison goes on"

env --default-signal=INT "${slow[@]}" --json >"$tmp/result" 2>"$tmp/lines" 3>&- &
pid=$!
sleep 0.7
kill -INT $pid
wait $pid
is "$?" 4 "SIGINT: stopped in order, status 4"
is "$(jq -r .result "$tmp/result")" failed "with a result"

"$program" verify --progress --bandwidth=10MiB/s "$tmp/a" "$tmp/b" >"$tmp/result" 2>"$tmp/lines" 3>&-
is "$(wc -l <"$tmp/lines")" 1 "--progress without a terminal: a line every five seconds"
done_testing
