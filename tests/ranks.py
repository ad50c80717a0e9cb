"""A task of an eval run by two processes, as torchrun would start them."""

from __future__ import annotations

import json
import pickle
from typing import Any

from test_distributed import outputs

from evals.settings import EvalConfig

TASK = """
import json, pickle
from evals.tasks import TASKS

config = pickle.loads(bytes.fromhex("{config}"))
result = TASKS[config.task](config)
rows = [row._asdict() for row in result.rows]
print("result " + json.dumps({{"rows": rows, **{{name: result.facts[name] for name in {facts}}}}}), flush=True)
"""


def by_two(config: EvalConfig, *facts: str) -> list[dict[str, Any]]:
    """The rows and these facts of the task, as each of two processes has them."""
    script = TASK.format(config=pickle.dumps(config).hex(), facts=list(facts))
    return [json.loads(out.partition("result ")[2].splitlines()[0]) for out in outputs(script)]
