#!/usr/bin/env bash
# A hospital's parts on this machine, for tests and the demo: PostgreSQL and Orthanc (DICOMweb and DIMSE), on free
# loopback ports, with all their files in FOLDER. As root, PostgreSQL runs as the user postgres, which it demands.
#
#   bash scripts/hospital_parts.sh install                          what is missing, as Debian packages (needs root)
#   bash scripts/hospital_parts.sh start FOLDER [postgres] [orthanc]   default both; prints NAME=value lines
#   bash scripts/hospital_parts.sh stop FOLDER                      both; FOLDER is removed
#
# Printed, and kept in FOLDER/addresses: POSTGRES_URL; ORTHANC_WEB, ORTHANC_USER, ORTHANC_PASSWORD (DICOMweb and REST,
# at ORTHANC_REST); ORTHANC_PORT, ORTHANC_TITLE (DIMSE); RECEIVE_TITLE, RECEIVE_PORT (where C-MOVE sends to).
# The passwords guard synthetic data on a loopback port only.

set -euo pipefail

say() { echo "hospital parts: $*" >&2; }
stop_with() { say "$*"; exit 1; }

postgres_bin() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }
dicomweb_plugin() { ls /usr/share/orthanc/plugins/libOrthancDicomWeb.so /usr/lib/orthanc/libOrthancDicomWeb.so* 2>/dev/null | head -n 1; }

missing_packages() {
    [[ -n "$(postgres_bin)" ]] || echo postgresql
    command -v Orthanc >/dev/null || echo orthanc
    [[ -n "$(dicomweb_plugin)" ]] || echo orthanc-dicomweb
    command -v storescu >/dev/null || echo dcmtk
}

install_parts() {
    local missing log
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then return; fi
    command -v apt-get >/dev/null && [[ $EUID == 0 ]] ||
        stop_with "${missing[*]} not installed: as root on Debian, bash scripts/hospital_parts.sh install"
    log=$(mktemp)
    exec 8>/tmp/hospital_parts.lock  # two starts at once: the second waits
    flock 8
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]})); then
        say "installing ${missing[*]}"
        # The packages would start servers of their own on fixed ports; ours are on free ones.
        { DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${missing[@]}" ||
            { apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
                apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1 8>&- ||
            stop_with "apt-get could not install ${missing[*]}: $(tail -n 1 "$log")"
    fi
    exec 8>&-
    rm -f "$log"
}

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))
PYTHON
}

as_postgres() { if [[ $EUID == 0 ]]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }

start_postgres() {
    local bin data port
    bin=$(postgres_bin)
    port=$(free_ports 1)
    data=$(mktemp -d "${TMPDIR:-/tmp}/hospital_postgres.XXXXXX")  # postgres may not enter a FOLDER below a private one
    ln -s "$data" "$folder/postgres"
    if [[ $EUID == 0 ]]; then chown postgres "$data"; fi
    cd "$data"  # a folder that postgres may enter
    as_postgres "$bin/initdb" -D "$data/cluster" -U ultra -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$folder/postgres.log" 2>&1 ||
        stop_with "initdb failed: $(tail -n 1 "$folder/postgres.log")"
    as_postgres "$bin/pg_ctl" -D "$data/cluster" -w -t 120 -l "$data/server.log" \
        -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off" start \
        >>"$folder/postgres.log" 2>&1 9>&- || stop_with "PostgreSQL did not start: $(tail -n 1 "$data/server.log")"
    echo "POSTGRES_URL=postgresql://ultra@127.0.0.1:$port/postgres" >>"$folder/addresses"
}

start_orthanc() {
    local web dicom receive user=ultra password=ultra-test tries
    read -r web dicom receive < <(free_ports 3)
    mkdir "$folder/orthanc"
    cat >"$folder/orthanc/orthanc.json" <<JSON
{
  "Name": "ULTRA test", "StorageDirectory": "$folder/orthanc/db", "IndexDirectory": "$folder/orthanc/db",
  "Plugins": ["$(dicomweb_plugin)"], "DicomWeb": {"Enable": true, "Root": "/dicom-web/"},
  "HttpPort": $web, "RemoteAccessAllowed": false, "AuthenticationEnabled": true,
  "RegisteredUsers": {"$user": "$password"},
  "DicomPort": $dicom, "DicomAet": "ORTHANC", "DicomAlwaysAllowFind": true, "DicomAlwaysAllowGet": true,
  "DicomAlwaysAllowMove": true, "DicomModalities": {"ultra": ["ULTRA", "127.0.0.1", $receive]},
  "SynchronousCMove": true, "OverwriteInstances": true
}
JSON
    Orthanc "$folder/orthanc/orthanc.json" >"$folder/orthanc/server.log" 2>&1 </dev/null 9>&- &
    echo $! >"$folder/orthanc/pid"
    for ((tries = 0; tries < 240; tries++)); do
        if curl -sf -u "$user:$password" "http://127.0.0.1:$web/system" >/dev/null; then break; fi
        kill -0 "$(cat "$folder/orthanc/pid")" 2>/dev/null ||
            stop_with "Orthanc did not start: $(tail -n 1 "$folder/orthanc/server.log")"
        sleep 0.5
    done
    ((tries < 240)) || stop_with "Orthanc does not answer after 120 s: $(tail -n 1 "$folder/orthanc/server.log")"
    cat >>"$folder/addresses" <<LINES
ORTHANC_REST=http://127.0.0.1:$web
ORTHANC_WEB=http://127.0.0.1:$web/dicom-web
ORTHANC_USER=$user
ORTHANC_PASSWORD=$password
ORTHANC_PORT=$dicom
ORTHANC_TITLE=ORTHANC
RECEIVE_TITLE=ULTRA
RECEIVE_PORT=$receive
LINES
}

stop_parts() {
    local pid
    if [[ -f "$folder/orthanc/pid" ]]; then
        pid=$(cat "$folder/orthanc/pid")
        kill "$pid" 2>/dev/null || true
        for _ in {1..100}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    fi
    if [[ -d "$folder/postgres/cluster" ]]; then
        (cd "$folder/postgres" && as_postgres "$(postgres_bin)/pg_ctl" -D cluster -m immediate -w stop) >/dev/null 2>&1 || true
    fi
    if [[ -L "$folder/postgres" ]]; then rm -rf "$(readlink "$folder/postgres")"; fi
    rm -rf "$folder"
}

case "${1:-}" in
install) install_parts ;;
start)
    folder=${2:?"give a folder that is not there yet"}
    [[ ! -e "$folder" ]] || stop_with "$folder is there already; give another, or stop it first"
    install_parts
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    chmod 711 "$folder"
    trap '[[ $? == 0 ]] || stop_parts' EXIT  # half a start leaves nothing running
    : >"$folder/addresses"
    shift 2
    for part in "${@:-postgres orthanc}"; do
        for one in $part; do
            case "$one" in
            postgres) start_postgres ;;
            orthanc) start_orthanc ;;
            *) stop_with "no part $one; allowed are postgres and orthanc" ;;
            esac
        done
    done
    cat "$folder/addresses"
    ;;
stop)
    folder=${2:?"give the folder that start was given"}
    [[ -f "$folder/addresses" || -d "$folder/orthanc" || -d "$folder/postgres" ]] || stop_with "$folder is no folder of this script"
    folder=$(cd "$folder" && pwd)
    stop_parts
    ;;
*) sed -n '2,13p' "$0"; exit 2 ;;
esac
