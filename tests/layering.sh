#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Who may include whom.  The second half plants violations and expects to be told of each.
. "${srcdir:-.}/tests/lib.sh"

# The layers that a folder may include, as a regular expression on the included path.
allowed()
{
    case $1 in
        formats) echo '^formats/' ;;
        blockmig/storage) echo '^(formats|blockmig/storage)/' ;;
        blockmig/copy) echo '^(formats|blockmig/storage|blockmig/copy)/' ;;
        blockmig/vm) echo '^(formats|blockmig/storage|blockmig/vm)/' ;;
        blockmig/remote) echo '^(formats|blockmig/storage|blockmig/remote)/' ;;
        blockmig/store) echo '^((formats|blockmig/storage|blockmig/store)/|blockmig/copy/(digest|copy)\.h$)' ;;
        blockmig/migrate) echo '^(formats/|blockmig/(storage|copy|vm|remote|store|migrate)/)' ;;
        blockmig/service) echo '^(formats/|blockmig/(storage|copy|vm|remote|store|migrate|service)/)' ;;
        tools) echo '^(formats|blockmig|tools)/' ;;
        *) echo '^$' ;;
    esac
}

# In angle brackets, formats/ may have GLib, compression, checksums, the C library; nothing that
# does threads, sockets or a hypervisor.
formats_system='^(config|glib(-object)?|zlib|zstd|zstd_errors|libdeflate|xxhash|xxh_x86dispatch|gnutls/(gnutls|crypto)|isa-l(/.*)?|assert|ctype|endian|byteswap|errno|fcntl|float|inttypes|limits|stdarg|stdbool|stddef|stdint|stdio|stdlib|string|strings|time|unistd|sys/(stat|types|uio)|linux/limits)\.h$'

# violations ROOT: prints "file: include" for everything that points the wrong way.
violations()
{
    local root=$1 file folder included
    (
        cd "$root" || exit
        find formats blockmig tools -name '*.[ch]' 2>/dev/null | LC_ALL=C sort | while read -r file; do
            folder=$(dirname "$file")
            case $folder in
                formats/*) folder=formats ;;
                tools/*) folder=tools ;;
                blockmig/*/*) folder=$(cut -d/ -f1-2 <<<"$folder") ;;
            esac
            sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"([^"]+)".*/\1/p' "$file" |
                grep -vE "$(allowed "$folder")" | grep -vx 'config\.h' | sed "s|^|$file: |"
            [ "$folder" = formats ] || continue
            sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*<([^>]+)>.*/\1/p' "$file" |
                grep -vE "$formats_system" | sed "s|^|$file: |"
        done
    )
}

is "$(violations "$srcdir")" "" "no include points upwards or sideways"

# plant FILE LINE: a tree with one file in it.
plant()
{
    rm -rf "$tmp/tree"
    mkdir -p "$tmp/tree/$(dirname "$1")" "$tmp/tree/formats" "$tmp/tree/blockmig" "$tmp/tree/tools"
    printf '%s\n' "$2" >"$tmp/tree/$1"
}

told()
{
    plant "$1" "#include $2"
    like "$(violations "$tmp/tree")" "^$1: " "$1 must not include $2"
}

fine()
{
    plant "$1" "#include $2"
    is "$(violations "$tmp/tree")" "" "$1 may include $2"
}

told formats/raw.c '"blockmig/copy/copy.h"'
told formats/raw.c '"blockmig/storage/file.h"'
told formats/raw.c '<pthread.h>'
told formats/raw.c '<sys/socket.h>'
told formats/raw.c '<liburing.h>'
told formats/deep/raw.h '"tools/options.h"'
told blockmig/storage/file.c '"blockmig/copy/copy.h"'
told blockmig/copy/copy.c '"blockmig/vm/vm.h"'
told blockmig/vm/qmp.c '"blockmig/copy/copy.h"'
told blockmig/copy/copy.c '"blockmig/store/journal.h"'
told blockmig/store/journal.c '"blockmig/copy/throttle.h"'
told blockmig/copy/copy.c '"blockmig/migrate/job.h"'
told blockmig/migrate/job.c '"blockmig/service/queue.h"'
told blockmig/migrate/job.c '"tools/options.h"'
told blockmig/new/thing.c '"formats/image.h"'
told blockmig/copy/copy.c '"copy.h"'
fine formats/raw.c '"formats/image.h"'
fine formats/raw.c '<zstd.h>'
fine blockmig/store/receipt.h '"blockmig/copy/copy.h"'
fine blockmig/migrate/job.c '"blockmig/store/journal.h"'
fine tools/blockmig.c '"blockmig/migrate/job.h"'
done_testing
