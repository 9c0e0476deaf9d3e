#!/bin/sh
# Makes sure that what `make $1` needs is on this machine. Only Debian's packages
# are installed, and only as root; else what is missing is named.
set -eu
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
case "${1:-test}" in
  demo) ;; # the demo brings what it needs, as Go modules
  test) need redis-server redis-server ;;
  e2e) # beside the servers, what builds and runs examples/
    need redis-server redis-server; need javac default-jdk-headless; need mvn maven; need node nodejs; need npm npm
    python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv" ;;
  matrix) need python3 "python3 python3-pip" ;; # lab/servers.sh fetches the servers
  bench) need redis-server redis-server; need ss iproute2 ;;
  *) echo "usage: $0 test|demo|e2e|matrix|bench" >&2; exit 2 ;;
esac
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing packages:$missing (install them, or run this as root on Debian or Ubuntu)" >&2
    exit 1
  fi
  # RUNLEVEL=1 keeps the packages' services from being started.
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  apt-get install -y --no-install-recommends $missing || { apt-get update && apt-get install -y --no-install-recommends $missing; }
fi
if [ "$(id -u)" != 0 ]; then
  echo "make ${1:-test} needs root: network namespaces, sock_diag and the servers of the lab" >&2
  exit 1
fi
