# SPDX-License-Identifier: LGPL-2.1-or-later
# One line per test program: check_PROGRAMS += tests/unit/NAME.t
check_PROGRAMS += tests/unit/chain-qemu.t
tests_unit_chain_qemu_t_SOURCES = tests/unit/chain-qemu.c tests/unit/harness.h
check_PROGRAMS += tests/unit/device.t
tests_unit_device_t_SOURCES = tests/unit/device.c tests/unit/harness.h
check_PROGRAMS += tests/unit/shift.t
tests_unit_shift_t_SOURCES = tests/unit/shift.c
check_PROGRAMS += tests/unit/frame.t
tests_unit_frame_t_SOURCES = tests/unit/frame.c

check_PROGRAMS += tests/unit/file.t
tests_unit_file_t_SOURCES = tests/unit/file.c tests/unit/harness.h
check_PROGRAMS += tests/unit/chain-policy.t
tests_unit_chain_policy_t_SOURCES = tests/unit/chain-policy.c tests/unit/harness.h
check_PROGRAMS += tests/unit/lock.t
tests_unit_lock_t_SOURCES = tests/unit/lock.c tests/unit/harness.h
check_PROGRAMS += tests/unit/chain-map.t
tests_unit_chain_map_t_SOURCES = tests/unit/chain-map.c tests/unit/harness.h
check_PROGRAMS += tests/unit/chain-write.t
tests_unit_chain_write_t_SOURCES = tests/unit/chain-write.c tests/unit/harness.h
check_PROGRAMS += tests/unit/qcow2-hostile.t
tests_unit_qcow2_hostile_t_SOURCES = tests/unit/qcow2-hostile.c

check_PROGRAMS += tests/unit/qcow2.t
tests_unit_qcow2_t_SOURCES = tests/unit/qcow2.c \
	tests/helpers/crash.c tests/helpers/crash.h \
	tests/helpers/image-writer.c tests/helpers/image-writer.h

check_PROGRAMS += tests/unit/raw.t
tests_unit_raw_t_SOURCES = tests/unit/raw.c tests/unit/harness.h
check_PROGRAMS += tests/unit/scsi.t
tests_unit_scsi_t_SOURCES = tests/unit/scsi.c tests/unit/harness.h
check_PROGRAMS += tests/unit/storage.t
tests_unit_storage_t_SOURCES = tests/unit/storage.c tests/unit/harness.h

check_PROGRAMS += tests/unit/journal.t
tests_unit_journal_t_SOURCES = tests/unit/journal.c
check_PROGRAMS += tests/unit/copy.t
tests_unit_copy_t_SOURCES = tests/unit/copy.c tests/unit/harness.h tests/unit/scatter.h
check_PROGRAMS += tests/unit/copy-file.t
tests_unit_copy_file_t_SOURCES = tests/unit/copy-file.c tests/unit/harness.h
check_PROGRAMS += tests/unit/digest.t
tests_unit_digest_t_SOURCES = tests/unit/digest.c
check_PROGRAMS += tests/unit/ring.t
tests_unit_ring_t_SOURCES = tests/unit/ring.c
check_PROGRAMS += tests/unit/share.t
tests_unit_share_t_SOURCES = tests/unit/share.c
check_PROGRAMS += tests/unit/pace.t
tests_unit_pace_t_SOURCES = tests/unit/pace.c
check_PROGRAMS += tests/unit/throttle.t
tests_unit_throttle_t_SOURCES = tests/unit/throttle.c

check_PROGRAMS += tests/unit/units.t
tests_unit_units_t_SOURCES = tests/unit/units.c

check_PROGRAMS += tests/unit/metadata.t
tests_unit_metadata_t_SOURCES = tests/unit/metadata.c

check_PROGRAMS += tests/unit/receipt.t
tests_unit_receipt_t_SOURCES = tests/unit/receipt.c

check_PROGRAMS += tests/unit/space.t
tests_unit_space_t_SOURCES = tests/unit/space.c
tests_unit_space_t_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=syscall

check_PROGRAMS += tests/unit/agent.t
tests_unit_agent_t_SOURCES = tests/unit/agent.c tests/unit/harness.h

check_PROGRAMS += tests/unit/qemu.t
tests_unit_qemu_t_SOURCES = tests/unit/qemu.c tests/unit/harness.h

check_PROGRAMS += tests/unit/qmp.t
tests_unit_qmp_t_SOURCES = tests/unit/qmp.c tests/unit/harness.h

check_PROGRAMS += tests/unit/guard.t
tests_unit_guard_t_SOURCES = tests/unit/guard.c tests/unit/harness.h

check_PROGRAMS += tests/unit/utf16.t
tests_unit_utf16_t_SOURCES = tests/unit/utf16.c tests/unit/harness.h

check_PROGRAMS += tests/unit/vhdx.t
tests_unit_vhdx_t_SOURCES = tests/unit/vhdx.c tests/unit/harness.h tests/unit/memory-image.h \
	tests/helpers/crash.c tests/helpers/crash.h \
	tests/helpers/image-writer.c tests/helpers/image-writer.h
check_PROGRAMS += tests/unit/vhd.t
tests_unit_vhd_t_SOURCES = tests/unit/vhd.c tests/unit/harness.h tests/unit/memory-image.h \
	tests/helpers/crash.c tests/helpers/crash.h \
	tests/helpers/image-writer.c tests/helpers/image-writer.h

check_PROGRAMS += tests/unit/vdi.t
tests_unit_vdi_t_SOURCES = tests/unit/vdi.c tests/unit/harness.h tests/unit/memory-image.h \
	tests/helpers/crash.c tests/helpers/crash.h \
	tests/helpers/image-writer.c tests/helpers/image-writer.h

check_PROGRAMS += tests/unit/vmdk.t
tests_unit_vmdk_t_SOURCES = tests/unit/vmdk.c tests/unit/harness.h tests/unit/memory-image.h \
	tests/helpers/crash.c tests/helpers/crash.h \
	tests/helpers/image-writer.c tests/helpers/image-writer.h

check_PROGRAMS += tests/unit/sandbox.t
tests_unit_sandbox_t_SOURCES = tests/unit/sandbox.c tests/unit/harness.h
tests_unit_sandbox_t_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=syscall
check_PROGRAMS += tests/unit/unit.t
tests_unit_unit_t_SOURCES = tests/unit/unit.c tests/unit/harness.h
