# SPDX-License-Identifier: LGPL-2.1-or-later
# Fuzz targets are named tests/fuzz/NAME.fuzz and have their inputs in tests/fuzz/corpus/NAME/:
#
#     noinst_PROGRAMS += tests/fuzz/NAME.fuzz         (inside "if FUZZING")
#     tests_fuzz_NAME_fuzz_SOURCES = tests/fuzz/NAME.c
#     tests_fuzz_NAME_fuzz_LDADD = $(UNIT_LIBS)
#     tests_fuzz_NAME_fuzz_LDFLAGS = $(FUZZ_FLAGS)
#     EXTRA_DIST += tests/fuzz/corpus/NAME             (outside)
#
# tools/check runs every corpus through its target once.
FUZZ_IMAGE = tests/fuzz/image.c tests/fuzz/image.h
FUZZ_FLAGS = $(AM_LDFLAGS) $(FUZZ_LDFLAGS)
if FUZZING
noinst_PROGRAMS += tests/fuzz/receipt.fuzz
endif
tests_fuzz_receipt_fuzz_SOURCES = tests/fuzz/receipt.c
tests_fuzz_receipt_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_receipt_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/receipt

# The same inputs without a fuzzer, in every make check.
check_PROGRAMS += tests/fuzz/receipt.t
tests_fuzz_receipt_t_SOURCES = tests/fuzz/receipt.c tests/fuzz/replay.c
tests_fuzz_receipt_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/qcow2.fuzz
endif
tests_fuzz_qcow2_fuzz_SOURCES = tests/fuzz/qcow2.c $(FUZZ_IMAGE)
tests_fuzz_qcow2_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_qcow2_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/qcow2
check_PROGRAMS += tests/fuzz/qcow2.t
tests_fuzz_qcow2_t_SOURCES = tests/fuzz/qcow2.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_qcow2_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/qmp.fuzz
endif
tests_fuzz_qmp_fuzz_SOURCES = tests/fuzz/qmp.c
tests_fuzz_qmp_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_qmp_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/qmp
check_PROGRAMS += tests/fuzz/qmp.t
tests_fuzz_qmp_t_SOURCES = tests/fuzz/qmp.c tests/fuzz/replay.c
tests_fuzz_qmp_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/vhd.fuzz
endif
tests_fuzz_vhd_fuzz_SOURCES = tests/fuzz/vhd.c $(FUZZ_IMAGE)
tests_fuzz_vhd_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_vhd_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/vhd
check_PROGRAMS += tests/fuzz/vhd.t
tests_fuzz_vhd_t_SOURCES = tests/fuzz/vhd.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_vhd_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/vhdx.fuzz
endif
tests_fuzz_vhdx_fuzz_SOURCES = tests/fuzz/vhdx.c $(FUZZ_IMAGE)
tests_fuzz_vhdx_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_vhdx_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/vhdx
check_PROGRAMS += tests/fuzz/vhdx.t
tests_fuzz_vhdx_t_SOURCES = tests/fuzz/vhdx.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_vhdx_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/vdi.fuzz
endif
tests_fuzz_vdi_fuzz_SOURCES = tests/fuzz/vdi.c $(FUZZ_IMAGE)
tests_fuzz_vdi_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_vdi_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/vdi
check_PROGRAMS += tests/fuzz/vdi.t
tests_fuzz_vdi_t_SOURCES = tests/fuzz/vdi.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_vdi_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/vmdk.fuzz
endif
tests_fuzz_vmdk_fuzz_SOURCES = tests/fuzz/vmdk.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_vmdk_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/vmdk
check_PROGRAMS += tests/fuzz/vmdk.t
tests_fuzz_vmdk_t_SOURCES = tests/fuzz/vmdk.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/vmdk-extent.fuzz
endif
tests_fuzz_vmdk_extent_fuzz_SOURCES = tests/fuzz/vmdk-extent.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_extent_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_vmdk_extent_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/vmdk-extent
check_PROGRAMS += tests/fuzz/vmdk-extent.t
tests_fuzz_vmdk_extent_t_SOURCES = tests/fuzz/vmdk-extent.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_extent_t_LDADD = $(UNIT_LIBS)

if FUZZING
noinst_PROGRAMS += tests/fuzz/qcow.fuzz
endif
tests_fuzz_qcow_fuzz_SOURCES = tests/fuzz/qcow.c $(FUZZ_IMAGE)
tests_fuzz_qcow_fuzz_LDADD = $(UNIT_LIBS)
tests_fuzz_qcow_fuzz_LDFLAGS = $(FUZZ_FLAGS)
EXTRA_DIST += tests/fuzz/corpus/qcow
check_PROGRAMS += tests/fuzz/qcow.t
tests_fuzz_qcow_t_SOURCES = tests/fuzz/qcow.c tests/fuzz/replay.c $(FUZZ_IMAGE)
tests_fuzz_qcow_t_LDADD = $(UNIT_LIBS)
