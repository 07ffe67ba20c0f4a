"""Code in several folders: all of it is in the bundle."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent / "packages"
sys.path.insert(0, str(ROOT))

import flyte  # noqa: E402
from app.tasks import main  # noqa: E402
from hello import connect  # noqa: E402

if __name__ == "__main__":
    connect(ROOT)
    run = flyte.run(main, text="hey")
    run.wait(quiet=True)
    target = Path(sys.argv[3])
    code = run.download_code(str(target))
    found = sorted(each.name for each in Path(target).rglob("*.py"))
    print(
        json.dumps({"outputs": list(run.outputs()), "code": "words.py" in found, "at": bool(code)})
    )
