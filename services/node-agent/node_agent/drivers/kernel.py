"""What the kernel of every guest is told, whoever boots it."""

CMDLINE = (
    "quiet loglevel=4 panic=-1 tsc=reliable no_timer_check random.trust_cpu=on cryptomgr.notests "
    # Accounting that nobody reads, and modules without a policy: both are in the way of every call.
    "psi=0 lsm=landlock,yama"
)
