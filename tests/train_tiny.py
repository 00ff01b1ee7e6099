"""Trains the tiny run as a process of its own, to be killed: ``train_tiny.py --help``."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import tiny

from sdd_jax import processes
from sdd_jax.training import loop

parser = argparse.ArgumentParser()
parser.add_argument("workdir", type=Path)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seconds", type=float, default=0.0, help="sleep so long before every chunk")
parser.add_argument("--bright", type=int, default=0, help="what is added to the first training image")
parser.add_argument("--steps_per_call", type=int, default=1)
parser.add_argument("--teacher", help="what stands for the teacher's weights")
parser.add_argument("--stores", help="the form of the teacher's cache")
parser.add_argument("--early", action="store_true", help="SIGTERM before anything is made")
parser.add_argument("--process", help="INDEX,COUNT,PORT of several processes")


def main(given):
    """Trains, and listens to signals as the command does."""
    if given.process:
        index, count, port = map(int, given.process.split(","))
        processes.join(f"127.0.0.1:{port}", count, index, wait=60)
    try:
        with processes.stop_signals() as requested:

            def should_stop(step):
                print(f"at {step}", flush=True)
                time.sleep(given.seconds)
                return requested(step)

            if given.early:
                os.kill(os.getpid(), signal.SIGTERM)
            built = tiny.built(epochs=given.epochs, steps_per_call=given.steps_per_call)
            built = built._replace(teacher=built.teacher._replace(digest=given.teacher, stores=given.stores))
            built.dataset.train.images[0] += given.bright
            loop.train(built, given.workdir, should_stop=should_stop)
    except processes.Preempted as preempted:
        print(preempted, file=sys.stderr)
        sys.exit(preempted.code)


if __name__ == "__main__":
    main(parser.parse_args())
