"""Where the words stand in what compiled code and Python both read: rows, pools and machines.

Offsets are in bytes; every word has 8.
"""

# A row: the kernel's address, the size of its result, along which axis it is cut, and into multiples of what.
KERNEL, N, M, SPLIT, QUANTUM = 0, 8, 16, 24, 32
SPLIT_N, SPLIT_M, WHOLE = 0, 1, 2
# A pool's block (see `minigan.kernels.interpreter`). What is written in different places of a phase is 128 bytes apart:
# two cache lines, which processors fetch in pairs.
OPEN, FIRST, LAST, PARTS, ROWS, MODE = 0, 8, 16, 24, 32, 40
DONE = 128
STOP, YIELD, SLEEP, NAP = 256, 264, 272, 280
POOL_BYTES = 384
# A machine's head: whether a check failed, the addresses of its lists of rows and of phases, how many runs have come to
# their end, and the block of a pool without workers, for runs without help.
FAILED, ROW_LIST, PHASE_LIST, FINISHED, OWN_POOL = 0, 8, 16, 24, 32
MACHINE_BYTES = OWN_POOL + POOL_BYTES
PHASE_BYTES = 24  # first row, last row + 1, parts
