# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LIBRARIES += libformats.a
libformats_a_SOURCES = \
	formats/block-table.c formats/block-table.h \
	formats/bytes.h \
	formats/chain.c formats/chain.h \
	formats/chain-map.c \
	formats/chain-names.c \
	formats/chain-write.c \
	formats/crc32c.c formats/crc32c.h \
	formats/create-options.c formats/create-options.h \
	formats/error.c formats/error.h \
	formats/extent.c formats/extent.h \
	formats/image.c formats/image.h \
	formats/probe.c \
	formats/inflate.c formats/inflate.h \
	formats/qcow.c \
	formats/qcow2-alloc.c \
	formats/qcow2-bitmaps.c \
	formats/qcow2-cache.c \
	formats/qcow2-check.c \
	formats/qcow2-create.c \
	formats/qcow2-flush.c \
	formats/qcow2-guard.c \
	formats/qcow2-header.c \
	formats/qcow2-l2.c \
	formats/qcow2-map.c \
	formats/qcow2-pack.c \
	formats/qcow2-place.c \
	formats/qcow2-refcount.c \
	formats/qcow2.c formats/qcow2.h \
	formats/raw.c formats/raw.h \
	formats/storage.c formats/storage.h \
	formats/utf16.c formats/utf16.h \
	formats/uuid.c formats/uuid.h \
	formats/vdi-create.c \
	formats/vdi-place.c \
	formats/vdi.c formats/vdi.h \
	formats/vhd-create.c \
	formats/vhd-header.c \
	formats/vhd-map.c \
	formats/vhd-place.c \
	formats/vhd.c formats/vhd.h \
	formats/vhdx-bat.c \
	formats/vhdx-bitmap.c \
	formats/vhdx-create.c \
	formats/vhdx-flush.c \
	formats/vhdx-guid.c \
	formats/vhdx-header.c \
	formats/vhdx-log.c \
	formats/vhdx-map.c \
	formats/vhdx-metadata.c \
	formats/vhdx-parent.c \
	formats/vhdx-place.c \
	formats/vhdx-replay.c \
	formats/vhdx-space.c \
	formats/vhdx.c formats/vhdx.h \
	formats/vmdk-create.c \
	formats/vmdk-descriptor.c \
	formats/vmdk-flush.c \
	formats/vmdk-map.c \
	formats/vmdk-pack.c \
	formats/vmdk-parent.c \
	formats/vmdk-place.c \
	formats/vmdk-sparse.c \
	formats/vmdk-stream.c \
	formats/vmdk-table.c \
	formats/vmdk-verify.c \
	formats/vmdk.c formats/vmdk.h \
	formats/xxh3.c formats/xxh3.h
