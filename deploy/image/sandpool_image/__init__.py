"""Builds the guest image: kernel, initramfs and read-only root."""
