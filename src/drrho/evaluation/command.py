"""`drrho evaluate`: the scores of a model as text."""

from pathlib import Path

from drrho.evaluation.evaluate import EvaluateConfig, evaluate_named_model
from drrho.evaluation.tasks.benchmark import TaskScore, averages, evaluate_task_list
from drrho.plotting.table import markdown_table, metrics_table
from drrho.runtime.files import write_json
from drrho.runtime.launch import is_follower


def run_evaluate(config: EvaluateConfig) -> str:
    """Score a model by retrieval and zero-shot classification.

    If a task of a list failed, the error has the scores of the others too.
    """
    if config.tasks is not None:
        return _task_table(evaluate_task_list(config))
    scores = evaluate_named_model(config)
    if config.output is not None and not is_follower():
        write_json(Path(config.output), scores)
    written = "" if config.output is None else f"\n\nThe scores are in {config.output}."
    return f"{metrics_table(scores)}{written}"


def _task_table(scores: list[TaskScore]) -> str:
    """Table of the main metric of each task, with averages and the tasks that were passed over."""
    rows = []
    for score in scores:
        if score.problem is None:
            value = "done" if score.main_metric is None else f"{score.main_metric:.4f}"
            chance = "" if score.chance is None else f"{score.chance:.4f}"
            rows.append([score.task.name, score.task.main_metric or "none", value, chance])
    rows += [[name, "", f"{value:.4f}", ""] for name, value in averages(scores).items()]
    problems = [score for score in scores if score.problem is not None]
    lines = [markdown_table(["task", "main metric", "score", "chance"], rows)] if rows else []
    absent = [score.task.name for score in problems if not score.is_failure]
    if absent:
        lines.append(f"{len(absent)} of {len(scores)} tasks have no data here: {', '.join(absent)}")
        lines.append(f"(the first: {next(s.problem for s in problems if not s.is_failure)})")
    lines += [f"{score.task.name}: {score.problem}" for score in problems if score.is_failure]
    if not rows or any(score.is_failure for score in problems):
        raise ValueError("not every task could be evaluated\n\n" + "\n".join(lines))
    return "\n".join(lines)
