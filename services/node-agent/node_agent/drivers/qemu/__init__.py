"""QEMU: KVM where it is proven, software emulation else."""
