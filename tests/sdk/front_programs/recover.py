"""A run that failed is recovered: what had succeeded is not run again."""

import json
import sys
from pathlib import Path

import flyte
from again import failed, stamped
from hello import connect

if __name__ == "__main__":
    connect()
    flag = Path(sys.argv[3])
    run, why = failed(flag)
    flag.touch()
    recovered = flyte.rerun(run.name, recover=True)
    recovered.wait(quiet=True)
    print(json.dumps({"failed": why, "recovered": recovered.outputs()[0] == stamped(run)}))
