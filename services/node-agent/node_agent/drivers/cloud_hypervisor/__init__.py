"""Cloud Hypervisor: the driver of hosts with KVM."""
