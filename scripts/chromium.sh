#!/usr/bin/env bash
# The browser that the tests of the exam page drive: Chromium as Debian packages it, and a font with Chinese in it.
#
#   bash scripts/chromium.sh install   what is missing (needs root on Debian); nothing where a browser is there
#   bash scripts/chromium.sh path      prints the browser's program

set -euo pipefail

stop_with() { echo "chromium: $*" >&2; exit 1; }
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }

missing_packages() {
    [[ -n "$(browser)" ]] || echo chromium
    { command -v fc-list >/dev/null && fc-list :lang=zh | grep -q .; } || echo fonts-noto-cjk
}

install_browser() {
    local missing log
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then return; fi
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        # Without a font the page shows boxes, yet every test runs.
        if [[ -n "$(browser)" ]]; then return; fi
        stop_with "${missing[*]} not installed: as root on Debian, bash scripts/chromium.sh install"
    fi
    log=$(mktemp)
    exec 8>/tmp/chromium_install.lock  # two starts at once: the second waits
    flock 8
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]})); then
        echo "chromium: installing ${missing[*]}" >&2
        { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ||
            { apt-get update && DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1 8>&- ||
            stop_with "apt-get could not install ${missing[*]}: $(tail -n 1 "$log")"
    fi
    exec 8>&-
    rm -f "$log"
}

case "${1:-}" in
install) install_browser ;;
path)
    [[ -n "$(browser)" ]] || stop_with "no browser: as root on Debian, bash scripts/chromium.sh install"
    browser
    ;;
*) sed -n '2,6p' "$0"; exit 2 ;;
esac
