"""Eight prompts at once: ``python examples/many_at_once.py MODEL``. Needs ``pip install ollama``."""

import asyncio
import sys
import time

import ollama

SUBJECTS = ("rain", "bread", "glass", "owls", "chess", "tides", "rust", "silk")


async def main(model: str) -> None:
    """Send all of them together; print the first line of each answer, and what all got together."""
    client = ollama.AsyncClient()
    started = time.monotonic()
    answers = await asyncio.gather(
        *(client.generate(model, f"One sentence about {subject}.", options={"num_predict": 48}) for subject in SUBJECTS)
    )
    seconds = time.monotonic() - started
    for subject, answer in zip(SUBJECTS, answers, strict=True):
        print(f"{subject:8}{answer.response.strip().splitlines()[:1]}")
    tokens = sum(answer.eval_count or 0 for answer in answers)
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s together")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
