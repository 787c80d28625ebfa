#!/usr/bin/env bash
# N ranks on this machine:  launch/local.sh N command...
#   launch/local.sh 4 qsparse train --model mlp
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 N command..." >&2
    exit 2
fi
ranks=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=env.sh
. "$here/env.sh"
# A parent for each rank, which says how the rank ends; launchers name a process at best.
supervised=()
if python -P -c 'import qsparse.process.supervisor' 2>/dev/null; then
    supervised=(python -P -m qsparse.process.supervisor)
fi
exec "${MPIEXEC:-mpiexec}" -n "$ranks" ${supervised[@]+"${supervised[@]}"} "$@"
