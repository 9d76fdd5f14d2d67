# SPDX-License-Identifier: LGPL-2.1-or-later
# A fuzz target is tests/fuzz/NAME.c with its inputs in tests/fuzz/corpus/NAME/.  It is listed twice and has three
# lines here: with the fuzzer (--enable-fuzzing), and with replay.c, by which every make check runs the inputs.
# What all have in common, the libraries, is the LDADD of the whole project.
FUZZ_IMAGE = tests/fuzz/image.c tests/fuzz/image.h tests/fuzz/container.c tests/fuzz/container.h
FUZZ_FLAGS = $(AM_LDFLAGS) $(FUZZ_LDFLAGS)
EXTRA_DIST += tests/fuzz/corpus

if FUZZING
noinst_PROGRAMS += tests/fuzz/frame.fuzz tests/fuzz/qcow.fuzz tests/fuzz/qcow2.fuzz tests/fuzz/qmp.fuzz tests/fuzz/receipt.fuzz \
	tests/fuzz/scsi.fuzz tests/fuzz/vdi.fuzz tests/fuzz/vhd.fuzz tests/fuzz/vhdx.fuzz tests/fuzz/vmdk-extent.fuzz tests/fuzz/vmdk.fuzz
endif
check_PROGRAMS += tests/fuzz/frame.t tests/fuzz/qcow.t tests/fuzz/qcow2.t tests/fuzz/qmp.t tests/fuzz/receipt.t tests/fuzz/scsi.t \
	tests/fuzz/vdi.t tests/fuzz/vhd.t tests/fuzz/vhdx.t tests/fuzz/vmdk-extent.t tests/fuzz/vmdk.t

tests_fuzz_frame_fuzz_SOURCES = tests/fuzz/frame.c
tests_fuzz_frame_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_frame_t_SOURCES = $(tests_fuzz_frame_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_qcow_fuzz_SOURCES = tests/fuzz/qcow.c $(FUZZ_IMAGE)
tests_fuzz_qcow_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_qcow_t_SOURCES = $(tests_fuzz_qcow_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_qcow2_fuzz_SOURCES = tests/fuzz/qcow2.c $(FUZZ_IMAGE)
tests_fuzz_qcow2_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_qcow2_t_SOURCES = $(tests_fuzz_qcow2_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_qmp_fuzz_SOURCES = tests/fuzz/qmp.c
tests_fuzz_qmp_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_qmp_t_SOURCES = $(tests_fuzz_qmp_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_receipt_fuzz_SOURCES = tests/fuzz/receipt.c
tests_fuzz_receipt_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_receipt_t_SOURCES = $(tests_fuzz_receipt_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_scsi_fuzz_SOURCES = tests/fuzz/scsi.c
tests_fuzz_scsi_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_scsi_t_SOURCES = $(tests_fuzz_scsi_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_vdi_fuzz_SOURCES = tests/fuzz/vdi.c $(FUZZ_IMAGE)
tests_fuzz_vdi_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_vdi_t_SOURCES = $(tests_fuzz_vdi_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_vhd_fuzz_SOURCES = tests/fuzz/vhd.c $(FUZZ_IMAGE)
tests_fuzz_vhd_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_vhd_t_SOURCES = $(tests_fuzz_vhd_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_vhdx_fuzz_SOURCES = tests/fuzz/vhdx.c $(FUZZ_IMAGE)
tests_fuzz_vhdx_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_vhdx_t_SOURCES = $(tests_fuzz_vhdx_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_vmdk_extent_fuzz_SOURCES = tests/fuzz/vmdk-extent.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_extent_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_vmdk_extent_t_SOURCES = $(tests_fuzz_vmdk_extent_fuzz_SOURCES) tests/fuzz/replay.c

tests_fuzz_vmdk_fuzz_SOURCES = tests/fuzz/vmdk.c $(FUZZ_IMAGE)
tests_fuzz_vmdk_fuzz_LDFLAGS = $(FUZZ_FLAGS)
tests_fuzz_vmdk_t_SOURCES = $(tests_fuzz_vmdk_fuzz_SOURCES) tests/fuzz/replay.c
