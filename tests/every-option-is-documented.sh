#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The option table and the manual page say the same: options, commands, choices; nothing more, nothing less.
. "${srcdir:-.}/tests/lib.sh"
need_tool podchecker pod2man

manual=$srcdir/tools/blockmig.pod

# Command names from "blockmig help".
commands()
{
    blockmig help | sed -n 's/^  \([a-z]*\) .*/\1/p'
}

# Every spelling that some command takes, as its help shows it.
options_of_the_table()
{
    local command
    for command in $(commands); do
        blockmig help "$command" | grep -E '^ +-' | cut -c1-30 | grep -oE '(^|[ ,])-{1,2}[A-Za-z][a-z-]*' | tr -d ' ,'
    done | LC_ALL=C sort -u
}

# Every spelling that has an =item of its own.
options_of_the_manual()
{
    sed -n '/^=head1 OPTIONS/,/^=head1 SAFETY/p' "$1" | grep '^=item B<-' | grep -oE 'B<-[^>]*>' |
        sed 's/^B<//; s/>$//' | LC_ALL=C sort -u
}

run podchecker "$manual"
is "$status" 0 "the manual page is valid POD"
unlike "$err" 'WARNING|ERROR' "and podchecker has nothing to remark"

table=$(options_of_the_table)
[ "$(wc -l <<<"$table")" -gt 20 ] || not_ok "the options are found in the help texts"
is "$(options_of_the_manual "$manual")" "$table" "options of the program and of the manual page"

grep -v '^=item B<--salvage>' "$manual" >"$tmp/less.pod"
unlike "$(options_of_the_manual "$tmp/less.pod")" '^--salvage$' "a missing option would be seen"

for command in $(commands); do
    grep -Eq "^B<blockmig ${command}[ >]" "$manual" && ok "$command is in the synopsis" || not_ok "$command is in the synopsis"
    grep -Eq "^=item B<${command}[ >]" "$manual" && ok "$command is described" || not_ok "$command is described"
    like "$(blockmig "$command" --help)" "^Usage: blockmig $command " "$command --help"
done
is "$(sed -n 's/^B<blockmig \([a-z]*\)[ >].*/\1/p' "$manual" | LC_ALL=C sort -u)" "$(commands | LC_ALL=C sort)" \
    "the synopsis names no other command"

# What the completion offers comes from the same table.
run bash -c '. <("$1" completion bash) && COMP_WORDS=(blockmig copy --ver) COMP_CWORD=2 && _blockmig && echo "${COMPREPLY[*]}"' - \
    "$builddir/tools/blockmig"
is "$out" "--verify --verbose --version" "bash completes an option"
run bash -c '. <("$1" completion bash) && COMP_WORDS=(blockmig ma) COMP_CWORD=1 && _blockmig && echo "${COMPREPLY[*]}"' - \
    "$builddir/tools/blockmig"
is "$out" "map" "and a command"

for code in 0 1 2 3 4 5 6 7 8 9; do
    grep -q "^=item B<$code>$" "$manual" && ok "exit status $code" || not_ok "exit status $code"
done
done_testing
