"""Whether it pays to spread a model, before it is loaded: ``python examples/before_you_load.py MODEL``."""

import json
import os
import sys
import urllib.request

SERVER = f"http://{os.environ.get('OLLAMA_HOST') or '127.0.0.1:11434'}"


def main(model: str) -> None:
    """Print what every sensible choice of workers is predicted to reach; * marks what a load would choose."""
    body = json.dumps({"model": model}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{SERVER}/api/cluster/plan", body)) as answer:
        plans = json.load(answer)["plans"]
    for plan in plans:
        speeds = plan["predicted"]
        mark = "*" if plan["chosen"] else " "
        print(
            f"{mark} {plan['name']:24} decode {speeds['decode_tokens_per_s']:8.1f} tokens/s"
            f"   prefill {speeds['prefill_tokens_per_s']:8.1f} tokens/s   {plan['error']}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
