"""A host with a working /dev/kvm for machines that have none: Debian under QEMU with an emulated AMD processor."""
