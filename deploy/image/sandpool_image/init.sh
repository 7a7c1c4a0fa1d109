#!/bin/busybox sh
# First process of the guest: finds the root, puts a writable layer over it, and hands over.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /ro /scratch /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order

wait_for() { n=0; while [ ! -b "$1" ] && [ $n -lt 200 ]; do n=$((n + 1)); sleep 0.02; done; [ -b "$1" ]; }
if [ -d /sys/bus/nd ] && wait_for /dev/pmem0; then
  mount -t erofs -o ro,dax=always /dev/pmem0 /ro || mount -t erofs -o ro /dev/pmem0 /ro
  scratch=/dev/vda
else
  wait_for /dev/vda && mount -t erofs -o ro /dev/vda /ro
  scratch=/dev/vdb
fi
wait_for "$scratch" && mount -t ext4 -o noatime "$scratch" /scratch || { echo "sandpool: no scratch disk"; poweroff -f; }
mkdir -p /scratch/upper /scratch/work /scratch/data
chown 1000:1000 /scratch/data
mount -t overlay -o lowerdir=/ro,upperdir=/scratch/upper,workdir=/scratch/work overlay /root
mkdir -p /root/mnt/data
mount --bind /scratch/data /root/mnt/data
for tree in proc sys dev; do mount --move /$tree /root/$tree; done
exec switch_root /root /opt/sandpool/start
