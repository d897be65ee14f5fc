# Sourced, with `job` set to how messages call the script: the environment of environment.sh with LLaVA-Ultra switched on
# and seen to be so. Defines `fail`, which ends the script with one line.

. scripts/environment.sh
fail() { echo "$job: FAILED: $*" >&2; exit 1; }

llava-ultra enable || fail "llava-ultra enable; its message is above"
verdict=$(llava-ultra doctor | tail -n 1) || true
echo "$verdict"
[[ "$verdict" == "doctor: ready"* ]] || fail "LLaVA-Ultra is not active; \`llava-ultra doctor\` says more"

export PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
