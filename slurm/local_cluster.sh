#!/usr/bin/env bash
#
# local_cluster.sh - a real, throwaway, multi-node SLURM cluster on ONE machine.
#
#   local_cluster.sh up [NODES]     start (default 2 nodes: n1 n2); returns when all are idle.
#                                   No-op when it is already up with that many nodes.
#   local_cluster.sh down           cancel all jobs, stop all daemons, remove the network.
#                                   No-op when it is not up. Logs stay in $CLUSTER_DIR/log.
#   local_cluster.sh status [NODES] 0 = up and every node usable (and NODES of them, if given),
#                                   3 = down, 1 = degraded.
#   local_cluster.sh lose NODE      a machine vanishes (lose 2: n2): every process on it dies. With
#                                   `lose NODE slurmd` only its daemon does. `back NODE` repairs it.
#   local_cluster.sh env            shell code that points the SLURM clients at the cluster:
#                                       eval "$(local_cluster.sh env)"; sinfo
#
# It runs munged + slurmctld + one slurmd per "node". No systemd; configuration, keys, spool
# directories and logs all live in $CLUSTER_DIR. Nothing in /etc is used, and nothing there is
# changed except by apt-get and in the /etc/hosts case below. Must be run as root; jobs may be submitted by anybody.
# Needs (Debian/Ubuntu) slurmctld slurmd slurm-client munge iproute2; `up` installs
# what is missing.
#
# Two ways of faking nodes (CLUSTER_MODE):
#   netns  every slurmd lives in its own network + UTS + mount namespace, i.e. every node has its
#          own IP, its own ports, its own hostname and an /etc/hosts that knows all the nodes.
#          Closest to the real thing. Needs CAP_NET_ADMIN + CAP_SYS_ADMIN, bridge and veth.
#   ports  `slurmd -N nX` on distinct ports of the same host (one IP, one hostname, SHARED ports).
#          Needs CAP_SYS_ADMIN for a private /etc/hosts; where that is missing the node names are
#          appended to the real /etc/hosts between two marker lines and removed again by `down`.
#   auto   netns if this machine can do it, otherwise ports (default).
# The file system and the process table are shared by all nodes in both modes.
#
# Environment (all optional; `up` saves them, later verbs only need CLUSTER_DIR):
#   CLUSTER_DIR         state directory                      /tmp/ffcv_r50-cluster
#   CLUSTER_MODE        auto | netns | ports                 auto
#   CLUSTER_CPUS        CPUs each node pretends to have      8
#   CLUSTER_MEM_MB      memory each node pretends to have    65536
#   CLUSTER_GPUS        fake GPUs per node (gres/gpu)        2
#   CLUSTER_PORT        base TCP port                        28617
#   CLUSTER_SUBNET      /24 of the bridge in netns mode      10.217.83
#   CLUSTER_GRACE       GraceTime (s) of partition `main`    15
#   CLUSTER_REQUEUE_DELAY  seconds a requeued job waits,     10
#                         at least 5 (SLURM's own default is 120)
#   CLUSTER_KILL_WAIT   seconds from SIGTERM to SIGKILL      5
#                         (SLURM's own default is 30)
#   CLUSTER_TIMEOUT     seconds `up` waits for each step     60
#   CLUSTER_INSTALL     0 = never call apt-get               1
#
# Partitions: `main` (default, preemptable: its jobs are REQUEUED when `urgent` needs the nodes,
# after a USR-signal/SIGTERM and GraceTime seconds) and `urgent` (higher priority tier).

# shellcheck disable=SC2016,SC2115  # sh -c '...' with "$1" is meant; $DIR is checked by cmd_up

set -euo pipefail
export PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"

DIR=${CLUSTER_DIR:-/tmp/ffcv_r50-cluster}
MODE=${CLUSTER_MODE:-auto}
CPUS=${CLUSTER_CPUS:-8}
MEM_MB=${CLUSTER_MEM_MB:-65536}
GPUS=${CLUSTER_GPUS:-2}
PORT=${CLUSTER_PORT:-28617}
SUBNET=${CLUSTER_SUBNET:-10.217.83}
GRACE=${CLUSTER_GRACE:-15}
REQUEUE_DELAY=${CLUSTER_REQUEUE_DELAY:-10}
KILL_WAIT=${CLUSTER_KILL_WAIT:-5}
TIMEOUT=${CLUSTER_TIMEOUT:-60}
INSTALL=${CLUSTER_INSTALL:-1}
NODES=2

# Interface names may have 15 characters at most, and two state directories must not fight over
# one name, so the names carry a checksum of the directory.
[[ $DIR == /* ]] || { echo "local_cluster: CLUSTER_DIR must be absolute: $DIR" >&2; exit 2; }
TAG=$(printf '%s' "$DIR" | cksum | awk '{printf "%05x", $1 % 1048576}')
BRIDGE="slb$TAG"
MARKER=.made-by-local_cluster.sh
MARK="# local_cluster.sh $TAG"

HOST=$(uname -n)
HOST=${HOST%%.*}
CONF="$DIR/etc/slurm.conf"
RUN="$DIR/run"
LOG="$DIR/log"
SOCKET="$RUN/munge.socket"

say() { echo "local_cluster: $*" >&2; }
die() { say "ERROR: $*"; exit 1; }

# The name of $DIR is known to everybody, root writes into it, and what lies in it is run as shell code.
check_dir() {
  [[ ! -L $DIR ]] || die "$DIR is a link: remove it, or choose another CLUSTER_DIR"
  [[ ! -e $DIR || -O $DIR || $(stat -c %u "$DIR") == 0 ]] ||
    die "$DIR is somebody else's: remove it, or choose another CLUSTER_DIR"
}

# ------------------------------------------------------------------ processes, by pid file only
# A pid file holds "PID STARTTIME": the start time (field 22 of /proc/PID/stat) makes sure that a
# recycled pid is never taken for ours.

starttime() { # PID -> start time, empty when there is no such (or only a zombie) process
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  stat=${stat##*) }
  [[ ${stat%% *} == Z ]] && return 0
  awk '{print $20}' <<<"$stat"
}

alive() { # NAME -> true when the daemon of that pid file runs
  local pid start
  [[ -f "$RUN/$1.pid" ]] || return 1
  read -r pid start <"$RUN/$1.pid" || return 1
  [[ -n $start && $(starttime "$pid") == "$start" ]]
}

spawn() { # NAME COMMAND... : start in the background, detached from terminal, pipes and lock
  local name=$1 pid
  shift
  # fd 9 is the lock: a daemon that inherited it would keep the script locked out for ever.
  # TAG in the environment is inherited by slurmstepd: it is how leftovers are recognised.
  env -u SLURM_CONF CLUSTER_TAG="$TAG" setsid "$@" </dev/null >>"$LOG/$name.out" 2>&1 9>&- &
  pid=$!
  disown "$pid"
  echo "$pid $(starttime "$pid")" >"$RUN/$name.pid"
}

stop() { # NAME : SIGTERM, then SIGKILL after 10 s
  local pid start i
  if alive "$1"; then
    read -r pid start <"$RUN/$1.pid"
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
      alive "$1" || break
      sleep 0.1
    done
    if alive "$1"; then
      say "$1 (pid $pid) ignores SIGTERM, killing it"
      kill -KILL "$pid" 2>/dev/null || true
      sleep 0.3
    fi
  fi
  rm -f "$RUN/$1.pid"
}

# Processes of our jobs that outlived slurmd, by pid: whatever lives in our network namespaces;
# slurmstepd, which inherits our TAG; tasks, which have our SLURM_CONF and the name of a node.
# (The caller's own shell may have SLURM_CONF too, but only slurmd sets SLURMD_NODENAME.)
leftovers() {
  local d env name
  {
    for name in $(our_netns); do ip netns pids "$name" || true; done
    for d in /proc/[0-9]*; do
      env=$(tr '\0' '\n' <"$d/environ") || continue
      if { grep -qx "CLUSTER_TAG=$TAG" <<<"$env" && grep -q slurmstepd "$d/comm"; } ||
        { grep -qx "SLURM_CONF=$CONF" <<<"$env" && grep -q '^SLURMD_NODENAME=' <<<"$env"; }; then
        echo "${d#/proc/}"
      fi
    done
  } 2>/dev/null | sort -un
}

wait_for() { # DESCRIPTION DAEMON COMMAND... : poll until COMMAND succeeds; DAEMON must stay alive
  local what=$1 daemon=$2 i
  shift 2
  for ((i = 0; i < TIMEOUT * 5; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    alive "$daemon" || { show_log "$daemon"; die "$daemon died while waiting for: $what"; }
    sleep 0.2
  done
  show_log "$daemon"
  die "timed out after $TIMEOUT s waiting for: $what"
}

show_log() {
  local f
  for f in "$LOG/$1.log" "$LOG/$1.out"; do
    [[ -s $f ]] && { say "--- last lines of $f"; tail -n 15 "$f" >&2; }
  done
  return 0
}

# ------------------------------------------------------------------------------------- packages

install_packages() {
  local need=() pkg
  command -v munged >/dev/null || need+=(munge)
  command -v slurmctld >/dev/null || need+=(slurmctld)
  command -v slurmd >/dev/null || need+=(slurmd)
  command -v sbatch >/dev/null || need+=(slurm-client)
  command -v ip >/dev/null || need+=(iproute2)
  [[ ${#need[@]} -gt 0 ]] || return 0
  [[ $INSTALL == 1 ]] || die "missing packages: ${need[*]} (CLUSTER_INSTALL=0)"
  command -v apt-get >/dev/null || die "missing: ${need[*]}, and there is no apt-get here"
  say "installing ${need[*]}"
  # Packages that start a service ask policy-rc.d first; 101 = "do not start anything".
  local policy=/usr/sbin/policy-rc.d mine=0
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && mine=1
  fi
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300)
  local rc=0
  { "${apt[@]}" install "${need[@]}" ||
    { apt-get -qq update && "${apt[@]}" install "${need[@]}"; }; } >"$LOG/apt.out" 2>&1 9>&- || rc=$?
  [[ $mine == 1 ]] && rm -f $policy
  [[ $rc == 0 ]] || { tail -n 15 "$LOG/apt.out" >&2; die "could not install ${need[*]}"; }
  for pkg in munged slurmctld slurmd sbatch; do
    command -v $pkg >/dev/null || die "$pkg still missing after the installation"
  done
}

# -------------------------------------------------------------------------------------- network

ns() { echo "sl$TAG-n$1"; }  # namespace of node number $1
veth() { echo "sl$TAG-$1"; } # host end of its cable
our_netns() { ip netns list 2>/dev/null | awk '{print $1}' | grep "^sl$TAG-n[0-9]*$" || true; }

netns_possible() { # try the real thing once, leave nothing behind
  local ok=0 a="slp$TAG" b="slq$TAG"
  ip netns add "$a" 2>/dev/null || return 1
  ip link add "$b" type bridge 2>/dev/null &&
    ip link add "$b-a" type veth peer name "$b-b" 2>/dev/null &&
    ip link set "$b-b" netns "$a" 2>/dev/null &&
    nsenter --net="/run/netns/$a" unshare --uts --mount sh -c "hostname x && mount --bind /etc/hostname /etc/hosts" \
      2>/dev/null && ok=1
  ip link del "$b-a" 2>/dev/null || true
  ip link del "$b" 2>/dev/null || true
  ip netns del "$a" 2>/dev/null || true
  [[ $ok == 1 ]]
}

network_up() {
  local i
  {
    echo "127.0.0.1 localhost"
    if [[ $MODE == netns ]]; then
      echo "$SUBNET.1 $HOST"
      for ((i = 1; i <= NODES; i++)); do echo "$SUBNET.$((10 + i)) n$i"; done
    else
      echo "127.0.0.1 $HOST"
      for ((i = 1; i <= NODES; i++)); do echo "127.0.0.1 n$i"; done
    fi
  } >"$DIR/etc/hosts"
  # Nodes have no way out. A resolver that refuses at once beats one that times out: torch looks
  # up the name of every peer, which would cost 10 s per process group.
  echo "nameserver 127.0.0.1" >"$DIR/etc/resolv.conf"

  if [[ $MODE == ports ]]; then
    if ! unshare --mount true 2>/dev/null; then
      say "no mount namespaces here: adding the node names to /etc/hosts until 'down'"
      for ((i = 1; i <= NODES; i++)); do echo "127.0.0.1 n$i $MARK"; done >>/etc/hosts
    fi
    return
  fi

  if ip -4 -o addr show | grep -qF " $SUBNET."; then
    die "$SUBNET.0/24 is in use on this machine: choose another CLUSTER_SUBNET"
  fi
  ip link add "$BRIDGE" type bridge
  ip addr add "$SUBNET.1/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  for ((i = 1; i <= NODES; i++)); do
    ip netns add "$(ns $i)"
    ip link add "$(veth $i)" type veth peer name eth0 netns "$(ns $i)"
    ip link set "$(veth $i)" master "$BRIDGE" up
    ip -n "$(ns $i)" addr add "$SUBNET.$((10 + i))/24" dev eth0
    ip -n "$(ns $i)" link set lo up
    ip -n "$(ns $i)" link set eth0 up
  done
}

network_down() {
  local i name
  if command -v ip >/dev/null; then
    for name in $(our_netns); do
      ip netns del "$name" || true # takes its end of the veth pair, hence the pair, with it
    done
    for name in $(ip -o link show 2>/dev/null | awk -F': ' '{print $2}' | sed 's/@.*//' | grep "^sl$TAG-"); do
      ip link del "$name" 2>/dev/null || true
    done
    ip link del "$BRIDGE" 2>/dev/null || true
  fi
  if grep -qF "$MARK" /etc/hosts; then # rewrite in place: in containers it is a bind mount
    local kept
    kept=$(grep -vF "$MARK" /etc/hosts)
    printf '%s\n' "$kept" >/etc/hosts
  fi
}

check_network() { # every node must be able to open a TCP connection to the next one
  local i j
  [[ $MODE == netns ]] || return 0
  for ((i = 1; i <= NODES; i++)); do
    j=$((i % NODES + 1))
    nsenter --net="/run/netns/$(ns $i)" timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$SUBNET.$((10 + j))" "$((PORT + 1))" 2>/dev/null ||
      die "n$i cannot reach n$j: are bridges filtered here (iptables FORWARD)? Try CLUSTER_MODE=ports"
  done
}

in_node() { # NODE-NUMBER COMMAND... : print the command line that runs COMMAND on that node
  # nsenter and unshare (without --fork) and exec all keep the pid, so $! stays right.
  local i=$1
  shift
  if [[ $MODE == netns ]]; then
    NODE_CMD=(nsenter --net="/run/netns/$(ns "$i")" unshare --uts --mount sh -c
      'hostname "$1" && mount --bind "$2/hosts" /etc/hosts &&
       { ! [ -e /etc/resolv.conf ] || mount --bind "$2/resolv.conf" /etc/resolv.conf; } && shift 2 && exec "$@"' \
      sh "n$i" "$DIR/etc" "$@")
  elif unshare --mount true 2>/dev/null; then
    NODE_CMD=(unshare --mount sh -c 'mount --bind "$1" /etc/hosts && shift && exec "$@"' sh "$DIR/etc/hosts" "$@")
  else
    NODE_CMD=("$@")
  fi
}

# ------------------------------------------------------------------------------- configuration

slurm_version() { slurmd -V | sed 's/^[^0-9]*//' | awk -F. '{print $1 * 100 + $2}'; } # 22.05.8 -> 2205

write_config() {
  local ctl_addr node_lines="" i gres="" gres_types=""
  if [[ $MODE == netns ]]; then ctl_addr=$SUBNET.1; else ctl_addr=127.0.0.1; fi

  if ((GPUS > 0)); then # links to /dev/null stand in for /dev/nvidia*: SLURM wants device files
    gres="Gres=gpu:$GPUS"
    gres_types="GresTypes=gpu"
    mkdir -p "$DIR/fakegpu"
    for ((i = 0; i < GPUS; i++)); do ln -sf /dev/null "$DIR/fakegpu/nvidia$i"; done
    echo "AutoDetect=off"$'\n'"Name=gpu File=$DIR/fakegpu/nvidia[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
  fi

  for ((i = 1; i <= NODES; i++)); do
    if [[ $MODE == netns ]]; then
      node_lines+="NodeName=n$i NodeAddr=$SUBNET.$((10 + i)) Port=$((PORT + 1))"
    else
      node_lines+="NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1 + i))"
    fi
    node_lines+=" Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM_MB $gres State=UNKNOWN"$'\n'
    mkdir -p "$DIR/spool/n$i"
  done

  # Each `up` starts with fresh job ids, above those of the last `up`: submitit keys its files by
  # job id, and a recycled id would let it read the result of an older job.
  cat >"$CONF" <<EOF
# written by local_cluster.sh, mode $MODE
ClusterName=local
SlurmctldHost=$HOST($ctl_addr)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job must wait before it may start again: 120 s by default
AuthInfo=socket=$SOCKET,cred_expire=$REQUEUE_DELAY
StateSaveLocation=$DIR/spool/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.native.pid
SlurmdPidFile=$RUN/slurmd-%n.native.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
# the nodes may claim more CPUs and memory than this machine has
SlurmdParameters=config_overrides
$gres_types
FirstJobId=$(($(date +%s) % 10000000 + 1000))
ReturnToService=2
SlurmctldTimeout=60
# a node that is silent for so long is down (SLURM's own default is 300)
SlurmdTimeout=20
MessageTimeout=20
TCPTimeout=5
InactiveLimit=0
# seconds between SIGTERM and SIGKILL at the time limit, at scancel and at a requeue
KillWait=$KILL_WAIT
JobRequeue=1
# the scheduler acts at once rather than in batches
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
# higher tiers requeue lower ones; a preempted job gets its --signal (if any) at once
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobCompType=jobcomp/filetxt
JobCompLoc=$LOG/jobcomp.log
EOF
  echo "AccountingStorageType=accounting_storage/none" >>"$CONF"
  {
    printf '%s' "$node_lines"
    echo "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE DefaultTime=10 MaxTime=INFINITE State=UP"
    echo "PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=10 MaxTime=INFINITE State=UP"
  } >>"$CONF"

  # slurmd loads a cgroup plugin even though nothing here uses cgroups. Autodetection dies where
  # /sys/fs/cgroup is odd (containers); 22.05's v1 plugin is passive, 23.02 can turn it all off.
  if (($(slurm_version) >= 2302)); then
    echo "CgroupPlugin=disabled" >"$DIR/etc/cgroup.conf"
  else
    echo "CgroupPlugin=cgroup/v1" >"$DIR/etc/cgroup.conf"
  fi
}

# --------------------------------------------------------------------------------------- verbs

nodes_idle() { # true when all nodes answer and are idle
  local n
  n=$(SLURM_CONF=$CONF sinfo -h -N -p main -t idle -o %N | sort -u | wc -l)
  [[ $n == "$NODES" ]]
}

nodes_usable() { # idle, or busy with jobs
  local n
  n=$(SLURM_CONF=$CONF sinfo -h -N -p main -t idle,alloc,mix,comp -o '%N %T' 2>/dev/null |
    grep -v '[*]' | awk '{print $1}' | sort -u | wc -l)
  [[ $n == "$NODES" ]]
}

daemons() { # in the order in which they are started
  echo munged
  echo slurmctld
  local i
  for ((i = 1; i <= NODES; i++)); do echo "slurmd-n$i"; done
}

all_alive() {
  local d
  for d in $(daemons); do alive "$d" || return 1; done
}

cmd_up() {
  [[ ${1:-2} =~ ^[1-9][0-9]?$ ]] || die "number of nodes must be 1..99, not '${1:-}'"
  local want=${1:-2} i t0=$SECONDS
  [[ $EUID == 0 ]] || die "must run as root"

  mkdir -p "$DIR"
  check_dir
  # This script deletes sub-directories of $DIR, so it only touches one that it made itself.
  if [[ ! -f "$DIR/$MARKER" && -n $(ls -A "$DIR") ]]; then
    die "$DIR exists, is not empty and was not made by this script: choose another CLUSTER_DIR"
  fi
  chmod 755 "$DIR"
  : >"$DIR/$MARKER"
  exec 9>"$DIR/lock"
  flock -w 300 9 || die "another local_cluster.sh holds $DIR/lock"

  if [[ -f "$DIR/saved" ]]; then
    # shellcheck disable=SC1091
    . "$DIR/saved"
    if all_alive && nodes_usable; then
      [[ $NODES == "$want" ]] || die "already up with $NODES nodes: run 'down' first to have $want"
      say "already up with $NODES nodes"
      return 0
    fi
    say "found a cluster that is not healthy: restarting it"
    teardown
    MODE=${CLUSTER_MODE:-auto}
  fi

  NODES=$want
  umask 022
  rm -rf "$DIR/etc" "$DIR/run" "$DIR/spool" "$DIR/log" "$DIR/fakegpu"
  mkdir -p "$DIR/etc" "$RUN" "$LOG" "$DIR/spool/ctld"
  install_packages

  [[ $MODE == auto ]] && { if netns_possible; then MODE=netns; else MODE=ports; fi; }
  [[ $MODE == netns || $MODE == ports ]] || die "CLUSTER_MODE must be auto, netns or ports"
  if [[ $MODE == netns ]] && ! netns_possible; then die "network namespaces do not work here"; fi

  printf 'NODES=%s\nMODE=%s\nSUBNET=%s\nPORT=%s\n' "$NODES" "$MODE" "$SUBNET" "$PORT" >"$DIR/saved"
  # From here on a failure, or a signal, undoes what was done (the logs stay).
  trap 'rc=$?; trap - EXIT; say "up failed, cleaning up (logs: $LOG)"; teardown; exit $((rc ? rc : 1))' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM

  write_config
  network_up

  dd if=/dev/urandom of="$DIR/etc/munge.key" bs=1024 count=1 status=none
  chmod 400 "$DIR/etc/munge.key"
  spawn munged munged --foreground --key-file="$DIR/etc/munge.key" --socket="$SOCKET" \
    --pid-file="$RUN/munged.native.pid" --log-file="$LOG/munged.log" --seed-file="$RUN/munge.seed"
  wait_for "munge credentials" munged sh -c "munge -n -S '$SOCKET' | unmunge -S '$SOCKET'"

  spawn slurmctld slurmctld -D -f "$CONF"
  wait_for "slurmctld" slurmctld sh -c "SLURM_CONF='$CONF' scontrol ping | grep -q UP"

  for ((i = 1; i <= NODES; i++)); do
    in_node $i slurmd -D -f "$CONF" -N "n$i"
    spawn "slurmd-n$i" "${NODE_CMD[@]}"
  done
  wait_for "node n1 to be up" slurmd-n1 sh -c "SLURM_CONF='$CONF' sinfo -h -N -n n1 -t idle -o %N | grep -q n1"
  for ((i = 2; i <= NODES; i++)); do
    wait_for "node n$i to be up" "slurmd-n$i" sh -c "SLURM_CONF='$CONF' sinfo -h -N -n n$i -t idle -o %N | grep -q n$i"
  done
  check_network
  nodes_idle || die "not all nodes are idle: $(SLURM_CONF=$CONF sinfo -h -N -o '%N=%T' | tr '\n' ' ')"

  trap - EXIT HUP INT TERM
  say "up in $((SECONDS - t0)) s: $NODES nodes, mode $MODE, $(slurmd -V)"
  cmd_env
}

teardown() { # stops everything that pid files, namespaces and tags know about; safe to repeat
  local i p left=""
  if alive slurmctld; then
    # Jobs first: slurmstepd and the tasks survive the death of slurmd by design. KILL ends the
    # running ones without KillWait, the second scancel gets rid of those that are queued.
    left=$(SLURM_CONF=$CONF timeout 20 squeue -h -o %A 2>/dev/null | sort -u | tr '\n' ' ') || true
    if [[ -n $left ]]; then
      # shellcheck disable=SC2086
      SLURM_CONF=$CONF timeout 20 scancel --quiet --full --signal=KILL $left >/dev/null 2>&1 || true
      # shellcheck disable=SC2086
      SLURM_CONF=$CONF timeout 20 scancel --quiet $left >/dev/null 2>&1 || true
    fi
    for ((i = 0; i < 100; i++)); do
      [[ -z $(SLURM_CONF=$CONF timeout 5 squeue -h 2>/dev/null) ]] && break
      sleep 0.2
    done
  fi
  for p in "$RUN"/slurmd-n*.pid; do
    [[ $p == *.native.pid || ! -f $p ]] && continue
    p=${p##*/}
    stop "${p%.pid}"
  done
  stop slurmctld
  stop munged
  left=$(leftovers)
  if [[ -n $left ]]; then
    say "ending leftover job processes: $(tr '\n' ' ' <<<"$left")"
    # shellcheck disable=SC2086
    kill -KILL $left 2>/dev/null || true
  fi
  network_down
  rm -rf "$DIR/saved" "$DIR/run" "$DIR/spool" "$DIR/fakegpu"
}

cmd_down() {
  check_dir
  [[ -f "$DIR/$MARKER" ]] || { say "not up"; return 0; }
  [[ $EUID == 0 ]] || die "must run as root"
  exec 9>"$DIR/lock"
  flock -w 300 9 || die "another local_cluster.sh holds $DIR/lock"
  if [[ ! -f "$DIR/saved" ]]; then say "not up"; return 0; fi
  # shellcheck disable=SC1091
  . "$DIR/saved"
  teardown
  say "down (logs: $LOG)"
}

cmd_status() {
  local d rc=0 state
  check_dir
  if [[ ! -f "$DIR/saved" ]]; then echo "down"; return 3; fi
  # shellcheck disable=SC1091
  . "$DIR/saved"
  for d in $(daemons); do
    if alive "$d"; then state="running, pid $(cut -d' ' -f1 "$RUN/$d.pid")"; else state="NOT RUNNING"; rc=1; fi
    printf '%-12s %s\n' "$d" "$state"
  done
  SLURM_CONF=$CONF timeout 20 sinfo -N -o '%N %P %T %c CPUs %m MB %G' || rc=1
  nodes_usable || { echo "not all $NODES nodes are usable"; rc=1; }
  if [[ -n ${1:-} && $1 != "$NODES" ]]; then echo "has $NODES nodes, not $1"; rc=1; fi
  if [[ $rc == 0 ]]; then echo "up: $NODES nodes, mode $MODE"; else echo "degraded"; fi
  return $rc
}

open_saved() { # NODE : reads what `up` saved and checks the number
  check_dir
  [[ -f "$DIR/saved" ]] || die "not up"
  # shellcheck disable=SC1091
  . "$DIR/saved"
  [[ ${1:-} =~ ^[1-9][0-9]?$ && $1 -le $NODES ]] || die "no node '${1:-}': there are $NODES"
}

cmd_lose() { # NODE [slurmd]
  local pids _
  open_saved "${1:-}"
  if [[ ${2:-} == slurmd ]]; then
    alive "slurmd-n$1" || die "slurmd of n$1 does not run"
    read -r pids _ <"$RUN/slurmd-n$1.pid"
  else
    [[ $MODE == netns ]] || die "only in netns mode: a node's processes are not known otherwise"
    pids=$(ip netns pids "$(ns "$1")")
  fi
  # shellcheck disable=SC2086
  kill -KILL $pids
}

cmd_back() { # NODE
  open_saved "${1:-}"
  exec 9>"$DIR/lock"
  flock -w 300 9 || die "another local_cluster.sh holds $DIR/lock"
  if ! alive "slurmd-n$1"; then
    in_node "$1" slurmd -D -f "$CONF" -N "n$1"
    spawn "slurmd-n$1" "${NODE_CMD[@]}"
  fi
  wait_for "node n$1 to be up" "slurmd-n$1" sh -c "SLURM_CONF='$CONF' sinfo -h -N -n n$1 -t idle,mix,alloc,comp -o %N%T | grep -v '[*]' | grep -q n$1"
}

cmd_env() {
  echo "export SLURM_CONF='$CONF'"
}

case "${1:-}" in
  up) cmd_up "${2:-2}" ;;
  down) cmd_down ;;
  status) cmd_status "${2:-}" ;;
  lose) cmd_lose "${2:-}" "${3:-}" ;;
  back) cmd_back "${2:-}" ;;
  env) cmd_env ;;
  *)
    sed -n '3,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
