#!/bin/busybox sh
# Second half of the start, inside the real root. Stays as the first process: reaps orphans, restarts the agent.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/mnt/data
export PYTHONPATH=/opt/sandpool PYTHONDONTWRITEBYTECODE=1
# Of user code: what libraries write for themselves is not among its files.
export MPLCONFIGDIR=/tmp/matplotlib IPYTHONDIR=/tmp/ipython USER=sandbox LOGNAME=sandbox
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs -o mode=1777 shm /dev/shm
busybox mount -t tmpfs -o mode=755 run /run
# Dynamic modes: moving a process into its group is cheap, and every command does it once.
busybox mount -t cgroup2 -o favordynmods cgroup /sys/fs/cgroup || busybox mount -t cgroup2 cgroup /sys/fs/cgroup
# The gate that user code is started through: static, so it starts quickly, and not readable, so that the kernel lets
# nobody trace it before it has become the user's program.
busybox mkdir -p /run/sandpool
busybox cp /usr/bin/busybox /run/sandpool/gate
busybox chmod 0711 /run/sandpool/gate
busybox ip link set lo up
# What would wake an idle VM every second or so, for nothing.
echo 0 > /proc/sys/vm/compaction_proactiveness
echo 60 > /proc/sys/vm/stat_interval
for limit in /sys/block/vd?/queue/wbt_lat_usec; do echo 0 > "$limit"; done
cd /mnt/data
while :; do
  python3 -m guest_agent
  echo "sandpool: guest agent ended with $?"
  busybox sleep 0.2
done
