#!/usr/bin/env bash
# {{ title | verbatim }}
set -uo pipefail
cd {{ folder }}
{% for variable in variables %}
export {{ variable.name | verbatim }}={{ variable.value }}
{% endfor %}
logs={{ logs }}
mkdir -p "$logs"

# Starts all processes once; returns the largest of their exit codes.
once() {
    local code=0 port pids=()
    port=$((20000 + RANDOM % 12000))
    for ((rank = 0; rank < {{ processes }}; rank++)); do
        LGM_COORDINATOR=127.0.0.1:$port LGM_PROCESSES={{ processes }} LGM_PROCESS_ID=$rank \
            {{ command | words }} "$@" >> "$logs/${1:+run-$1-}rank-$rank.log" 2>&1 &
        pids+=($!)
    done
    trap 'kill -TERM "${pids[@]}" 2>/dev/null; told=1' TERM INT
    for pid in "${pids[@]}"; do
        wait "$pid" || { this=$?; while kill -0 "$pid" 2>/dev/null; do wait "$pid"; this=$?; done
                         ((this > code)) && code=$this; }
    done
    trap - TERM INT
    return "$code"
}

# 75 and 76, or a signal: goes on from the last checkpoint, at most {{ restarts }} times in a row.
keep_on() {
    local again=0 code
    while once "$@"; code=$?; ((code == 75 || code == 76 || code > 128)) && ((again++ < {{ restarts }})); do
        [[ -n ${told:-} ]] && break
        echo "$(date +%FT%T) ended with code $code: starts again"
    done
    return "$code"
}

echo "$(date +%FT%T) start, pid $$"
{% if runs is none %}
keep_on
{% else %}
failed=0
for run in {{ runs | words }}; do
    keep_on "$run" || failed=$?
    [[ -n ${told:-} ]] && break
done
{{ gather | words }} || failed=$?
(exit "$failed")
{% endif %}
code=$?
echo "$(date +%FT%T) ended with code $code"
exit "$code"
