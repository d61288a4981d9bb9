#!/bin/bash
# Trains on the nodes of a SLURM job, one task a node; from the repository's folder:
#
#   sbatch --nodes=4 --gpus-per-node=8 experiments/launch/slurm.sh \
#       --config=experiments/configs/cifar10_deblur.py --workdir=/shared/runs/cifar10
#
# Two minutes before its time is up SLURM sends SIGTERM: all hosts save, at one step, and end with
# status 143. The same sbatch goes on from there, with as many nodes as you like.
#SBATCH --job-name=diffjax
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

# Under SLURM JAX takes one GPU a task, unless it is told of the others.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi
exec srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m experiments.train --distributed "$@"
