"""A process that saves and is killed, over and over, for test_store: it has two memories, and forks to save them."""

import os
import signal
import sys
import time


def learners():
    """Two learners with different memories on one model."""
    from continual.learners import ids, make, read

    return [read(make("three"), [ids(20 + 16 * i)]) for i in range(2)]


def serve(folder):
    """On "go" a fork saves one memory after the other in a loop; on "kill" it gets SIGKILL."""
    import torch

    torch.set_num_threads(1)  # a fork has no other threads
    both, child = learners(), 0
    both[0].save(folder)
    begun = time.perf_counter()
    both[0].save(folder)
    print(time.perf_counter() - begun, flush=True)
    for line in sys.stdin:
        if line == "go\n":
            child = os.fork()
            if not child:
                while True:
                    both[1].save(folder)
                    both[0].save(folder)
            print("going", flush=True)
        elif line == "kill\n":
            os.kill(child, signal.SIGKILL)
            print("killed", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    serve(sys.argv[1])
