"""The commands of deploy/README.md that lead from nothing to three nodes with TLS and a token."""

from pathlib import Path

README = Path(__file__).resolve().parents[2] / "deploy/README.md"


def commands() -> list[str]:
    """Each of them, in their order."""
    block = README.read_text().split("<!-- operator -->\n```\n")[1].split("\n```\n<!-- /operator -->")[0]
    return block.splitlines()
