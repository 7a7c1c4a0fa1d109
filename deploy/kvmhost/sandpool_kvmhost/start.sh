#!/bin/busybox sh
# Second half of the start, inside the real root. Stays as the first process: reaps orphans, keeps the SSH server.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
say() { echo "kvmhost: $*" >/dev/console; }
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
busybox mount -t tmpfs -o mode=1777 shm /dev/shm
busybox mount -t tmpfs -o mode=755 run /run
busybox mount -t cgroup2 -o favordynmods cgroup /sys/fs/cgroup || busybox mount -t cgroup2 cgroup /sys/fs/cgroup
echo "+cpu +memory +pids +io" >/sys/fs/cgroup/cgroup.subtree_control
busybox mkdir -p /run/sshd /sys/fs/cgroup/runs
echo "+cpu +memory +pids +io" >/sys/fs/cgroup/runs/cgroup.subtree_control
busybox hostname kvmhost
say "loading kvm_amd"
modprobe -a kvm_amd virtio_net
for n in $(busybox seq 100); do [ -e /dev/kvm ] && break; busybox sleep 0.05; done
busybox chgrp kvm /dev/kvm && busybox chmod 660 /dev/kvm || say "no /dev/kvm"
ip link set lo up
for n in $(busybox seq 100); do [ -e /sys/class/net/eth0 ] && break; busybox sleep 0.05; done
# The only thing out there is the way in.
ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up || say "no network"
ulimit -n 65536

# A host that nobody uses ends.
idle_limit=$(busybox sed -n 's/.*kvmhost.idle_minutes=\([0-9]*\).*/\1/p' /proc/cmdline)
idle=0
while busybox sleep 60; do
  if [ -n "$(ss -Htn state established sport = :22)" ]; then idle=0; else idle=$((idle + 1)); fi
  [ "$idle" -lt "${idle_limit:-120}" ] || { say "idle for $idle minutes"; busybox poweroff -f; }
done &

say "ready"
# The console's log stays short: from now on only a dying kernel speaks there.
dmesg -n 1
while :; do
  /usr/sbin/sshd -D >/dev/null 2>&1
  busybox sleep 1
done
