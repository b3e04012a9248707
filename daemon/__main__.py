"""`python -m trainer_tui.daemon --workspace DIR`: only the door, because every spawned child
imports this file again."""

import sys

if __name__ == "__main__":
    from trainer_tui.daemon.run import main

    sys.exit(main(sys.argv[1:]))
