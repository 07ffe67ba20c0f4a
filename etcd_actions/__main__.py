"""``python -m etcd_actions``."""

from etcd_actions.cli import process_main

if __name__ == "__main__":
    process_main()
