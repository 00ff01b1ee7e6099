#!/usr/bin/env bash
# ResNet34 -> ResNet18 on ImageNet over two nodes of eight GPUs: sbatch launch/slurm.sh
#
# One task for each GPU: JAX shows each task the one of its local number. SLURM tells each task who the others are, and the
# training command reads that. Requeued after a preemption, the run goes on from its newest checkpoint. The paths are of a
# file system that all nodes share; the environment that sbatch is called from has this project installed.
#SBATCH --job-name=sdd_resnet18
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail
export JAX_COMPILATION_CACHE_DIR="$SHARED/programs"

srun --kill-on-bad-exit=1 python -m sdd_jax train \
  --config=configs/imagenet.py:teacher=resnet34,student=resnet18,method=sdd_dkd \
  --config.batch_size=1024 \
  --config.optim.learning_rate=0.4 \
  --config.data.path="$SHARED/imagenet" \
  --config.data.workers=8 \
  --config.teacher.run="$SHARED/runs/resnet34" \
  --workdir="$SHARED/runs/resnet18"
