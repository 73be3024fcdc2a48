"""Runs inside vLLM's environment: reads token ids as JSON lines, answers with scores and seconds.

First line: {"model", "dtype", "caching"}, "positions" of one with other than 4096 (null: its own), and "pooler" for
other settings than its activation off; then {"calls": [[ids, …], …]} as often as wanted. The prefix cache is emptied
before each, outside of the time. Or {"read": ids, "texts": two segments or null, "tasks"}: rows of outputs of the first
task that the model has, or the error of the last.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

out = os.fdopen(os.dup(1), "w", buffering=1)  # vLLM prints on stdout
os.dup2(2, 1)


def main() -> None:
    """Answer until stdin ends."""
    from vllm import LLM

    asked = json.loads(sys.stdin.readline())
    start = time.perf_counter()
    llm = LLM(
        asked["model"],
        runner="pooling",
        dtype=asked["dtype"],
        max_model_len=asked.get("positions", 4096),
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        enable_prefix_caching=asked["caching"],
        gpu_memory_utilization=0.3,
        pooler_config=asked.get("pooler", {"use_activation": False}),
        disable_log_stats=True,
    )
    print(json.dumps({"ready": time.perf_counter() - start}), file=out)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "read" in wanted:
            print(json.dumps(read(llm, wanted)), file=out)
            continue
        calls = wanted["calls"]
        llm.reset_prefix_cache()
        start, found = time.perf_counter(), []
        for call in calls:
            answers = llm.classify([{"prompt_token_ids": ids} for ids in call], use_tqdm=False)
            found += [a.outputs.probs[0] for a in answers]
        print(json.dumps({"seconds": time.perf_counter() - start, "scores": found}), file=out)


def read(llm: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Rows of outputs for one text by the first of these tasks that the model has, or why there are none."""
    error = ""
    for task in wanted["tasks"]:
        try:
            if task == "score":
                rows = [[llm.score(*wanted["texts"], use_tqdm=False)[0].outputs.score]]
            else:
                prompt = {"prompt_token_ids": wanted["read"]}
                data = llm.encode(prompt, pooling_task=task, use_tqdm=False)[0].outputs.data.float()
                rows = data.reshape(-1, data.shape[-1]).tolist()
        except Exception as failed:  # of any type: a model without the task, or a crash of its forward
            error = f"{type(failed).__name__}: {failed}"
        else:
            return {"rows": rows, "task": task}
    return {"error": error}


if __name__ == "__main__":
    main()
