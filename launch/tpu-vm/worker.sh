#!/usr/bin/env bash
# {{ title | verbatim }}
# What each worker of the slices does. worker.sh setup: the code at the launched commit, and its environment. worker.sh
# start: training in the background, unless it runs. worker.sh wait: until it has ended; exits with its code.
set -euo pipefail
home=$HOME/lgm-{{ label | verbatim }}
code=$home/code venv=$home/venv
mkdir -p "$home"
cd "$home"

# images have the Python of their distribution, which may be older than lgm takes, and may be without venv
environment() {
    local python
    for python in {{ pythons | words }}; do
        if command -v "$python" > /dev/null && "$python" -m venv "$venv"; then return; fi
        rm -rf "$venv"
    done
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 "$venv"
}

setup() {
    [[ -f $home/ready && $(cat "$home/ready") == {{ wanted }} ]] && return
{% for line in setup %}
    {{ line | verbatim }}
{% endfor %}
{% if commit %}
    [[ -d $code/.git ]] || git clone --no-checkout {{ repository }} "$code"
    git -C "$code" fetch --quiet origin {{ commit }}
    git -C "$code" checkout --quiet --detach {{ commit }}
{% endif %}
    [[ -x $venv/bin/python ]] || environment
    "$venv/bin/python" -m pip install --quiet --upgrade pip
{% if commit %}
    "$venv/bin/python" -m pip install --quiet --constraint "$code/constraints.txt" --editable "$code[tpu]"
{% else %}
    "$venv/bin/python" -m pip install --quiet {{ wanted }}
    local have
    have=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("lgm"))')
    [[ $have == {{ version }} ]] || { echo "pip installed lgm $have, not the launched "{{ version }} >&2; exit 1; }
{% endif %}
{% if bucket %}
    if ! command -v gcsfuse > /dev/null; then
        release=gcsfuse-$(lsb_release -c -s)
        echo "deb https://packages.cloud.google.com/apt $release main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc > /dev/null
        sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
    fi
{% endif %}
    echo {{ wanted }} > "$home/ready"
}

mounted() {
{% if bucket %}
    sudo mkdir -p {{ mount }} && sudo chown "$(id -u)" {{ mount }}
    mountpoint --quiet {{ mount }} || gcsfuse --implicit-dirs {{ bucket }} {{ mount }}
{% else %}
    sudo mkdir -p {{ mount }} && sudo chown "$(id -u)" {{ mount }}
{% endif %}
}

# its code appears, whole, a moment before the process has gone
running() { [[ -f $home/pid && ! -f $home/code.txt ]] && kill -0 "$(cat "$home/pid")" 2> /dev/null; }

start() {
    if running; then return; fi
    mounted
    rm -f "$home/code.txt"
    cat > "$home/config.json" <<'CONFIG_{{ marker | verbatim }}'
{{ config | verbatim }}
CONFIG_{{ marker | verbatim }}
{% for variable in variables %}
    export {{ variable.name | verbatim }}={{ variable.value }}
{% endfor %}
{% for variable, secret in secrets.items() %}
    {{ variable | verbatim }}=$(gcloud secrets versions access latest --secret={{ secret }} --project={{ project }})
    export {{ variable | verbatim }}
{% endfor %}
    mkdir -p {{ logs }}
    local log={{ logs }}/$(hostname).log
    export code_file=$home/code.txt
    setsid nohup bash -c '"$@"; echo $? > "$code_file.new"; mv "$code_file.new" "$code_file"' run \
        "$venv/bin/python" -m lgm.cli {{ verb }} --config="$home/config.json" \
        --workdir={{ workdir }} "$@" >> "$log" 2>&1 < /dev/null &
    echo $! > "$home/pid"
}

wait_for() {
    while running; do sleep 5; done
    [[ -f $home/code.txt ]] || exit 137  # gone without a word
    code_was=$(cat "$home/code.txt")
    [[ $code_was == 0 ]] || tail -n 5 {{ logs }}/"$(hostname)".log >&2
    exit "$code_was"
}

case $1 in
setup) setup ;;
start) start "${@:2}" ;;
wait) wait_for ;;
esac
