#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Every source file, script and makefile says its licence in its first lines.
. "${srcdir:-.}/tests/lib.sh"

licence='SPDX-License-Identifier: LGPL-2\.1-or-later'

# without_licence ROOT: the files that do not.  Data (corpus, samples, lists) has no place for it.
without_licence()
{
    (
        cd "$1" || exit
        {
            find formats blockmig tools tests .ci -type f \( -name '*.[ch]' -o -name '*.sh' -o -name '*.py' \
                -o -name '*.mk' -o -name '*.pod' \) -not -path '*/corpus/*'
            find tools .ci -type f -perm -u+x -not -name '*.*'
            ls configure.ac Makefile.am .clang-format .editorconfig 2>/dev/null
        } | LC_ALL=C sort -u | while read -r file; do
            head -n 5 "$file" | grep -qE "$licence" || echo "$file"
        done
    )
}

is "$(without_licence "$srcdir")" "" "every file names the licence"

mkdir -p "$tmp/tree"/{formats,blockmig,tools,tests,.ci}
echo 'int x;' >"$tmp/tree/formats/bad.c"
is "$(without_licence "$tmp/tree")" "formats/bad.c" "it would see a file that does not"
done_testing
