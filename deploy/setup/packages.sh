#!/bin/sh
# Installs what sandpool needs of the distribution (Debian 12 and 13), and the packages named as arguments.
# Idempotent; does nothing when all is there.
set -eu

packages="qemu-system-x86 mmdebstrap erofs-utils e2fsprogs cpio xz-utils busybox-static debian-archive-keyring
    zstd kmod uidmap python3 python3-venv $*"

fail() {
    echo "sandpool setup: $*" >&2
    exit 1
}

ID="" ID_LIKE=""
[ ! -r /etc/os-release ] || . /etc/os-release
case " $ID $ID_LIKE " in
*" debian "*) ;;
*) fail "this is not Debian; install what these Debian packages hold by other means:" $packages ;;
esac

# Each known package is one line; unknown ones are only complained about on stderr, with a failing status.
known=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $packages 2>/dev/null || true)
missing=""
for package in $packages; do
    case "
$known
" in
    *"
installed $package
"*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "not root, and there is no sudo; as root run: apt-get install$missing"
    as_root="sudo"
fi
echo "sandpool setup: installing$missing" >&2
# Through env, as sudo drops the environment of the caller.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q || fail "apt-get update failed"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing ||
    fail "apt-get install failed; it was to install:$missing"
