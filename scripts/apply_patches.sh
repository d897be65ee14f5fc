#!/usr/bin/env bash
# Adds patches/*.patch to a LLaVA source checkout (a folder that holds llava/), or takes them out again.
#
#   bash scripts/apply_patches.sh <LLaVA checkout> [--reverse]
#
# Both are idempotent. The folder needs no git metadata; git is only the program that applies.

set -euo pipefail
stop() { echo "apply_patches: $*" >&2; exit 1; }

patches=$(cd "$(dirname "$0")/../patches" && pwd)
checkout='' reverse=''
for argument in "$@"; do
    case "$argument" in
        --reverse) reverse=1 ;;
        -*) stop "unknown option $argument; usage: apply_patches.sh <LLaVA checkout> [--reverse]" ;;
        *) checkout=$argument ;;
    esac
done
[[ -n "$checkout" ]] || stop "usage: apply_patches.sh <LLaVA checkout> [--reverse]"
if [[ ! -f "$checkout/llava/__init__.py" || ! -f "$checkout/llava/model/llava_arch.py" ]]; then
    stop "$checkout is not a LLaVA checkout (no llava/__init__.py and llava/model/llava_arch.py); give the folder that holds llava/"
fi

cd "$checkout"
apply() { git apply --unidiff-zero --whitespace=nowarn "$@"; }

for patch in "$patches"/*.patch; do
    name=$(basename "$patch")
    # Without context lines a patch would apply any number of times, so its reverse tells whether it is in.
    if apply --reverse --check "$patch" 2>/dev/null; then applied=1; else applied=; fi
    if [[ -z "$applied" && -z "$reverse" ]]; then
        apply "$patch" || stop "$name does not fit $checkout"
        echo "apply_patches: $name applied"
    elif [[ -n "$applied" && -n "$reverse" ]]; then
        apply --reverse "$patch"
        echo "apply_patches: $name taken out"
    else
        echo "apply_patches: $name already ${applied:+applied}${reverse:+absent}"
    fi
done
