#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The formats and the engine return errors; only tools/ and tests/ speak, exit or abort.
. "${srcdir:-.}/tests/lib.sh"

speech='(^|[^[:alnum:]_>.])(v?printf|puts|putchar|perror|g_print|g_printerr|g_message|g_warning|g_critical|g_error|g_debug|g_info|warnx?|errx?|exit|_exit|abort)[[:space:]]*\(|(fprintf|vfprintf|fputs|fputc|fwrite|putc)[[:space:]]*\([^;]*\<(stdout|stderr)\>'

# speaking ROOT: "file:line:text" of every such call; comments and strings do not count.
speaking()
{
    (
        cd "$1" || exit
        find formats blockmig -name '*.[ch]' | LC_ALL=C sort | while read -r file; do
            perl -0pe 's{/\*.*?\*/}{ ($a = $&) =~ s/[^\n]//g; $a }ges; s{//[^\n]*}{}g; s{"(\\.|[^"\\\n])*"}{""}g' "$file" |
                grep -nE "$speech" | sed "s|^|$file:|"
        done
    )
}

is "$(speaking "$srcdir")" "" "formats/ and blockmig/ print nothing and never end the process"

mkdir -p "$tmp/tree/formats" "$tmp/tree/blockmig"
for call in 'printf("x");' 'g_print("x");' 'fprintf(stderr, "x");' 'g_printerr("x");' 'exit(1);' 'perror("x");' \
    'fputs("x", stdout);' 'g_warning("x");' 'abort();'; do
    printf 'void f(void)\n{\n    %s\n}\n' "$call" >"$tmp/tree/formats/bad.c"
    like "$(speaking "$tmp/tree")" '^formats/bad.c:3:' "it would see $call"
done
printf '/* printf("x") */\nvoid f(FILE *f)\n{\n    g_string_append_printf(s, "printf(");\n    fprintf(f, "x");\n}\n' \
    >"$tmp/tree/formats/bad.c"
is "$(speaking "$tmp/tree")" "" "it does not take other functions and comments for speech"
done_testing
