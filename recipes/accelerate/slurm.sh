#!/bin/bash
# Runs on several GPU nodes under Slurm, and restarts after a time limit or a lost node.
#
#   sbatch [--nodes=4 --time=24:00:00] recipes/accelerate/slurm.sh PRESET [section.key=value ...]
#
# Two minutes before the limit Slurm sends USR1; the job is requeued, and the same
# command resumes from its last checkpoint. Finished stages are skipped. run.dir must lie on a file
# system that all nodes share. Submit from the checkout, with its .venv installed.
#SBATCH --job-name=truing
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=truing-%j.log
set -euo pipefail

if (($# == 0)); then
    echo "error: no preset; sbatch recipes/accelerate/slurm.sh PRESET [section.key=value ...]" >&2
    exit 2
fi

GPUS=${SLURM_GPUS_ON_NODE:-8}
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${HOSTS%%$'\n'*}
export HEAD PORT=$((20000 + SLURM_JOB_ID % 20000))
export TOTAL=$((SLURM_NNODES * GPUS))

requeue() {
    echo "time limit: job $SLURM_JOB_ID goes back into the queue"
    kill -TERM "$STEP" 2>/dev/null || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1

# SLURM_NODEID differs on each node, so the inner shell reads it there.
srun --kill-on-bad-exit=1 bash -c '
    exec .venv/bin/accelerate launch --config_file recipes/accelerate/multi_node.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$TOTAL" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$HEAD" --main_process_port "$PORT" \
        recipes/sft_then_dpo.py "$@"
' bash "$@" &
STEP=$!
# A trap runs when wait returns: the step is in the background so that USR1 is handled at once.
wait "$STEP"
