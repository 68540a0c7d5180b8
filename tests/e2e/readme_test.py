#!/usr/bin/python3
"""Does what README.md says: runs its commands, in their order, with the programs of this build.

Run are the blocks marked "executed by tests/e2e/readme_test.py". What a test may not do is replaced:
the programs come from BATON_BIN_DIR, the router takes any free port, files go to a folder of the test.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARK = "<!-- executed by tests/e2e/readme_test.py -->\n```sh\n"
BLOCK_SECONDS_MAX = 300


def adapted(block, bin_folder, folder):
    """The block with this build's programs, any port, and files in `folder`."""
    logs = folder / "logs"
    block = block.replace("deploy/local_cluster.sh start", f"deploy/local_cluster.sh start --bin {bin_folder} --port 0")
    block = re.sub(r"(deploy/local_cluster\.sh \w+)", rf"\1 --logs {logs}", block)
    block = block.replace("build/release/bin", bin_folder).replace("build/python", str(folder / "python"))
    return block.replace("localhost:7000", router_address(folder))


def router_address(folder):
    """Where the router listens; before it does, an address that would fail."""
    path = folder / "logs/router.address"
    return path.read_text().strip() if path.exists() else "localhost:1"


def has_python_grpc():
    return subprocess.run(["/usr/bin/python3", "-c", "import grpc"], capture_output=True, check=False).returncode == 0


def main():
    bin_folder = os.environ.get("BATON_BIN_DIR", str(ROOT / "build/release/bin"))
    blocks = re.findall(re.escape(MARK) + r"(.*?)```\n", (ROOT / "README.md").read_text(), re.DOTALL)
    if len(blocks) < 5:
        sys.exit(f"README.md has only {len(blocks)} blocks to run: was a mark lost?")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        environment = {**os.environ, "BATON_BIN_DIR": bin_folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            for block in blocks:
                if "client.py" in block and not has_python_grpc():
                    print("left out: the Python client; python3-grpcio is not installed")
                    continue
                script = adapted(block, bin_folder, folder)
                environment["BATON_ROUTER"] = router_address(folder)  # The client's --router.
                print(script, flush=True)
                run = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment,
                                     stdin=subprocess.DEVNULL, timeout=BLOCK_SECONDS_MAX, check=False)
                if run.returncode != 0:
                    print(f"failed with status {run.returncode}")
                    for log in sorted((folder / "logs").glob("*.log")):
                        print(f"---- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
                    return 1
        finally:
            subprocess.run([str(ROOT / "deploy/local_cluster.sh"), "stop", "--logs", str(folder / "logs")], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
