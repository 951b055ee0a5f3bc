"""Runs the checks of every client against a server: run.py URL MODEL [client ...]"""

import importlib
import sys
import time
import traceback

CLIENTS = ["openai", "ollama", "anthropic", "grpc", "schemas"]


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    passed, failed = 0, 0
    for client in sys.argv[3:] or CLIENTS:
        module = importlib.import_module(f"check_{client}")
        checks = [(name, check) for name, check in vars(module).items() if name.startswith("check_")]
        for name, check in checks:
            begin = time.monotonic()
            try:
                check(url, model)
            except Exception:
                failed += 1
                print(f"FAILED {client}.{name}")
                traceback.print_exc()
            else:
                passed += 1
                print(f"ok     {client}.{name} ({time.monotonic() - begin:.2f} s)")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
