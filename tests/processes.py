"""Processes of the tests, forked from one that has imported what they need once; ours has one such server."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.crash_parts", "tests.ledger_parts", "tests.llm_repo", "tests.worker_parts"])
