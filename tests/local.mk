# SPDX-License-Identifier: LGPL-2.1-or-later
TESTS += $(check_PROGRAMS) $(dist_check_SCRIPTS)
EXTRA_DIST += tests/helpers/iscsi-target.py tests/images tests/lib-hostile.sh tests/lib-iscsi.sh tests/lib-nbd.sh \
	tests/lib-nbdkit.sh tests/lib.sh tests/make-data.py tests/make-foreign-image.py tests/make-hostile-dmg.py \
	tests/make-hostile-qcow.py \
	tests/make-hostile-qcow2.py tests/make-hostile-vdi.py tests/make-hostile-vhd.py tests/make-hostile-vhdx.py \
	tests/make-hostile-vmdk.py tests/make-qcow2.py tests/make-vhdx-chain.py tests/read-libvhdi.py tests/read-vdi.py \
	tests/read-vhd.py tests/terminal.py tests/vhdx_image.py
dist_check_SCRIPTS += \
	tests/a-killed-migration-never-leaves-the-guest-paused.sh \
	tests/copy-notices-a-source-that-changes.sh \
	tests/copy-prints-one-json-object.sh \
	tests/every-file-has-a-licence.sh \
	tests/every-option-is-documented.sh \
	tests/external-data-files-need-a-root.sh \
	tests/hostile-dmg-images-are-refused.sh \
	tests/hostile-qcow-images-are-refused.sh \
	tests/hostile-qcow2-images-are-refused.sh \
	tests/hostile-vdi-images-are-refused.sh \
	tests/hostile-vhd-images-are-refused.sh \
	tests/hostile-vhdx-images-are-refused.sh \
	tests/hostile-vmdk-images-are-refused.sh \
	tests/hosts-may-disagree-about-the-time.sh \
	tests/foreign-formats-are-read-through-qemu.sh \
	tests/info-shows-a-chain-and-its-users.sh \
	tests/jobs-given-up-leave-nothing.sh \
	tests/jobs-are-listed-resumed-and-given-up.sh \
	tests/layering.sh \
	tests/map-matches-qemu-img-map.sh \
	tests/nbdkit-serves-chains.sh \
	tests/nbdkit-survives-a-full-disk.sh \
	tests/nbdkit-survives-sigkill.sh \
	tests/nbdkit-writes-into-chains.sh \
	tests/only-the-datastores-can-be-opened.sh \
	tests/only-tools-print.sh \
	tests/progress-is-calm.sh \
	tests/qcow-images-read-the-same.sh \
	tests/qcow2-images-of-qemu-read-the-same.sh \
	tests/random-qcow2-writes-match-qemu-io.sh \
	tests/raw-disks-of-odd-sizes-run.sh \
	tests/room-is-measured-on-real-file-systems.sh \
	tests/usage-errors-exit-2.sh \
	tests/verify-names-the-differing-ranges.sh \
	tests/vdi-disks-are-read-by-others.sh \
	tests/vhd-disks-are-read-by-others.sh \
	tests/vhdx-chains-match-a-model.sh \
	tests/vhdx-disks-of-others-read-the-same.sh \
	tests/virtualbox-disks-read-the-same.sh \
	tests/vmdk-disks-are-read-by-others.sh \
	tests/vmdk-images-of-others-read-the-same.sh

# Whole copies, end to end.
dist_check_SCRIPTS += \
	tests/a-damaged-part-is-copied-again.sh \
	tests/a-device-that-changed-is-copied-again.sh \
	tests/commit-merges-into-the-parent.sh \
	tests/create-makes-images.sh \
	tests/create-looks-for-space.sh \
	tests/chain-keep-copies-every-layer.sh \
	tests/chain-shallow-keeps-the-backing.sh \
	tests/chains-are-kept-in-other-formats.sh \
	tests/chains-flatten-like-qemu-img.sh \
	tests/copy-refuses-a-disk-in-use.sh \
	tests/copy-refuses-a-target-that-is-too-small.sh \
	tests/copy-refuses-an-existing-target.sh \
	tests/copy-refuses-backing-files-outside-its-roots.sh \
	tests/copy-refuses-the-same-file.sh \
	tests/copy-resumes-after-full-disk.sh \
	tests/copy-survives-a-kill-at-every-step.sh \
	tests/copy-survives-sigkill.sh \
	tests/ctrl-c-cancels-and-resumes.sh \
	tests/a-full-state-directory-is-told.sh \
	tests/file-size-limits-are-told.sh \
	tests/devices-are-not-overwritten-by-mistake.sh \
	tests/forced-copies-are-resumed.sh \
	tests/iscsi-copies-go-on.sh \
	tests/iscsi-targets-that-fail-are-told.sh \
	tests/iscsi-units-are-copied-both-ways.sh \
	tests/other-formats-on-devices.sh \
	tests/preallocation-survives-a-kill.sh \
	tests/read-back-catches-corruption.sh \
	tests/preempting-aborts-what-was-on-its-way.sh \
	tests/reservations-say-who-may-write.sh \
	tests/salvage-lists-bad-ranges.sh \
	tests/sources-are-deleted-only-where-they-are.sh \
	tests/targets-are-named-safely.sh \
	tests/vmdk-copies-go-on.sh

# Disks of running machines.
dist_check_SCRIPTS += \
	tests/failback-brings-the-machine-back.sh \
	tests/failback-of-a-machine-that-is-off.sh \
	tests/failback-proves-what-it-goes-back-to.sh \
	tests/failback-survives-a-kill-at-every-step.sh \
	tests/failback-windows-end-by-themselves.sh \
	tests/a-killed-move-leaves-devices-right.sh \
	tests/a-killed-move-leaves-no-half-chain.sh \
	tests/a-killed-move-goes-on.sh \
	tests/a-pause-ships-only-what-was-written.sh \
	tests/a-pause-that-takes-too-long-is-given-up.sh \
	tests/moves-survive-a-crash-at-every-step.sh \
	tests/moves-go-on-after-a-kill-at-every-step.sh \
	tests/move-a-machine-that-is-too-busy.sh \
	tests/move-a-running-disk.sh \
	tests/move-block-devices.sh \
	tests/move-brings-the-machine-back-from-a-bad-target.sh \
	tests/move-disks-of-any-size.sh \
	tests/move-disks-of-iscsi-targets.sh \
	tests/move-disks-of-servers.sh \
	tests/move-flattens-a-chain.sh \
	tests/move-keeps-a-chain.sh \
	tests/move-is-rolled-back-when-the-target-lies.sh \
	tests/move-leaves-a-paused-machine-paused.sh \
	tests/move-never-fills-a-datastore.sh \
	tests/move-notices-what-happens.sh \
	tests/move-parks-when-the-pause-would-be-too-long.sh \
	tests/move-refuses-devices-in-use.sh \
	tests/move-quiesces-the-guest.sh \
	tests/move-refuses-what-it-cannot-move.sh \
	tests/move-rolls-back-on-ctrl-c.sh \
	tests/move-shows-its-pace.sh \
	tests/move-survives-what-happens-to-the-machine.sh \
	tests/move-two-disks-at-once.sh \
	tests/move-without-a-pause.sh \
	tests/plan-forecasts-a-move.sh \
	tests/the-old-name-never-lies.sh

include tests/guest/local.mk
include tests/helpers/local.mk
include tests/unit/local.mk
include tests/fuzz/local.mk

# The same tests with more seeds, more rounds and larger disks: hours, not minutes.
.PHONY: check-long
check-long:
	BLOCKMIG_LONG=1 $(MAKE) $(AM_MAKEFLAGS) check

# Disks on servers.
EXTRA_DIST += tests/helpers/nbd-bitmap-server.py
dist_check_SCRIPTS += \
	tests/dirty-bitmaps-of-servers-are-read.sh \
	tests/nbd-exports-are-copied-both-ways.sh \
	tests/nbd-over-tls.sh \
	tests/nbd-servers-fail-in-order.sh \
	tests/servers-flush-while-a-copy-goes-on.sh

# Agents.  What waits longest comes first: nothing else has to wait for it in the end.
EXTRA_DIST += tests/lib-agent.sh tests/lib-libvirt.sh tests/lib-tls.sh tests/make-frames.py tests/helpers/activate.py tests/helpers/ending-agent.py tests/helpers/kept-connection.py tests/helpers/lying-agent.py \
	tests/helpers/rewriting-proxy.py tests/helpers/slow-clients.py
dist_check_SCRIPTS += \
	tests/layers-that-libvirt-forgot-are-found.sh \
	tests/agents-bound-what-clients-take.sh \
	tests/agents-digest-the-medium.sh \
	tests/agents-end-in-order.sh \
	tests/agents-lead-migrations.sh \
	tests/agents-let-in-whom-they-know.sh \
	tests/agents-of-other-versions-are-refused.sh \
	tests/agents-read-their-configuration-anew.sh \
	tests/agents-serve-only-their-datastores.sh \
	tests/agents-start-when-asked.sh \
	tests/agents-take-nothing-but-states-of-tpms.sh \
	tests/copies-across-hosts-go-on.sh \
	tests/disks-that-both-hosts-reach-are-not-copied.sh \
	tests/agents-look-only-at-units-they-may.sh \
	tests/luns-change-hands-with-their-machine.sh \
	tests/block-devices-become-files-on-other-hosts.sh \
	tests/chains-of-domains-are-kept.sh \
	tests/machines-bring-their-nvram.sh \
	tests/machines-bring-their-tpm.sh \
	tests/machines-fail-back-after-kills.sh \
	tests/machines-fail-back-from-other-hosts.sh \
	tests/machines-find-what-they-left-behind.sh \
	tests/migrations-go-on-with-what-is-copied.sh \
	tests/machines-go-to-other-hosts.sh \
	tests/machines-leave-nothing-behind.sh \
	tests/machines-may-go-off-once-they-arrived.sh \
	tests/machines-survive-migrations-that-fail.sh \
	tests/migrations-bear-slow-links.sh \
	tests/migrations-bear-what-happens-to-hosts.sh \
	tests/domains-fail-back-on-one-host.sh \
	tests/domains-move-on-one-host.sh \
	tests/pauses-of-domains-are-kept.sh \
	tests/copies-cross-hosts.sh \
	tests/seeds-spare-the-link.sh \
	tests/tunnels-carry-frames.sh
