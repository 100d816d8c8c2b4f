"""`tidegate-cloud`: runs the cloud node."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cloud_node.app import check_cloud, run_cloud
from cloud_node.settings import CloudSettings
from serving.startup import program_main

SUMMARY = (
    "Puts cloud capacity behind the gateways: links them to any OpenAI-compatible server (vLLM, SGLang, "
    "llama-server), or to llama.cpp in this node with layers offloaded to a GPU. It dials out and needs no "
    "open port."
)


def main(argv: Sequence[str] | None = None) -> int:
    return program_main(
        CloudSettings,
        run_cloud,
        summary=SUMMARY,
        packages=("cloud_node", "serving", "tidegate"),
        argv=argv,
        check=check_cloud,
    )


if __name__ == "__main__":
    sys.exit(main())
