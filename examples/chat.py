"""A conversation of two turns: ``python examples/chat.py MODEL``. Needs ``pip install ollama``."""

import sys

import ollama


def main(model: str) -> None:
    """Ask, and ask again about the answer; text is printed as it comes."""
    messages: list[dict[str, str]] = []
    for question in ("Name one planet.", "Why did you choose that one?"):
        print(f">>> {question}")
        messages.append({"role": "user", "content": question})
        answer = ""
        for part in ollama.chat(model, messages, stream=True, options={"num_predict": 64}):
            answer += part.message.content or ""
            print(part.message.content, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(sys.argv[1])
