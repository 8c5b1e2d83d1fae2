#!/usr/bin/env bash
# A cluster of machines on one machine, for as long as a command runs.
#
#     tests/tune/cluster/lab.sh FOLDER NODES COMMAND...
#
# A machine is a network, a PID and a mount namespace with an sshd: 10.77.0.2, 10.77.0.3 and so on. They hang on a bridge
# with no way out, whose own end, 10.77.0.1, is where COMMAND runs, in namespaces too. FOLDER/key logs in to each as
# root; FOLDER/nodeN.pid is the process, seen from COMMAND, that keeps 10.77.0.N alive. They see this machine's files,
# but have a /run, a /dev/shm and a home of their own, and what is written to /tmp outside FOLDER is gone in the end.
# When COMMAND ends, so does every process in the lab. Needs root, iproute2, openssh-server and overlayfs.
set -euo pipefail

NAMESPACES=(--net --pid --mount --uts --fork --kill-child --mount-proc)

await() { # until a command succeeds, ten seconds at most
    for _ in $(seq 200); do
        if "$@" 2>/dev/null; then return; fi
        sleep 0.05
    done
    echo "lab: waited in vain for: $*" >&2
    exit 1
}

has_own_network() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

answers() { (exec 3<>"/dev/tcp/$1/22"); }

make_lab() {
    local folder=$1 nodes=$2
    shift 2
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    mkdir -p /run/folder /run/written /run/work "$folder/home"
    mount --bind "$folder" /run/folder
    mount -t overlay overlay -o lowerdir=/tmp,upperdir=/run/written,workdir=/run/work /tmp
    mkdir -p "$folder"
    mount --bind /run/folder "$folder"
    export HOME=$folder/home
    ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
    ip link set lo up
    ip link add lab type bridge
    ip address add 10.77.0.1/24 dev lab
    ip link set lab up
    for node in $(seq 2 $((nodes + 1))); do
        unshare "${NAMESPACES[@]}" "$0" --node "$folder" "$node" &
        echo $! >"$folder/node$node.pid"
        await has_own_network $!
        ip link add "lab$node" type veth peer name eth0 netns $!
        ip link set "lab$node" master lab up
    done
    for node in $(seq 2 $((nodes + 1))); do
        await answers "10.77.0.$node"
    done
    touch "$folder/ready"
    "$@"
}

make_node() {
    local folder=$1 node=$2
    mount --make-rprivate /
    hostname "node$node"
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /dev/shm
    mkdir -p /run/sshd /run/etc /run/home/.ssh
    cp "$folder/key.pub" /run/home/.ssh/authorized_keys
    # Another home for root; and an account that is locked would let no key in.
    sed 's,^\(root:.*\):/root:,\1:/run/home:,' /etc/passwd >/run/etc/passwd
    sed 's,^root:[^:]*:,root:*:,' /etc/shadow >/run/etc/shadow
    mount --bind /run/etc/passwd /etc/passwd
    mount --bind /run/etc/shadow /etc/shadow
    ssh-keygen -q -t ed25519 -N '' -f /run/host_key
    ip link set lo up
    await ip link show dev eth0 >/dev/null
    ip address add "10.77.0.$node/24" dev eth0
    ip link set eth0 up
    ip route add default via 10.77.0.1 # Ray takes for its own address the one that would go out into the world
    exec "$(command -v sshd)" -D -e -f /dev/null -h /run/host_key -o "ListenAddress 10.77.0.$node" -o 'UsePAM no' \
        -o 'StrictModes no' -o 'PasswordAuthentication no' -o 'SetEnv RAY_TMPDIR=/run/ray' >"$folder/node$node.log" 2>&1
}

case $1 in
    --lab) shift && make_lab "$@" ;;
    --node) shift && make_node "$@" ;;
    *) exec unshare "${NAMESPACES[@]}" "$0" --lab "$@" ;;
esac
