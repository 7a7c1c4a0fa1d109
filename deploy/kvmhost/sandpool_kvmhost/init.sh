#!/bin/busybox sh
# First process of the emulated host: a read-only root, a disk over it for everything that is written.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /ro /disk /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order

wait_for() { n=0; while [ ! -b "$1" ] && [ $n -lt 200 ]; do n=$((n + 1)); sleep 0.02; done; [ -b "$1" ]; }
wait_for /dev/vda && wait_for /dev/vdb || { echo "kvmhost: no disks"; poweroff -f; }
mount -t erofs -o ro /dev/vda /ro && mount -t ext4 -o noatime /dev/vdb /disk || { echo "kvmhost: no root"; poweroff -f; }
mkdir -p /disk/upper /disk/work /disk/root /disk/tmp
cp -a /ro/root/. /disk/root
chmod 700 /disk/root
chmod 1777 /disk/tmp
mount -t overlay -o lowerdir=/ro,upperdir=/disk/upper,workdir=/disk/work overlay /root
# What VMMs map and lock is on a plain file system, as on other hosts.
mount --bind /disk/root /root/root
mount --bind /disk/tmp /root/tmp
for tree in proc sys dev; do mount --move /$tree /root/$tree; done
exec switch_root /root /opt/kvmhost/start.sh
