#!/bin/bash
# Plain ssh: one torchrun a machine, started from any of them, with the same Python environment at the same path on all.
# Edit the two places, then, where `torchrun` is on the PATH and `ssh HOST` asks for no password:
#   bash docs/clusters/ssh.sh
# Ctrl-C and SIGTERM save a checkpoint and end the job; started again, it continues in the same W&B run.
set -euo pipefail

# EDIT 1: the machines, the first one is where all meet; and devices (processes) on each.
hosts=(node0 node1)
devices=8

# EDIT 2: the training. The folder must be on a disk that all machines share.
recipe=train_llama3_8b
folder=$HOME/runs/train_llama3_8b

mkdir -p "$folder"
started=$(date +%s)
[ -e "$folder/wandb_id" ] || echo "ssh-$started" > "$folder/wandb_id"
training=(
    env "WANDB_RUN_ID=$(cat "$folder/wandb_id")" "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"
    "$(command -v torchrun)"
    --nnodes "${#hosts[@]}" --nproc-per-node "$devices"
    --rdzv-backend c10d --rdzv-id "$started" --rdzv-endpoint "${hosts[0]}:${PORT:-29500}"
    --max-restarts 3 --shutdown-timeout 540
    -m bridge train "$recipe"
    "logger.dir=$folder" "checkpoint.save=$folder/checkpoints" "checkpoint.load=$folder/checkpoints"
    checkpoint.save_interval=100 checkpoint.keep=2
)

# Each torchrun leaves its process id in the shared folder; a signal here becomes a SIGTERM there.
# shellcheck disable=SC2029,SC2317
stop() {
    for host in "${hosts[@]}"; do
        ssh -n "$host" "kill -TERM \$(cat '$folder/$host.pid')" 2> /dev/null &
    done
}
trap stop INT TERM

agents=()
for host in "${hosts[@]}"; do
    # shellcheck disable=SC2029
    ssh -n "$host" "cd '$PWD' && echo \$\$ > '$folder/$host.pid' && exec ${training[*]@Q}" > "$folder/$host.log" 2>&1 &
    agents+=($!)
done
echo "running on ${hosts[*]}; output in $folder/*.log"

code=0
for agent in "${agents[@]}"; do
    # A trapped signal ends `wait` before the agent has ended.
    while ended=0; wait "$agent" || ended=$?; kill -0 "$agent" 2> /dev/null; do :; done
    [ "$ended" = 0 ] || code=$ended
done
exit "$code"
