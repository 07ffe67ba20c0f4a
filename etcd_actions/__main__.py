"""``python -m etcd_actions``."""

import sys

from etcd_actions.cli import main

if __name__ == "__main__":
    sys.exit(main())
